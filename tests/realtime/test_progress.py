"""Progress in words, in virtual time."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from realtime.progress import PERIOD_S, Progress


def test_it_says_how_much_is_done_and_how_long_the_rest_takes() -> None:
    progress = Progress(225, "volumes")
    said = [progress.line(n, n * 4 / 3) for n in range(226)]
    lines = [line for line in said if line]
    assert lines[0] == "12 of 225 volumes, 5 min left"
    assert all(re.fullmatch(r"\d+ of 225 volumes, \d+ (s|min) left", line) for line in lines)
    assert 10 <= len(lines) <= 20
    assert said[-1] == "", "the end is told by who does the work"


def test_what_was_there_at_the_beginning_does_not_count_for_the_pace() -> None:
    progress = Progress(200, "volumes")
    assert progress.line(100, 0.0) == ""
    assert progress.line(150, 50.0) == "150 of 200 volumes, 50 s left"


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 100)), max_size=60), st.integers(1, 1000))
def test_lines_are_few_whatever_comes(steps: list[tuple[int, float]], total: int) -> None:
    progress, done, now_s, told_s = Progress(total, "frames"), 0, 0.0, []
    for more, after_s in steps:
        done, now_s = min(total, done + more), now_s + after_s
        if progress.line(done, now_s):
            told_s.append(now_s)
    assert len(told_s) <= 20
    assert all(later - before >= PERIOD_S for before, later in zip(told_s, told_s[1:], strict=False))
