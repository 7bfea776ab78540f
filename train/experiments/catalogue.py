"""The models of every experiment, as changes to the recipe ``experiments``.

The general model is the unchanged recipe; most experiments use it, and it is trained once.
"""

from __future__ import annotations

from realtime.bundle.spec import Window
from train.experiments.workbench import Variant, Workbench

OFFSETS = tuple(range(-5, 10))
"""Window starts of the shift curve, in volumes after onset; windows end 1.3 s to 20 s after it (figure 5)."""
SPECIALISED_OFFSETS = (-4, -3, -2, -1, 0, 2, 5, 7, 9)
LENGTHS = (1, 2, 3, 4, 5)
SESSIONS_OF_NEW_SUBJECT = (1, 3, 10)
SUBJECTS = (1, 2, 5, 7)
N_SESSIONS = 10
"""Sessions of each subject in experiments with several subjects."""
OWN_TIMESTEPS = {"per_subject_timesteps": True}
"""Every subject has its own subject and timestep layers (appendix E); no change for a single subject."""
RATE_OF_WEIGHTS = 0.5
"""Share of the recipe's peak learning rate at which the UNet's own weights are tuned: at 2e-3 they first lose
what the base model has learned, and the loss starts a third higher."""


def shifted(window: Window, offset_volumes: int) -> Window:
    """A window of the same length with another start."""
    return Window(offset_volumes=offset_volumes, length_volumes=window.length_volumes)


def every_window(window: Window) -> tuple[Window, ...]:
    """All windows that experiments decode."""
    return tuple(shifted(window, offset) for offset in OFFSETS)


def general(bench: Workbench) -> Variant:
    """The model of the unchanged recipe."""
    return bench.variant("general")


def with_the_papers_loss_and_dropout(bench: Workbench) -> Variant:
    """The control arm: all noise levels weigh alike, and half of the hidden values are dropped, as in the
    paper. Its other settings are those of the recipe.
    """
    return bench.variant(
        "papers-loss-and-dropout", diffusion={"loss_weight": "uniform"}, brain={"dropout": 0.5}
    )


def baseline(bench: Workbench) -> Variant:
    """Brain-Diffuser on the general model's windows (table 1)."""
    return linear(bench, general(bench))


def linear(bench: Workbench, model: Variant, subject: int = 1) -> Variant:
    """A model's linear reference: Brain-Diffuser for one subject, on the windows that the model is trained
    on.

    The recordings contain what the reference decodes, whatever the model makes of it.
    """
    window, forms = model.recipe.window, model.recipe.preprocessing.train_on
    parts = ["baseline"]
    if window != bench.recipe.window:
        parts.append(f"{window.offset_volumes:+d}_{window.length_volumes}")
    if forms != bench.recipe.preprocessing.train_on:
        parts.append("+".join(forms))
    if subject != 1:
        parts.append(f"sub-{subject:02d}")
    if model.n_sessions is not None:
        parts.append(f"{model.n_sessions}-sessions")
    return bench.variant(
        "_".join(parts),
        is_baseline=True,
        finetune={"layers": "none"},
        window=window,
        preprocessing=model.recipe.preprocessing,
        subjects=(subject,),
        n_sessions=model.n_sessions,
    )


def specialised(bench: Workbench) -> dict[int, Variant]:
    """A model for each window start; the general model is the one for its own start (figures 4, 5)."""
    window = bench.recipe.window
    models = {
        offset: bench.variant(f"start{offset:+d}", window=shifted(window, offset))
        for offset in SPECIALISED_OFFSETS
    }
    return dict(sorted((models | {window.offset_volumes: general(bench)}).items()))


def by_length(bench: Workbench) -> dict[int, Variant]:
    """A model for each window length, with the general model's start (figure 6)."""
    models = {
        length: bench.variant(f"length-{length}", window={"length_volumes": length}) for length in LENGTHS
    }
    return models | {bench.recipe.window.length_volumes: general(bench)}


def brain_modules(bench: Workbench) -> dict[str, Variant]:
    """The rows of table 2."""
    return {
        "a layer for each volume, merged late": general(bench),
        "one layer for all volumes": bench.variant("shared-timesteps", brain={"timestep_layers": "shared"}),
        "merged before the subject layer": bench.variant("merge-in", brain={"aggregation": "in"}),
        "merged by the mean": bench.variant("merge-mean", brain={"aggregation": "mean"}),
        "with two residual blocks": bench.variant("residual-2", brain={"residual_blocks": 2}),
    }


def finetunings(bench: Workbench) -> dict[str, Variant]:
    """The rows of table 3. The UNet's own weights have a lower rate than the brain module."""
    low = {"peak_learning_rate": bench.recipe.fit.peak_learning_rate * RATE_OF_WEIGHTS}
    return {
        "LoRA": general(bench),
        "nothing": bench.variant("tune-none", finetune={"layers": "none"}),
        "cross-attention": bench.variant("tune-cross-low", finetune={"layers": "cross-attention", **low}),
        "linear layers": bench.variant("tune-linear-low", finetune={"layers": "linear", **low}),
        "everything": bench.variant("tune-all-low", finetune={"layers": "all", **low}),
    }


def by_preprocessing(bench: Workbench) -> dict[str, Variant]:
    """Models trained on whole runs, on causal windows as in the runtime, and on both."""
    return {
        "whole run": general(bench),
        "causal": bench.variant("causal", preprocessing={"train_on": ("causal",)}),
        "both": bench.variant("causal-both", preprocessing={"train_on": ("whole_run", "causal")}),
    }


def of_betas(bench: Workbench) -> Variant:
    """A model trained on betas instead of windows (table 4)."""
    return bench.variant(
        "betas", preprocessing={"train_on": ("betas",)}, window=Window(offset_volumes=0, length_volumes=1)
    )


def several_subjects(bench: Workbench) -> tuple[Variant, dict[int, Variant]]:
    """One model for all subjects, and a model for each of the first two (table 8)."""
    together = bench.variant("subjects-all", subjects=SUBJECTS, n_sessions=N_SESSIONS, brain=OWN_TIMESTEPS)
    second = bench.variant("subject-2", subjects=(2,), n_sessions=N_SESSIONS, brain=OWN_TIMESTEPS)
    return together, {1: new_subject(bench)[0][N_SESSIONS], 2: second}


def new_subject(bench: Workbench) -> tuple[dict[int, Variant], dict[int, Variant]]:
    """Models of subject 1 by sessions: from scratch, and from a model of the other subjects (figure 9)."""
    others = bench.variant(
        "subjects-others", subjects=SUBJECTS[1:], n_sessions=N_SESSIONS, brain=OWN_TIMESTEPS
    )
    from_nothing = {
        n: bench.variant(f"sessions-{n}", n_sessions=n, brain=OWN_TIMESTEPS) for n in SESSIONS_OF_NEW_SUBJECT
    }
    from_others = {
        n: bench.variant(f"sessions-{n}-pretrained", n_sessions=n, brain=OWN_TIMESTEPS, pretrained=others)
        for n in SESSIONS_OF_NEW_SUBJECT
    }
    return from_nothing, from_others


def models_of(experiment: str, bench: Workbench) -> list[Variant]:
    """The models of an experiment, and their linear references, in the order in which they are to be made."""
    fresh, tuned = new_subject(bench)
    together, alone = several_subjects(bench)
    paper = with_the_papers_loss_and_dropout(bench)
    models: dict[str, list[Variant]] = {
        "time-resolved": list(specialised(bench).values()),
        "window-length": list(by_length(bench).values()),
        "baseline": [general(bench), paper],
        "brain-module": list(brain_modules(bench).values()),
        "finetuning": list(finetunings(bench).values()),
        "preprocessing": list(by_preprocessing(bench).values()),
        "multi-subject": [together, *alone.values()],
        "new-subject": [*fresh.values(), *tuned.values()],
        "betas": [general(bench), of_betas(bench)],
    }
    chosen = models[experiment]
    parents = [model.pretrained for model in chosen if model.pretrained]
    references = [linear(bench, model, subject) for model in chosen for subject in model.subjects]
    return list({model.name: model for model in (*references, *parents, *chosen)}.values())
