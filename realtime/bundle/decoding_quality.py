"""How well a bundle's decoder decodes, by the bundle's own evaluation, for people."""

from __future__ import annotations

from realtime.bundle.spec import Evaluated, Spec

NEAR_CHANCE = 1 / 3
"""Less than this share of the way from chance to all is near chance: below 66.7 % where chance is 50 %."""
_LIVE = "streaming"


def told_scores(spec: Spec) -> list[Evaluated]:
    """The lowest and the highest score, of frames decoded as in a live run if that was measured."""
    live = [each for each in spec.evaluation if each.decoded_from == _LIVE]
    ordered = sorted(live or spec.evaluation, key=lambda each: each.value)
    return ordered if len(ordered) < 2 else [ordered[0], ordered[-1]]


def near_chance(value: float, chance: float) -> bool:
    """Whether a share of identified pictures is hardly more than chance."""
    return value < chance + NEAR_CHANCE * (1 - chance)


def is_near_chance(spec: Spec) -> bool:
    """Whether the decoder is known to identify hardly more pictures than chance, by any metric.

    A short training gets colours and rough shapes right before objects, which another metric compares.
    """
    told = told_scores(spec)
    return bool(told) and all(near_chance(each.value, each.chance) for each in told)


def quality_in_words(spec: Spec) -> str:
    """What share of pictures the decoder identifies."""
    told = told_scores(spec)
    if not told:
        return "not known how well it decodes: the bundle holds no evaluation"
    near = "near chance: " if is_near_chance(spec) else ""
    shares = " to ".join(f"{100 * each.value:.0f} % ({each.metric})" for each in told)
    one = told[0]
    return (
        f"{near}identifies {shares} of pictures, chance {100 * one.chance:.0f} % "
        f"({one.decoded_from}, {one.n_trials} trials)"
    )
