"""Rules of health for agents in environments: what their values do, their episodes and their return."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from statistics import fmean, median

from align.runs.readings import WINDOW, Finding, Readings, Rule, best_stretch, wander

EXPLODED = 10.0  # times the error of values of the first steps
SWING = 1.0  # times their size; errors of agents that learn change by a tenth to a half of it
ALIKE = 50  # steps over which no episode differs from another
KEPT = 0.5  # of what the return had gained


def _diverging_values(readings: Readings) -> Iterable[Finding]:
    start, errors, returns = _errors(readings.first), _errors(readings.recent), readings.recent("episode/return")
    if len(start) < WINDOW // 2 or len(errors) < 2 * WINDOW or len(returns) < 2 * WINDOW:
        return
    then, now = slice(-WINDOW - 5, -WINDOW), slice(-5, None)
    before, after = median(errors[then]), median(errors[now])
    earned, earns = median(returns[then]), median(returns[now])
    # Errors have the unit of the returns: where those rise, errors rise too, and once found they grow no further.
    if min(errors[now]) <= EXPLODED * median(start) or after <= 2 * before or earns > earned:
        return
    yield Finding(
        "values diverge",
        f"The error of the values grew from {median(start):.3g} (first {WINDOW} steps) to {after:.3g} (step "
        f"{readings.step}), more than twofold within the last {WINDOW}, while the return did not rise "
        f"({earned:.4g}, now {earns:.4g}): they chase themselves.",
        "Update the target network less often (target.every) or more slowly (target.rate), lower learning_rate or "
        "gamma, and see whether a step that terminated still bootstraps.",
        readings.step,
    )


def _swinging_values(readings: Readings) -> Iterable[Finding]:
    errors, returns = _errors(readings.recent)[-2 * WINDOW :], readings.last("episode/return", 2 * WINDOW)
    if len(errors) < 2 * WINDOW or not returns:
        return
    swing, size = median(abs(after - before) for before, after in pairwise(errors)), median(errors)
    if swing <= SWING * size or fmean(returns[WINDOW:]) > fmean(returns[:WINDOW]):
        return
    yield Finding(
        "errors of values swing",
        f"From one step to the next the error of the values changed by {swing:.3g}, where its size is {size:.3g} "
        f"(medians of the last {2 * WINDOW} steps, step {readings.step}), and the return did not rise: "
        "each update undoes the one before.",
        "Lower learning_rate, learn from larger batches, or let the target network follow in small steps "
        "(target.rate below 1 with target.every 1).",
        readings.step,
    )


def _episodes_alike(readings: Readings) -> Iterable[Finding]:
    lengths, returns = readings.last("episode/length", ALIKE), readings.last("episode/return", ALIKE)
    if not lengths or not returns or len({*lengths}) > 1 or len({*returns}) > 1:
        return
    counts = readings.recent("episode/count", ALIKE)
    if (counts and counts[-1] - counts[0] < 100) or returns[-1] > fmean(readings.first("episode/return")):
        return  # too few to say; or it has learned to do always the same, which is what pays
    yield Finding(
        "episodes all alike",
        f"Every episode had {lengths[-1]:g} steps and a return of {returns[-1]:g} over the last {ALIKE} steps of the "
        f"run (step {readings.step}): there is nothing to prefer.",
        "If the length is the environment's limit, the agent never gets to what is rewarded: explore more "
        "(exploration.end, entropy_coef) or shape the reward; if not, it does one thing everywhere: see its actions.",
        readings.step,
    )


def _return_collapse(readings: Readings) -> Iterable[Finding]:
    returns, start = readings.recent("episode/return"), readings.first("episode/return")
    if len(returns) < 2 * WINDOW:
        return
    at, now = best_stretch(returns, 10), returns[-10:]
    begun, best = fmean(start[:5]), fmean(returns[at : at + 10])
    gained = best - begun
    # A mean over the latest episodes wanders, at worst as a sum of its changes does: what was learned lies far beyond.
    wanders = wander(returns) * math.sqrt(len(returns) - 1)
    learned = gained > 2 * wanders and gained > 0.25 * max(abs(best), abs(begun))
    if learned and max(now) < begun + KEPT * gained:
        yield Finding(
            "return collapse",
            f"The return rose from {begun:.4g} to {best:.4g} (best mean of 10 steps) and fell to {fmean(now):.4g} by "
            f"step {readings.step}: more than half of what was gained is lost.",
            "Lower learning_rate, or let it fall over the run (anneal, final_learning_rate); with a replay memory "
            "raise its capacity, without one lower clip or epochs. Go on from the checkpoint of the best step.",
            readings.step,
        )


def _errors(values: Callable[[str], list[float]]) -> list[float]:
    """The errors of values, in the unit of the returns."""
    return values("value/td_error") or [math.sqrt(2 * abs(loss)) for loss in values("loss/value")]


RULES: list[Rule] = [_diverging_values, _swinging_values, _episodes_alike, _return_collapse]
