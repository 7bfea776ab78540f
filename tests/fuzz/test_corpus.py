"""What fuzzing found and what reaches the most of each parser is tried again; see run.py, which needs atheris."""

from __future__ import annotations

import faulthandler
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import run, seeds
from .targets import TARGETS, try_input

CORPUS = Path(__file__).parent / "corpus"
PATIENCE_S = 60
"""Far more than any input takes; one that hangs ends the tests with a trace of where it does."""


@pytest.fixture(autouse=True)
def _measured() -> Iterator[None]:
    faulthandler.dump_traceback_later(PATIENCE_S, exit=True)
    tracemalloc.start()
    yield
    tracemalloc.stop()
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("name", TARGETS)
def test_every_kept_input_is_taken_or_refused_and_takes_little_memory(name: str) -> None:
    kept = sorted((CORPUS / name).iterdir())
    assert kept
    for file in kept:
        try:
            try_input(TARGETS[name], file.read_bytes())
        except Exception as error:
            error.add_note(f"see: python tests/fuzz/run.py {name} {file}")
            raise


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_those_of_the_corpus_and_valid(name: str) -> None:
    for number, seed in enumerate(seeds.SEEDS[name]()):
        assert (CORPUS / name / f"seed-{number}").read_bytes() == seed, "run python tests/fuzz/seeds.py"
        TARGETS[name].run(seed)


def test_the_corpus_is_small_and_the_fuzzer_knows_every_target() -> None:
    assert sum(file.stat().st_size for file in CORPUS.rglob("*") if file.is_file()) < 500_000
    assert {folder.name for folder in CORPUS.iterdir()} == TARGETS.keys() == seeds.SEEDS.keys()
    assert run.names() == list(TARGETS)
