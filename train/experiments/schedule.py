"""Makes the models and the pages of experiments: in which order, by several processes, resumable at any kill.

What is made is in folders, so nothing else is kept: a schedule that is started again leaves out what is there
and goes on with what was begun.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path

from nsd import NsdError
from train.errors import TrainError
from train.experiments.headway import Progress, is_made, state_of
from train.experiments.workbench import Variant, Workbench
from train.experiments.workers import end_if_orphaned, n_workers, workers

PROGRESS_S = 60.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model of one seed or, where there is no variant, the page of an experiment."""

    name: str
    variant: Variant | None = None
    repetition: int = 0
    after: frozenset[str] = frozenset()
    """Names of the jobs that come first."""


def soonest_first(needs: Mapping[str, Sequence[str]]) -> list[str]:
    """Experiments in the order in which their results are complete soonest: next is the one with fewest new
    models.

    :param needs: names of each experiment's models, which experiments share
    """
    left, made, order = dict(needs), set[str](), list[str]()
    while left:
        name = min(left, key=lambda each: len(set(left[each]) - made))
        made |= set(left.pop(name))
        order.append(name)
    return order


def jobs_of(models: Mapping[str, Sequence[Variant]]) -> list[Job]:
    """The jobs of experiments, by their models, in the order in which they should be begun."""
    by_name = {
        name: [(variant, repetition) for variant in those for repetition in variant.repetitions]
        for name, those in models.items()
    }
    needs = {name: [model.folder(n) for model, n in those] for name, those in by_name.items()}
    jobs: dict[str, Job] = {}
    for name in soonest_first(needs):
        for variant, n in by_name[name]:
            parent = {variant.pretrained.folder(n)} if variant.pretrained else set()
            folder = variant.folder(n)
            jobs.setdefault(folder, Job(name=folder, variant=variant, repetition=n, after=frozenset(parent)))
        page = f"page {name}"
        jobs[page] = Job(name=page, after=frozenset(needs[name]))
    return list(jobs.values())


def make_all(bench: Workbench, jobs: Sequence[Job], write_page: Callable[[str], list[str]]) -> None:
    """Do all jobs, as many at a time as there are cores; the log says how far they are.

    :param write_page: writes an experiment's page in a worker, and returns lines for the log
    :raises TrainError: jobs failed; all that do not need them have been done
    :raises KeyboardInterrupt: after Ctrl-C or SIGTERM, when what is trained has been saved
    """
    trained = [job for job in jobs if job.variant and not job.variant.is_baseline]
    folders = [bench.work / "models" / job.name for job in trained]
    n = min(n_workers(), len(jobs))
    state = _State(
        left=list(jobs),
        progress=Progress(folders=folders, most_steps=bench.recipe.fit.steps, begun_s=time.monotonic()),
    )
    _log.info("%d models, of which %d are made; %d at a time", len(folders), state.progress.n_made, n)
    with workers(n) as pool:
        while state.left or state.running:
            while len(state.running) < n and (job := state.next_ready()):
                future = (
                    pool.submit(_make_model, bench, job.variant, job.repetition)
                    if job.variant
                    else pool.submit(write_page, job.name.removeprefix("page "))
                )
                state.running[future] = job
            ended, _ = wait(state.running, timeout=PROGRESS_S, return_when=FIRST_COMPLETED)
            for future in ended:
                state.end(future)
            _log.info("%s", state.said(bench.work / "models"))
    if state.failed:
        raise TrainError("not everything could be made. " + "; ".join(state.failed.values()))


def _make_model(bench: Workbench, variant: Variant, repetition: int) -> list[str]:
    """In a worker: make a model, and describe it."""
    folder = bench.folder(variant, repetition)
    was_made = is_made(folder, variant.recipe.fit.steps)
    try:
        bench.model(variant, repetition)  # which checks one that is there
    except KeyboardInterrupt:
        end_if_orphaned()
        raise
    if was_made:
        return []
    return [f"made {folder.name}" if variant.is_baseline else f"made {state_of(folder)}"]


@dataclass(kw_only=True)
class _State:
    left: list[Job]
    progress: Progress
    running: dict[Future[list[str]], Job] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)

    def next_ready(self) -> Job | None:
        """Take the first job all of whose inputs are there."""
        for job in self.left:
            if job.after <= self.done:
                self.left.remove(job)
                return job
        return None

    def end(self, future: Future[list[str]]) -> None:
        """Take in what a worker returned; what needs a job that failed is not begun."""
        job = self.running.pop(future)
        try:
            lines = future.result()
        except (TrainError, NsdError) as error:
            self.failed[job.name] = f"{job.name}: {error}"
            _log.error("%s", self.failed[job.name])
            self._drop(job.name)
            return
        self.done.add(job.name)
        for line in lines:
            _log.info("%s", line)

    def _drop(self, failed: str) -> None:
        for job in [job for job in self.left if failed in job.after]:
            if job in self.left:  # not one that went with another that it needs too
                self.left.remove(job)
                self._drop(job.name)

    def said(self, models: Path) -> str:
        """What is made, what runs, and how long the rest may take."""
        running = [state_of(models / job.name) if job.variant else job.name for job in self.running.values()]
        hours = self.progress.hours_left(time.monotonic())
        rest = "" if hours is None else f"; about {hours:.1f} h of training left"
        made = f"{self.progress.n_made} of {len(self.progress.folders)} models"
        return f"{made}; now {' | '.join(running) or 'nothing'}{rest}"
