"""Tries the inputs of the corpus: fuzzing's findings, and inputs that cover each parser; see run.py."""

from __future__ import annotations

import contextlib
import faulthandler
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from sim.errors import SimError

from . import run, seeds
from .targets import TARGETS, forget_peak, try_input

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom warns about damaged files

CORPUS = Path(__file__).parent / "corpus"
PATIENCE_S = 60
"""Time limit per test, far more than any input takes; after it the tests end with a traceback."""

FOUND = {
    ("checkpoint", "nested"): None,  # refused twice: its checksum fits
    ("events", "bad-utf8"): None,  # a letter is lost, not the table
    ("events", "no-number"): "Expected `int`",
    ("events", "other-folder"): "Expected `str` matching",
    ("journal", "promised-payload"): None,  # a torn last record, which takes no memory
    ("keys", "no-equals"): "expected a ZeroMQ key",
    ("npy", "header-deep"): "expected an array",
    ("npy", "header-open-brackets"): "expected an array",
    ("npy", "header-open-quote"): "expected an array",
    ("npz", "damaged-archive"): "expected an .npz",
    ("offer", "bad-utf8"): "expected an offer as JSON",
    ("png", "promised-chunk"): "expected 2730557509 bytes by its chunks",
    ("reply", "held-endless"): "Expected `int` >= 0",
    ("reply", "held-repeats"): "expected rising ranges",
    ("roi", "promised-voxels"): "expected 134218080 bytes",
    ("roi", "promised-voxels-gz"): "expected 134218080 bytes",
    ("run-json", "nested"): "does not describe a run",
    ("sealed", "bad-utf8"): "is not UTF-8",
    ("table", "other-folder"): "Expected `str` matching",
    ("weights", "inner-graph"): "found control flow",
}
"""Inputs that once failed, and the message that now refuses each; None means that it is accepted."""


@pytest.fixture(autouse=True)
def _measured() -> Iterator[None]:
    faulthandler.dump_traceback_later(PATIENCE_S, exit=True)
    tracemalloc.start()
    forget_peak()
    yield
    tracemalloc.stop()
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_is_accepted_or_refused_and_takes_little_memory(name: str) -> None:
    kept = sorted((CORPUS / name).iterdir())
    assert kept
    for file in kept:
        try:
            try_input(TARGETS[name], file.read_bytes())
        except Exception as error:
            error.add_note(f"see: python tests/fuzz/run.py {name} {file}")
            raise


@pytest.mark.parametrize(("target", "name"), FOUND)
def test_findings_stay_fixed(target: str, name: str) -> None:
    data = (CORPUS / target / f"found-{name}").read_bytes()
    says = FOUND[target, name]
    if says is None:
        TARGETS[target].run(data)
        return
    with pytest.raises(TARGETS[target].refuses, match=re.escape(says)):
        TARGETS[target].run(data)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_in_the_corpus_and_valid(name: str) -> None:
    """Not byte for byte, because other releases of the libraries may compress differently."""
    made = list(seeds.SEEDS[name]())
    kept = {file.name for file in (CORPUS / name).glob("seed-*")}
    assert kept == {f"seed-{number}" for number in range(len(made))}, "run python tests/fuzz/seeds.py"
    for seed in made:
        with contextlib.suppress(SimError):  # a reply that refuses the run
            TARGETS[name].run(seed)


def test_the_corpus_is_small_and_the_fuzzer_knows_every_target() -> None:
    assert sum(file.stat().st_size for file in CORPUS.rglob("*") if file.is_file()) < 500_000
    assert {folder.name for folder in CORPUS.iterdir()} == TARGETS.keys() == seeds.SEEDS.keys()
    assert run.names() == list(TARGETS)
    found = {(file.parent.name, file.name.removeprefix("found-")) for file in CORPUS.glob("*/found-*")}
    assert found == FOUND.keys()
