"""How well a bundle's decoder decodes, by the bundle's own evaluation, for people."""

from __future__ import annotations

from realtime.bundle.spec import Evaluated, Spec

NEAR_CHANCE = 1 / 3
"""Less than this share of the way from chance to all is near chance: below 66.7 % where chance is 50 %."""
_LIVE = "streaming"


def told_score(spec: Spec) -> Evaluated | None:
    """The score that stands for all: the lowest, of frames decoded as in a live run if that was measured."""
    live = [each for each in spec.evaluation if each.decoded_from == _LIVE]
    return min(live or spec.evaluation, key=lambda each: each.value, default=None)


def near_chance(value: float, chance: float) -> bool:
    """Whether a share of identified pictures is hardly more than chance."""
    return value < chance + NEAR_CHANCE * (1 - chance)


def is_near_chance(spec: Spec) -> bool:
    """Whether the decoder is known to identify hardly more pictures than chance."""
    told = told_score(spec)
    return told is not None and near_chance(told.value, told.chance)


def quality_in_words(spec: Spec) -> str:
    """What share of pictures the decoder identifies."""
    told = told_score(spec)
    if told is None:
        return "not known how well it decodes: the bundle holds no evaluation"
    near = "near chance: " if is_near_chance(spec) else ""
    shares = f"{100 * told.value:.0f} % of pictures, chance {100 * told.chance:.0f} %"
    return f"{near}identifies {shares} ({told.metric}, {told.decoded_from}, {told.n_trials} trials)"
