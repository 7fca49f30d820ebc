"""Rules of health for models that write completions: of groups, texts and rewards, and of what samples them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from statistics import fmean, median

from align.runs.readings import PATIENCE, WINDOW, Finding, Readings, Rule, best_stretch, reward_gain

MOST_GROUPS = 0.6
MOST_COMPLETIONS = 0.5
LARGE_KL = 1.0  # nats per token; a useful policy stays within a few tenths
LARGE_GAP = 0.05  # nats per token; 1e-5 in float32, about 0.01 between bfloat16 kernels
FAR_WEIGHT, LARGE_CUT = 0.5, 0.1
RISEN, LOST = 0.5, 0.25  # of the spread of the first rewards
EVALUATIONS = 3
MOST_REPEATED = 0.5  # of n-grams

_STATISTICS = {"mean", "std", "min", "max", "faults"}


def _silent_groups(readings: Readings) -> Iterable[Finding]:
    shares = readings.last("group/silent")
    if shares and fmean(shares) > MOST_GROUPS:
        yield Finding(
            "groups without signal",
            f"All answers to a prompt got the same reward in {fmean(shares):.0%} of groups ({readings.span}): "
            "these groups teach nothing.",
            "Too hard or solved: choose prompts of middling difficulty, or raise group_size, temperature or "
            "max_redraws; if the reward is at its best already, the run is done.",
            readings.step,
        )


def _truncation(readings: Readings) -> Iterable[Finding]:
    shares = readings.last("completion/truncated", 10)
    if shares and fmean(shares) > MOST_COMPLETIONS:
        yield Finding(
            "completions cut",
            f"{fmean(shares):.0%} of completions hit max_new_tokens over the last 10 steps (step {readings.step}).",
            "Raise max_new_tokens; if even short answers run on, the model does not end with its EOS token: check the "
            "chat template and the demonstrations.",
            readings.step,
        )


def _kl_blow_up(readings: Readings) -> Iterable[Finding]:
    values = readings.last("kl/reference", 5)
    if values and fmean(values) > LARGE_KL:
        yield Finding(
            "KL blow-up",
            f"The policy is {fmean(values):.2g} nats per token away from its reference (step {readings.step}): "
            "it may be leaving sensible language behind.",
            "Read the completions; raise kl_coef or lower learning_rate.",
            readings.step,
        )


def _sampler_gap(readings: Readings) -> Iterable[Finding]:
    values = readings.last("policy/sampler_gap", 3)
    if readings.recent("policy/importance_weight"):
        return  # they are known to differ, and what is learned is weighed
    if values and fmean(values) > LARGE_GAP:
        yield Finding(
            "sampler and trainer disagree",
            f"The sampler and the trainer disagree by {fmean(values):.2g} nats per token (step {readings.step}; "
            f"up to {LARGE_GAP} is rounding): the policy is trained on what another one said.",
            "Check that the sampler takes each new weight and uses the same temperature, template and precision; "
            "where that is so and the gap stays, weigh what is learned: --importance token-truncate.",
            readings.step,
        )


def _far_sampler(readings: Readings) -> Iterable[Finding]:
    weights, cut = readings.last("policy/importance_weight", 3), readings.last("policy/importance_cut", 3)
    # Where the sampler may draw all that the policy may, and no bound is met, the mean weight is 1.
    if weights and cut and (fmean(weights) < FAR_WEIGHT or fmean(cut) > LARGE_CUT):
        yield Finding(
            "sampler far from the policy",
            f"The importance weights are {fmean(weights):.2g} in the mean, and {fmean(cut):.0%} of tokens lie outside "
            f"their bounds (step {readings.step}): little of what is sampled is learned as the policy would have it.",
            "Raise top_p or top_k, take new weights to the sampler more often, or weigh tokens in place of sequences "
            "(--importance token-truncate).",
            readings.step,
        )


def _silent_parts(readings: Readings) -> Iterable[Finding]:
    names = [name for name in readings.latest if name.startswith("reward/") and name.split("/")[1] not in _STATISTICS]
    for name in names:
        values = readings.last(name)
        if values and not any(values) and not _is_penalty(name, readings):
            part = name.removeprefix("reward/")
            yield Finding(
                f"reward part never fires: {part}",
                f"The reward part {part!r} was 0 for every completion ({readings.span}).",
                "Read some completions: is it out of reach, or does it look for a form that the model never writes?",
                readings.step,
            )


def _is_penalty(name: str, readings: Readings) -> bool:
    """Whether a part is at its best at 0: it is called a penalty, or was below 0 and never above."""
    values = readings.first(name) + readings.recent(name)
    return "penalty" in name or min(values) < 0 == max(values)


def _flat_reward(readings: Readings) -> Iterable[Finding]:
    start, now = readings.first("reward/mean"), readings.last("reward/mean")
    if not now or readings.step < PATIENCE or not any(readings.first("reward/std")):
        return  # without any spread there is nothing to climb: that is the finding about groups
    if reward_gain(readings, WINDOW) < 0.05:
        yield Finding(
            "reward does not rise",
            f"The mean reward was {fmean(start):.3g} in the first {WINDOW} steps, {fmean(now):.3g} in {readings.span}.",
            "Raise learning_rate or group_size, and see whether enough groups have a signal "
            "(temperature, max_redraws).",
            readings.step,
        )


def _held_out_falls(readings: Readings) -> Iterable[Finding]:
    measured, rewards = readings.recent("eval/reward/mean"), readings.recent("reward/mean")
    start, spread = readings.first("reward/mean"), readings.first("reward/std")
    if len(measured) <= EVALUATIONS or len(rewards) < WINDOW or not spread or reward_gain(readings, WINDOW) < RISEN:
        return
    trained, now, fell = fmean(rewards[-WINDOW:]), fmean(measured[-EVALUATIONS:]), _fallen(measured, EVALUATIONS)
    # Evaluations scatter, the more the fewer prompts they have; from how far one lies off its neighbours, by how much.
    changes = [after - before for before, after in pairwise(measured)]
    scatter = 1.5 * median(abs(after - before) for before, after in pairwise(changes)) / math.sqrt(6)
    # What is lost in training as well is no riddle.
    if fell > max(LOST * fmean(spread), 4 * scatter) + _fallen(rewards, WINDOW):
        yield Finding(
            "held-out reward falls",
            f"The mean reward rose from {fmean(start):.3g} in the first {WINDOW} steps to {trained:.3g} in "
            f"{readings.span}, but on held-out data it fell from {now + fell:.3g} to {now:.3g} (means of the best and "
            f"last {EVALUATIONS} evaluations): what is learned holds for the prompts of the training alone.",
            "Take more prompts, end at the best evaluation (steps), lower learning_rate or raise kl_coef.",
            readings.step,
        )


def _fallen(values: list[float], count: int) -> float:
    """How far the mean of the last `count` values lies below the highest of so many in a row."""
    at = best_stretch(values, count)
    return fmean(values[at : at + count]) - fmean(values[-count:])


def _repetition(readings: Readings) -> Iterable[Finding]:
    values = readings.last("reward/repetition_penalty", 10)
    if values and -fmean(values) > MOST_REPEATED:
        yield Finding(
            "completions repeat themselves",
            f"{-fmean(values):.0%} of the n-grams of a completion had come before in it, in the mean over the last 10 "
            f"steps (step {readings.step}).",
            "Read the completions; give repetition_penalty more weight, lower learning_rate or raise kl_coef. If the "
            "model began so, see that demonstrations end with the EOS token.",
            readings.step,
        )


RULES: list[Rule] = [
    _silent_groups,
    _truncation,
    _kl_blow_up,
    _sampler_gap,
    _far_sampler,
    _silent_parts,
    _flat_reward,
    _held_out_falls,
    _repetition,
]
