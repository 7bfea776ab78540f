"""Coverage-guided fuzzing of every parser that takes bytes from outside.

    pip install '.[fuzz]'
    python tests/fuzz/run.py all --seconds 40      every target, one after the other
    python tests/fuzz/run.py png --seconds 600     one target
    python tests/fuzz/run.py png FILE              one input alone, to debug it

atheris (libFuzzer for Python) mutates the inputs in tests/fuzz/corpus/TARGET and keeps those that reach new
code in a separate folder. At the end the shortest of them, a limited number of bytes, are added to the
corpus. An input that raises an unexpected exception, takes more than 10 s or too much memory stops the target
and is written to tests/fuzz/corpus/TARGET/found-SHA1; the command then ends with code 1. Fix the parser, give
the file a descriptive name, and list it in tests/fuzz/test_corpus.py, which tries every input of the corpus.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
TIMEOUT_S = 10
RSS_LIMIT_MB = 2_048
KEPT_BYTES = 16_000
"""Size limit of each target's corpus, besides its seeds and findings."""
LIBRARIES = {
    "nifti": ["nibabel.nifti1", "nibabel.spatialimages", "nibabel.wrapstruct"],
    "roi": ["nibabel.nifti1", "nibabel.spatialimages", "nibabel.wrapstruct", "nibabel.arrayproxy"],
    "dicom": ["pydicom.filereader", "pydicom.dataset", "pydicom.values", "nibabel.nicom"],
    "offer": ["aiortc.sdp"],
    "npz": ["zipfile"],
    "keys": ["zmq.auth"],
}
"""Python libraries of a target that are instrumented besides our own code."""


def main() -> int:
    """Fuzz targets, or try one file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", metavar="TARGET", help=f"all, or one of: {', '.join(names())}")
    parser.add_argument("file", nargs="?", type=Path, help="an input to try, instead of fuzzing")
    parser.add_argument("--seconds", type=int, default=60, help="how long each target is fuzzed (default 60)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments, for_libfuzzer = parser.parse_known_args()
    if arguments.target not in ("all", *names()):
        parser.error(f"expected all or one of {', '.join(names())}, got {arguments.target!r}")
    if arguments.inside:
        fuzz_here(arguments.target, for_libfuzzer)
    if arguments.file:
        return try_file(arguments.target, arguments.file)
    targets = names() if arguments.target == "all" else [arguments.target]
    return max([fuzz(target, arguments.seconds) for target in targets])


def names() -> list[str]:
    """Return all targets without importing the fuzzed code, which must be instrumented first."""
    text = Path(__file__).with_name("targets.py").read_text()
    return re.findall(r'^    "([a-z-]+)": Target', text, flags=re.MULTILINE)


def try_file(target: str, file: Path) -> int:
    """Run a target on one input; exceptions propagate."""
    import tracemalloc

    from targets import TARGETS, try_input  # type: ignore[import-not-found]  # beside this script

    tracemalloc.start()
    try_input(TARGETS[target], file.read_bytes())
    print(f"{target} takes or refuses {file} as it should")
    return 0


def fuzz(target: str, seconds: int) -> int:
    """Fuzz in a separate process, then keep inputs that reached new code; return 1 after a finding."""
    corpus = CORPUS / target
    corpus.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        grown, found = Path(scratch, "grown"), Path(scratch, "found")
        grown.mkdir()
        found.mkdir()
        done = run_inside(
            target, f"-max_total_time={seconds}", f"-artifact_prefix={found}/", str(grown), str(corpus)
        )
        for file in found.iterdir():
            data = file.read_bytes()
            kept = corpus / f"found-{hashlib.sha1(data).hexdigest()[:12]}"
            kept.write_bytes(data)
            print(f"{target}: FOUND {kept}\n{done.stdout[-3_000:]}{done.stderr[-1_000:]}", flush=True)
        print(f"{target}: {figures(done.stderr)}", flush=True)
        if done.returncode != 0 and not any(found.iterdir()):
            print(
                f"{target}: ended with code {done.returncode}\n{done.stdout[-3_000:]}{done.stderr[-1_000:]}",
                flush=True,
            )
        keep(grown, corpus)
    return 0 if done.returncode == 0 else 1


def figures(log: str) -> str:
    """Return executions and coverage from libFuzzer's log."""
    last = (re.findall(r"^#.*cov: .*$", log, flags=re.MULTILINE) or ["no execution"])[-1]
    total = re.findall(r"^Done.*$", log, flags=re.MULTILINE)
    return "; ".join([re.sub(r"\s+", " ", last), *total])


def keep(grown: Path, corpus: Path) -> None:
    """Add inputs that reached new code to the corpus, shortest first, up to the size limit."""
    room = KEPT_BYTES - sum(file.stat().st_size for file in corpus.glob("kept-*"))
    for file in sorted(grown.iterdir(), key=lambda file: (file.stat().st_size, file.name)):
        if (room := room - file.stat().st_size) < 0:
            return
        data = file.read_bytes()
        (corpus / f"kept-{hashlib.sha1(data).hexdigest()[:12]}").write_bytes(data)


def run_inside(target: str, *for_libfuzzer: str) -> subprocess.CompletedProcess[str]:
    """Return the command that runs this file with libFuzzer's options and folders."""
    command = [sys.executable, __file__, target, "--inside", *for_libfuzzer]
    shown = dict.fromkeys(part for part in for_libfuzzer if not part.startswith("-"))
    command = [part for part in command if part not in shown] + ["--", *shown]
    return subprocess.run(command, capture_output=True, text=True, errors="replace")


def fuzz_here(target: str, for_libfuzzer: list[str]) -> None:
    """Fuzz; never returns, because libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["realtime", "sim.sender", *LIBRARIES.get(target, [])]):
        from targets import TARGETS, try_input
    import logging
    import tracemalloc
    import warnings

    from mutate import of_target  # type: ignore[import-not-found]  # beside this script

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    tracemalloc.start()
    chosen = TARGETS[target]
    options = [f"-timeout={TIMEOUT_S}", f"-rss_limit_mb={RSS_LIMIT_MB}", f"-max_len={chosen.max_bytes}"]
    atheris.Setup(
        [sys.argv[0], *options, *for_libfuzzer],
        lambda data: try_input(chosen, bytes(data)),
        custom_mutator=of_target(target, lambda data, longest: atheris.Mutate(data, longest)),
    )
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
