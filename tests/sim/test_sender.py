from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime import wire
from sim.errors import SimError
from sim.sender import MAX_IN_FLIGHT, Pacer, Reconnect, RefusedError, Sender, State

from .runtime import ContractRuntime

TR_S = 4 / 3
RUN_ID = "sub-01_run-01"
Row4 = tuple[float, float, float, float]
ROWS: tuple[Row4, Row4, Row4, Row4] = ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))


def run_start(n_volumes: int) -> wire.RunStart:
    return wire.RunStart(
        run_id=RUN_ID, subject=1, tr_s=TR_S, n_volumes=n_volumes, shape=(1, 1, 1), affine=ROWS, dtype="int16"
    )


def markers(n_volumes: int) -> list[wire.Marker]:
    return [wire.Marker(run_id=RUN_ID, onset_volume=k, name=f"m{k}") for k in range(1, n_volumes, 3)]


def volume_indices(actions: Sequence[object]) -> list[int]:
    return [action.index for action in actions if isinstance(action, wire.Volume)]


def accepted(*held: tuple[int, int]) -> wire.RunAccepted:
    return wire.RunAccepted(run_id=RUN_ID, held=list(held))


@given(
    speed=st.floats(0.1, 500),
    begun_s=st.floats(0, 1e6),
    first=st.integers(0, 224),
    index=st.integers(0, 224),
)
def test_a_volume_is_acquired_at_its_deadline_and_not_before(
    speed: float, begun_s: float, first: int, index: int
) -> None:
    pacer = Pacer(n_volumes=225, tr_s=TR_S, speed=speed)
    assert pacer.acquired(begun_s) == 0
    pacer.begin(begun_s, first)
    index = max(index, first)
    deadline_s = begun_s + (index - first + 1) * (TR_S / speed)
    assert pacer.acquired(deadline_s) == index + 1
    assert pacer.acquired(math.nextafter(deadline_s, 0)) == index
    assert pacer.next_s(math.nextafter(deadline_s, 0)) == deadline_s
    assert pacer.acquired(begun_s + 1e9) == 225
    assert pacer.next_s(begun_s + 1e9) == math.inf


def test_a_run_without_trouble() -> None:
    sender = Sender(run_start(3), markers(3), speed=1.0)
    assert sender.poll(100.0) == [run_start(3)]
    assert sender.poll(100.5) == []
    sender.on_reply(accepted(), 101.0)
    assert sender.poll(101.0) == []
    assert sender.wake_s(101.0) == pytest.approx(101.0 + TR_S)
    assert sender.poll(101.0 + TR_S) == [wire.Volume(run_id=RUN_ID, index=0, acquired_s=TR_S)]
    sender.on_reply(wire.Ack(run_id=RUN_ID, index=0), 102.5)
    now_s = 101.0 + 3 * TR_S
    assert sender.poll(now_s) == [
        wire.Marker(run_id=RUN_ID, onset_volume=1, name="m1"),  # before the volume of its onset
        wire.Volume(run_id=RUN_ID, index=1, acquired_s=2 * TR_S),
        wire.Volume(run_id=RUN_ID, index=2, acquired_s=3 * TR_S),
    ]
    for index in (1, 2):
        sender.on_reply(wire.Ack(run_id=RUN_ID, index=index), now_s)
    assert sender.poll(now_s) == markers(3)  # replies come in order: the marker got lost on the way
    sender.on_reply(wire.MarkerAck(run_id=RUN_ID, onset_volume=1), now_s)
    assert sender.poll(now_s) == [wire.RunEnd(run_id=RUN_ID, reason="complete")]
    sender.on_reply(wire.RunClosed(run_id=RUN_ID), now_s)
    assert sender.is_finished


def test_a_restarted_scanner_continues_at_the_first_missing_volume() -> None:
    sender = Sender(run_start(225), [], speed=1.0)
    sender.poll(0.0)
    sender.on_reply(accepted((0, 100)), 0.0)
    assert sender.poll(0.0) == []
    assert volume_indices(sender.poll(TR_S)) == [100]
    assert sender.wake_s(TR_S) <= 2 * TR_S


def test_holes_are_filled_at_once() -> None:
    sender = Sender(run_start(225), [], speed=1.0)
    sender.poll(0.0)
    sender.on_reply(accepted((0, 5), (7, 9)), 0.0)
    assert volume_indices(sender.poll(0.0)) == [5, 6]


def test_a_silent_runtime_is_offered_the_run_again_over_a_new_connection() -> None:
    sender = Sender(run_start(9), [], speed=1.0, resend_s=1.0)
    sender.poll(0.0)
    sender.on_reply(accepted(), 0.0)
    assert volume_indices(sender.poll(TR_S)) == [0]
    assert sender.poll(TR_S + 0.9) == []
    assert not sender.is_unanswered
    assert sender.poll(TR_S + 1.0) == [Reconnect(), run_start(9)]
    assert sender.is_unanswered
    assert sender.poll(4 * TR_S) == [Reconnect(), run_start(9)]  # time goes on, volumes wait
    sender.on_reply(accepted(), 4 * TR_S)
    assert not sender.is_unanswered
    assert volume_indices(sender.poll(4 * TR_S)) == [0, 1, 2, 3]


def test_a_restarted_runtime_that_asks_for_the_start_gets_it() -> None:
    sender = Sender(run_start(9), [], speed=1.0)
    sender.poll(0.0)
    sender.on_reply(accepted(), 0.0)
    sender.poll(TR_S)
    sender.on_reply(wire.Refused(run_id=RUN_ID, code="no-run", message="send its run start"), TR_S)
    assert sender.poll(TR_S) == [run_start(9)]


def test_a_volume_that_a_runtime_in_trouble_refuses_is_offered_again() -> None:
    sender = Sender(run_start(9), [], speed=1.0)
    sender.poll(0.0)
    sender.on_reply(accepted(), 0.0)
    assert volume_indices(sender.poll(TR_S)) == [0]
    refused = wire.Refused(run_id=RUN_ID, code="runtime", message="No space left on device", index=0)
    sender.on_reply(refused, TR_S)
    assert sender.poll(TR_S + 1.0) == [Reconnect(), run_start(9)]
    sender.on_reply(accepted(), TR_S + 1.0)
    assert volume_indices(sender.poll(TR_S + 1.0)) == [0]


def test_volumes_in_flight_are_limited() -> None:
    sender = Sender(run_start(225), [], speed=1000.0)
    sender.poll(0.0)
    sender.on_reply(accepted(), 0.0)
    assert volume_indices(sender.poll(0.5)) == list(range(MAX_IN_FLIGHT))
    sender.on_reply(wire.Ack(run_id=RUN_ID, index=0), 0.5)
    assert volume_indices(sender.poll(0.5)) == [MAX_IN_FLIGHT]


def test_a_volume_that_got_lost_is_sent_again_as_soon_as_a_later_one_is_acknowledged() -> None:
    sender = Sender(run_start(9), [], speed=1.0)
    sender.poll(0.0)
    sender.on_reply(accepted(), 0.0)
    assert volume_indices(sender.poll(4 * TR_S)) == [0, 1, 2, 3]
    sender.on_reply(wire.Ack(run_id=RUN_ID, index=0), 4 * TR_S)
    assert volume_indices(sender.poll(4 * TR_S)) == []
    sender.on_reply(wire.Ack(run_id=RUN_ID, index=3), 4 * TR_S)
    assert volume_indices(sender.poll(4 * TR_S)) == [1, 2]


@pytest.mark.parametrize("code", ["header", "checksum"])
def test_a_volume_that_came_damaged_is_sent_again(code: str) -> None:
    sender = Sender(run_start(9), [], speed=1.0)
    sender.poll(0.0)
    sender.on_reply(accepted(), 0.0)
    assert volume_indices(sender.poll(2 * TR_S)) == [0, 1]
    sender.on_reply(wire.Refused(run_id="", code=code, message="CRC-32", index=0), 2 * TR_S)
    assert volume_indices(sender.poll(2 * TR_S)) == [0]


def test_an_end_that_a_runtime_in_trouble_refuses_is_sent_again() -> None:
    sender = Sender(run_start(1), [], speed=1.0)
    sender.poll(0.0)
    sender.on_reply(accepted((0, 1)), 0.0)
    end = wire.RunEnd(run_id=RUN_ID, reason="complete")
    assert sender.poll(0.0) == [end]
    sender.on_reply(wire.Refused(run_id=RUN_ID, code="runtime", message="No space left on device"), 0.0)
    assert sender.poll(1.0) == [Reconnect(), end]


def test_late_volumes_are_sent_late_and_dropped_ones_are_not_waited_for() -> None:
    sender = Sender(run_start(4), [], speed=2.0, late_tr={0: 2.5, 2: math.inf})
    sender.poll(0.0)
    sender.on_reply(accepted(), 0.0)
    period_s, now_s, sent = TR_S / 2, 0.0, []
    while not sender.is_finished:
        for action in sender.poll(now_s):
            if isinstance(action, wire.Volume):
                sent.append((action.index, now_s / period_s))
                sender.on_reply(wire.Ack(run_id=RUN_ID, index=action.index), now_s)
            elif isinstance(action, wire.RunEnd):
                sender.on_reply(wire.RunClosed(run_id=RUN_ID), now_s)
        now_s = min(sender.wake_s(now_s), now_s + 100)
    assert [index for index, _ in sent] == [1, 0, 3]
    assert [at_tr for _, at_tr in sent] == pytest.approx([2, 3.5, 4])


@pytest.mark.parametrize("state", [State.OPENING, State.SENDING])
def test_a_permanent_refusal_raises_with_the_runtimes_message(state: State) -> None:
    sender = Sender(run_start(9), [], speed=1.0)
    sender.poll(0.0)
    if state is State.SENDING:
        sender.on_reply(accepted(), 0.0)
    with pytest.raises(RefusedError, match="the runtime refused: expected subject 1"):
        sender.on_reply(wire.Refused(run_id=RUN_ID, code="bundle", message="expected subject 1"), 1.0)


def test_replies_of_other_runs_are_ignored() -> None:
    sender = Sender(run_start(9), [], speed=1.0)
    sender.poll(0.0)
    sender.on_reply(wire.RunAccepted(run_id="other", held=[(0, 9)]), 0.0)
    sender.on_reply(wire.Refused(run_id="other", code="busy", message="no"), 0.0)
    assert sender.state is State.OPENING


def test_an_interrupt_ends_the_run_as_aborted() -> None:
    sender = Sender(run_start(9), markers(9), speed=1.0)
    sender.poll(0.0)
    sender.on_reply(accepted(), 0.0)
    sender.poll(3 * TR_S)
    sender.abort()
    assert sender.poll(3 * TR_S) == [wire.RunEnd(run_id=RUN_ID, reason="aborted")]
    sender.on_reply(wire.RunClosed(run_id=RUN_ID), 5.0)
    assert sender.is_finished


def test_an_interrupt_before_the_run_is_accepted_finishes_at_once() -> None:
    sender = Sender(run_start(9), [], speed=1.0)
    sender.poll(0.0)
    sender.abort()
    assert sender.is_finished


def test_a_lost_run_closed_reply_starts_no_new_take() -> None:
    sender = Sender(run_start(1), [], speed=1.0, resend_s=1.0)
    sender.poll(0.0)
    sender.on_reply(accepted((0, 1)), 0.0)
    end = wire.RunEnd(run_id=RUN_ID, reason="complete")
    assert sender.poll(0.0) == [end]
    assert sender.poll(1.0) == [Reconnect(), end]
    # A runtime restarted meanwhile may not know the run: it is asked, and what it opens anew is left empty.
    sender.on_reply(wire.Refused(run_id=RUN_ID, code="no-run", message="send its run start"), 1.0)
    assert sender.poll(1.0) == [run_start(1)]
    sender.on_reply(accepted(), 1.0)
    assert sender.is_finished


@pytest.mark.parametrize("speed", [0.0, -1.0, math.inf, math.nan])
def test_invalid_speeds_are_refused(speed: float) -> None:
    with pytest.raises(SimError, match="speed: expected a number above 0"):
        Sender(run_start(9), [], speed=speed)


EVENTS = st.sampled_from(["pass", "pass", "pass", "lose", "lose reply", "restart runtime", "restart scanner"])


@given(
    events=st.lists(EVENTS, max_size=80),
    n_volumes=st.integers(1, 30),
    speed=st.sampled_from([1.0, 8.0, 200.0]),
)
@settings(deadline=None, max_examples=200)
def test_every_volume_arrives_despite_losses_and_kills(
    events: list[str], n_volumes: int, speed: float
) -> None:
    """Messages and replies get lost and both sides are killed; once faults stop, the run must finish."""
    start, shown = run_start(n_volumes), markers(n_volumes)
    runtime = ContractRuntime()
    sender = Sender(start, shown, speed=speed)
    trouble = iter(events)
    now_s = 0.0
    for _ in range(20_000):
        for action in sender.poll(now_s):
            if isinstance(action, Reconnect):
                continue
            event = next(trouble, "pass")
            if event == "restart runtime":
                runtime.restart()
            if event == "restart scanner" and not runtime.ends:
                sender = Sender(start, shown, speed=speed)
                break
            if event == "lose":
                continue
            reply = runtime.handle(action, repr(action).encode())
            if event != "lose reply":
                sender.on_reply(reply, now_s)
        if sender.is_finished:
            break
        now_s = min(sender.wake_s(now_s), now_s + 1.0)
    assert sender.is_finished
    assert sorted(runtime.journal) == list(range(n_volumes))
    assert sorted(runtime.markers) == [marker.onset_volume for marker in shown]
    assert runtime.ends == ["complete"]
    assert runtime.takes == 1


@given(outages=st.lists(st.tuples(st.floats(0, 250), st.floats(0, 20)), max_size=4))
@settings(deadline=None, max_examples=30)
def test_the_scan_continues_while_the_runtime_is_down(outages: list[tuple[float, float]]) -> None:
    """No volume is sent before it is acquired; an outage does not delay the acquisition."""
    sender = Sender(run_start(225), [], speed=1.0)
    runtime = ContractRuntime()
    now_s, begun_s = 0.0, math.nan
    sent_s: dict[int, float] = {}
    while not sender.is_finished:
        is_away = any(first <= now_s < first + length for first, length in outages)
        for action in sender.poll(now_s):
            if isinstance(action, Reconnect) or is_away:
                continue
            if isinstance(action, wire.Volume):
                sent_s.setdefault(action.index, now_s)
            sender.on_reply(runtime.handle(action, b""), now_s)
            if math.isnan(begun_s) and sender.state is State.SENDING:
                begun_s = now_s
        now_s = max(min(sender.wake_s(now_s), now_s + 0.25), math.nextafter(now_s, math.inf))
    assert sorted(sent_s) == list(range(225))
    calm_s = max((first + length + 2.5 for first, length in outages), default=0.0)  # one silence, one answer
    for index, at_s in sent_s.items():
        deadline_s = begun_s + (index + 1) * TR_S
        assert at_s >= deadline_s
        if deadline_s > calm_s:
            assert at_s == deadline_s


def test_a_run_of_another_owner_is_given_up() -> None:
    """But not at once: the other may be this scanner's own process, which was killed a moment ago."""
    refused = wire.Refused(run_id=RUN_ID, code="not-owner", message="it is another scanner's run")
    sender = Sender(run_start(9), [], speed=1.0)
    for now_s in (0.0, 5 * TR_S):
        assert run_start(9) in [each for each in sender.poll(now_s) if isinstance(each, wire.RunStart)]
        sender.on_reply(refused, now_s)
        assert sender.trouble == refused.message
    sender.poll(7 * TR_S)
    with pytest.raises(RefusedError, match="another scanner's"):
        sender.on_reply(refused, 7 * TR_S)
