"""Volumes in any order come out in order, each at most once, and all are accounted for. Virtual time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from realtime.runs.reorder import Reorder, Turn

N_VOLUMES = 12
PATIENCE_S = 2.0
MAX_VOLUMES = 4
MAX_BYTES = 30
VOLUME_BYTES = 9

indices = st.integers(0, N_VOLUMES - 1)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), indices),
        st.tuples(st.just("wait"), st.floats(0, 1.5 * PATIENCE_S)),
        st.tuples(st.just("back"), st.none()),
    ),
    max_size=60,
)


def test_a_gap_is_given_up_when_its_time_is_over_and_not_before() -> None:
    reorder: Reorder[str] = Reorder(6, patience_s=2.0)
    assert reorder.push(0, "a", 0.0, 1) == [Turn(0, "a")]
    assert reorder.push(2, "c", 1.0, 1) == []
    assert reorder.push(5, "f", 1.5, 1) == []
    assert reorder.expire(2.9) == []
    assert reorder.expire(3.0) == [Turn(1, None), Turn(2, "c")]
    assert reorder.push(1, "too late", 3.1, 1) == []
    assert reorder.expire(3.5) == [Turn(3, None), Turn(4, None), Turn(5, "f")]
    assert reorder.close() == []


@given(order=st.permutations(range(8)))
def test_any_order_in_time_comes_out_in_order(order: list[int]) -> None:
    reorder: Reorder[int] = Reorder(8, patience_s=1.0)
    turns = [turn for index in order for turn in reorder.push(index, index, 0.0, 1)]
    assert turns == [Turn(index, index) for index in range(8)]


def test_a_scanner_that_was_away_gets_its_time_again() -> None:
    reorder: Reorder[str] = Reorder(3, patience_s=2.0)
    reorder.push(1, "b", 0.0, 1)
    reorder.restart_clock(10.0)
    assert reorder.expire(11.9) == []
    assert reorder.push(0, "a", 11.9, 1) == [Turn(0, "a"), Turn(1, "b")]


@pytest.mark.parametrize(("limit", "n_bytes"), [({"max_volumes": 2}, 1), ({"max_bytes": 20}, 10)])
def test_a_gap_is_given_up_at_once_when_too_much_waits(limit: dict[str, Any], n_bytes: int) -> None:
    reorder: Reorder[int] = Reorder(9, patience_s=1e9, **limit)
    assert reorder.push(3, 3, 0.0, n_bytes) == reorder.push(4, 4, 0.0, n_bytes) == []
    assert reorder.push(6, 6, 0.0, n_bytes) == [
        *(Turn(gap, None) for gap in range(3)),
        Turn(3, 3),
        Turn(4, 4),
    ]
    assert reorder.push(5, 5, 0.0, n_bytes) == [Turn(5, 5), Turn(6, 6)]


@dataclass
class Played:
    """A run of steps through a buffer, checked after each."""

    given_up: frozenset[int]
    now_s: float = 0.0
    turns: list[Turn[int]] = field(default_factory=list)
    waiting_since_s: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reorder: Reorder[int] = Reorder(
            N_VOLUMES, PATIENCE_S, self.given_up, max_volumes=MAX_VOLUMES, max_bytes=MAX_BYTES
        )

    def take(self, turns: list[Turn[int]]) -> None:
        self.turns += turns
        for index in [index for index in self.waiting_since_s if index < self.reorder.next_index]:
            del self.waiting_since_s[index]
        assert len(self.waiting_since_s) <= MAX_VOLUMES
        assert len(self.waiting_since_s) * VOLUME_BYTES <= MAX_BYTES

    def push(self, index: int) -> None:
        is_over = index < self.reorder.next_index
        would_wait = len(self.waiting_since_s.keys() | {index})
        self.waiting_since_s.setdefault(index, self.now_s)
        if self.is_in_order:  # those behind it may wait as long again
            self.waiting_since_s = dict.fromkeys(self.waiting_since_s, self.now_s)
        turns = self.reorder.push(index, index, self.now_s, VOLUME_BYTES)
        if is_over:
            assert turns == []
        if any(turn.item is None for turn in turns):
            assert would_wait > MAX_VOLUMES or would_wait * VOLUME_BYTES > MAX_BYTES
        self.take(turns)

    @property
    def is_in_order(self) -> bool:
        """Whether it is a waiting volume's turn without giving up another."""
        index = self.reorder.next_index
        while index in self.given_up:
            index += 1
        return index in self.waiting_since_s

    @property
    def patience_left_s(self) -> float:
        """For how long the volume behind the first gap may still wait."""
        since_s = [self.waiting_since_s[index] for index in sorted(self.waiting_since_s)[:1]]
        return PATIENCE_S - self.now_s + min(since_s, default=math.inf)

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        is_patient = self.patience_left_s > 1e-9
        turns = self.reorder.expire(self.now_s)
        if is_patient:
            assert turns == []
        self.take(turns)
        assert self.patience_left_s > -1e-9

    def back(self, _: None) -> None:
        self.reorder.restart_clock(self.now_s)
        self.waiting_since_s = dict.fromkeys(self.waiting_since_s, self.now_s)


@example(steps=[("push", 2), ("wait", 1.0), ("push", 0), ("wait", 1.5)], given_up=frozenset())
@given(steps=steps, given_up=st.frozensets(indices, max_size=3))
def test_whatever_happens_every_volume_has_one_turn_and_in_order(
    steps: list[tuple[str, object]], given_up: frozenset[int]
) -> None:
    """Also with volumes that an earlier process gave up: those have none."""
    played = Played(given_up)
    for name, argument in steps:
        getattr(played, name)(argument)
    played.take(played.reorder.close())
    assert [turn.index for turn in played.turns] == [i for i in range(N_VOLUMES) if i not in given_up]
    pushed = {argument for name, argument in steps if name == "push"}
    assert all(turn.item in (None, turn.index) for turn in played.turns)
    assert {turn.item for turn in played.turns} - {None} <= pushed
