"""Which runs a decoder never saw, in words, and the command that replays one. Does not import torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from itertools import groupby

from nsd import RunKey


def held_out_in_words(runs: Iterable[tuple[int, int, int]]) -> str:
    """Held-out runs of a subject, as ``session 1: run 10; session 2: runs 3, 7``.

    :param runs: subject, session and run of each; none where images are held out instead
    """
    sessions = []
    for session, keys in groupby(sorted(RunKey(*run) for run in runs), key=lambda key: key.session):
        numbers = [str(key.run) for key in keys]
        sessions.append(f"session {session}: run{'s' * (len(numbers) > 1)} {', '.join(numbers)}")
    return "; ".join(sessions) or "no whole run, but the images that every subject saw"


def replay_command(run: tuple[int, int, int], root: object) -> str:
    """The command that replays a run into a runtime that serves.

    :param root: folder of the data set
    """
    subject, session, number = map(str, run)
    words = ["python", "-m", "sim", "replay", "--nsd", str(root)]
    return shlex.join([*words, "--subject", subject, "--session", session, "--run", number])
