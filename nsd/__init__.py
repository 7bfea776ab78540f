"""Reads the Natural Scenes Dataset: paths, designs, ROIs, runs, betas, stimuli and splits.

It reads NSD itself, which users must obtain themselves (its terms forbid redistribution), and synthetic
subjects that ``python -m sim synthesize`` writes in the same layout. Images are 0-based 73k indices here;
ids in files count from 1. Imports nothing else of this project.
"""

from nsd.betas import BETA_SCALE, betas_path, read_betas
from nsd.design import N_DESIGN_ROWS, N_IMAGES, Trial, read_design, trials
from nsd.errors import BadFile, BadRequest, GridMismatch, MissingFile, NsdError
from nsd.expdesign import ExpDesign, read_expdesign, shared_images
from nsd.layout import SYNTHETIC_FILE, Layout
from nsd.repairs import repaired_volumes
from nsd.roi import NSDGENERAL_VOXELS, Roi, read_roi
from nsd.run import Run
from nsd.sessions import SUBJECTS_SESSIONS, TASK_RUNS_PER_SESSION, TR_S, RunKey, runs, task_runs
from nsd.splits import RunTrial, run_trials, standard_split, time_resolved_split
from nsd.stimuli import Stimuli

__all__ = [
    "BETA_SCALE",
    "NSDGENERAL_VOXELS",
    "N_DESIGN_ROWS",
    "N_IMAGES",
    "SUBJECTS_SESSIONS",
    "SYNTHETIC_FILE",
    "TASK_RUNS_PER_SESSION",
    "TR_S",
    "BadFile",
    "BadRequest",
    "ExpDesign",
    "GridMismatch",
    "Layout",
    "MissingFile",
    "NsdError",
    "Roi",
    "Run",
    "RunKey",
    "RunTrial",
    "Stimuli",
    "Trial",
    "betas_path",
    "read_betas",
    "read_design",
    "read_expdesign",
    "read_roi",
    "repaired_volumes",
    "run_trials",
    "runs",
    "shared_images",
    "standard_split",
    "task_runs",
    "time_resolved_split",
    "trials",
]
