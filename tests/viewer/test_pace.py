from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from realtime.viewer.pace import Pace


@given(st.lists(st.tuples(st.floats(0, 5), st.sampled_from("abc")), max_size=60))
def test_no_address_has_more_than_its_burst_and_its_rate(asked: list[tuple[float, str]]) -> None:
    now_s = 0.0
    pace = Pace(4, 0.5, clock=lambda: now_s)
    granted: dict[str, list[float]] = {"a": [], "b": [], "c": []}
    for wait_s, address in asked:
        now_s += wait_s
        may = pace.take(address)
        mine = granted[address]
        if len(mine) < 4 or now_s - mine[-4] >= 4 / 0.5:
            assert may  # another address' haste is not this one's
        if may:
            mine.append(now_s)
            assert all(
                len(mine) - first <= 4 + 0.5 * (now_s - mine[first]) + 1e-6 for first in range(len(mine))
            )


def test_it_forgets_addresses() -> None:
    pace = Pace(1, clock=lambda: 0.0)
    assert all(pace.take(str(number)) for number in range(1_000))
    assert len(pace._left) < 300
