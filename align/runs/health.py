"""Say in words what the numbers of a run give away: one set of rules, live and over a finished run.

A rule looks at the first steps and at the latest ones and answers with a finding or nothing; each is said once.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

WINDOW = 20
"""Steps that a rule looks back over: long enough for a mean over noisy rollouts, short enough to be told in time."""
PATIENCE = 100
"""Steps after which a reward that has not risen, or a critic that has learned nothing, is worth a word; also how far
back steps are remembered, since what is told once a rollout is missing from the steps between."""

MOST_GROUPS = 0.6
MOST_COMPLETIONS = 0.5
COLLAPSED_ENTROPY = 0.1  # of the entropy of the first steps
LARGE_KL = 1.0  # nats per token; a useful policy stays within a few tenths
LARGE_GAP = 0.05  # nats per token; 1e-5 in float32, about 0.01 between bfloat16 kernels
LARGE_CLIP_FRACTION = 0.3
FAR_WEIGHT, LARGE_CUT = 0.5, 0.1
EXPLODED = 10.0  # times the gradient norm, or the error of values, of the first steps
SWING = 1.0  # times their size; errors of agents that learn change by a tenth to a half of it
ALIKE = 50  # steps over which no episode differs from another
KEPT = 0.5  # of what the return had gained

_STATISTICS = {"mean", "std", "min", "max", "faults"}


@dataclass(frozen=True)
class Finding:
    """What is wrong, in words with numbers; what to change; the step at which it was first seen."""

    name: str
    words: str
    advice: str
    step: int


Steps = list[dict[str, float]]
"""One dict of metrics a step, each with "step"."""


class HealthWatch:
    """The rules, fed one step at a time; it remembers the first and the latest steps and what was said."""

    def __init__(self) -> None:
        self._first: Steps = []
        self._recent: deque[dict[str, float]] = deque(maxlen=PATIENCE)
        self._said: set[str] = set()

    def update(self, metrics: Mapping[str, float]) -> list[Finding]:
        """Take in the metrics of a step (with "step"); return what is newly found."""
        trained = {name: value for name, value in metrics.items() if not name.startswith("eval/")}
        if set(trained) <= {"step"}:
            return []  # an evaluation before the first step
        if len(self._first) < WINDOW:
            self._first.append(trained)
        self._recent.append(trained)
        found = [finding for rule in RULES for finding in rule(self._first, list(self._recent))]
        news = [finding for finding in found if finding.name not in self._said]
        self._said.update(finding.name for finding in news)
        return news


def findings(history: Iterable[Mapping[str, float]]) -> list[Finding]:
    """Return what the rules find over a run, in the order of the steps; the same as was said live."""
    watch = HealthWatch()
    return [
        finding for index, metrics in enumerate(history) for finding in watch.update({"step": index + 1, **metrics})
    ]


# --- reading ---------------------------------------------------------------------------------------------------------


def _values(steps: Steps, name: str) -> list[float]:
    return [value for metrics in steps if math.isfinite(value := metrics.get(name, math.nan))]


def _full(steps: Steps, name: str, count: int = WINDOW) -> list[float] | None:
    """The last `count` values of a metric, or None while there are fewer."""
    values = _values(steps, name)[-count:]
    return values if len(values) == count else None


def _span(steps: Steps) -> str:
    steps = steps[-WINDOW:]
    return f"steps {steps[0]['step']:.0f}-{steps[-1]['step']:.0f}"


def _now(steps: Steps) -> int:
    return int(steps[-1]["step"])


# --- rules -----------------------------------------------------------------------------------------------------------


def _not_finite(first: Steps, recent: Steps) -> Iterable[Finding]:
    for name, value in recent[-1].items():
        if not math.isfinite(value):
            yield Finding(
                f"not finite: {name}",
                f"{name} was not a finite number at step {_now(recent)}.",
                "Look at the rewards and the data of that step; lower learning_rate or max_grad_norm if it returns.",
                _now(recent),
            )


def _silent_groups(first: Steps, recent: Steps) -> Iterable[Finding]:
    shares = _full(recent, "group/silent")
    if shares and fmean(shares) > MOST_GROUPS:
        yield Finding(
            "groups without signal",
            f"All answers to a prompt got the same reward in {fmean(shares):.0%} of groups ({_span(recent)}): "
            "these groups teach nothing.",
            "Too hard or solved: choose prompts of middling difficulty, or raise group_size, temperature or "
            "max_redraws; if the reward is at its best already, the run is done.",
            _now(recent),
        )


def _truncation(first: Steps, recent: Steps) -> Iterable[Finding]:
    shares = _full(recent, "completion/truncated", 10)
    if shares and fmean(shares) > MOST_COMPLETIONS:
        yield Finding(
            "completions cut",
            f"{fmean(shares):.0%} of completions hit max_new_tokens over the last 10 steps (step {_now(recent)}).",
            "Raise max_new_tokens; if even short answers run on, the model does not end with its EOS token: check the "
            "chat template and the demonstrations.",
            _now(recent),
        )


def _entropy_collapse(first: Steps, recent: Steps) -> Iterable[Finding]:
    start, now = _values(first, "policy/entropy")[:5], _full(recent, "policy/entropy", 10)
    if not start or not now or fmean(now) >= COLLAPSED_ENTROPY * fmean(start):
        return
    # A policy that has learned its task is sure of itself, and rightly: only certainty without gain is a collapse.
    if _reward_gain(first, recent, 10) > 0.5:
        return
    yield Finding(
        "entropy collapse",
        f"The entropy fell from {fmean(start):.3g} to {fmean(now):.2g} nats per action by step {_now(recent)} "
        "while the reward gained little: the policy no longer explores.",
        "Lower learning_rate; with a language model raise temperature, or hold the policy nearer to its start with "
        "kl_coef; with an agent raise entropy_coef.",
        _now(recent),
    )


def _kl_blow_up(first: Steps, recent: Steps) -> Iterable[Finding]:
    values = _full(recent, "kl/reference", 5)
    if values and fmean(values) > LARGE_KL:
        yield Finding(
            "KL blow-up",
            f"The policy is {fmean(values):.2g} nats per token away from its reference (step {_now(recent)}): "
            "it may be leaving sensible language behind.",
            "Read the completions; raise kl_coef or lower learning_rate.",
            _now(recent),
        )


def _sampler_gap(first: Steps, recent: Steps) -> Iterable[Finding]:
    values = _full(recent, "policy/sampler_gap", 3)
    if _values(recent, "policy/importance_weight"):
        return  # they are known to differ, and what is learned is weighed
    if values and fmean(values) > LARGE_GAP:
        yield Finding(
            "sampler and trainer disagree",
            f"The sampler and the trainer disagree by {fmean(values):.2g} nats per token (step {_now(recent)}; "
            f"up to {LARGE_GAP} is rounding): the policy is trained on what another one said.",
            "Check that the sampler takes each new weight and uses the same temperature, template and precision; "
            "where that is so and the gap stays, weigh what is learned: --importance token-truncate.",
            _now(recent),
        )


def _far_sampler(first: Steps, recent: Steps) -> Iterable[Finding]:
    weights, cut = _full(recent, "policy/importance_weight", 3), _full(recent, "policy/importance_cut", 3)
    # Where the sampler may draw all that the policy may, and no bound is met, the mean weight is 1.
    if weights and cut and (fmean(weights) < FAR_WEIGHT or fmean(cut) > LARGE_CUT):
        yield Finding(
            "sampler far from the policy",
            f"The importance weights are {fmean(weights):.2g} in the mean, and {fmean(cut):.0%} of tokens lie outside "
            f"their bounds (step {_now(recent)}): little of what is sampled is learned as the policy would have it.",
            "Raise top_p or top_k, take new weights to the sampler more often, or weigh tokens in place of sequences "
            "(--importance token-truncate).",
            _now(recent),
        )


def _gradient(first: Steps, recent: Steps) -> Iterable[Finding]:
    start, now = _full(first, "optim/grad_norm"), _full(recent, "optim/grad_norm", 10)
    if now and max(now) == 0:
        yield Finding(
            "no gradient",
            f"The gradient was exactly 0 for 10 steps (step {_now(recent)}): nothing is being learned.",
            "See whether any group has a signal (group_size, max_redraws) and whether parameters are frozen.",
            _now(recent),
        )
    elif start and now and median(start) > 0 and median(now[-5:]) > EXPLODED * median(start):
        yield Finding(
            "exploding gradient",
            f"The gradient norm grew from {median(start):.2g} (first {WINDOW} steps) to {median(now[-5:]):.2g} "
            f"(step {_now(recent)}), before clipping.",
            "Lower learning_rate; keep max_grad_norm at 1 or below.",
            _now(recent),
        )


def _silent_parts(first: Steps, recent: Steps) -> Iterable[Finding]:
    names = [name for name in recent[-1] if name.startswith("reward/") and name.split("/")[1] not in _STATISTICS]
    for name in names:
        values = _full(recent, name)
        if values and not any(values):
            part = name.removeprefix("reward/")
            yield Finding(
                f"reward part never fires: {part}",
                f"The reward part {part!r} was 0 for every completion ({_span(recent)}).",
                "Read some completions: is it out of reach, or does it look for a form that the model never writes?",
                _now(recent),
            )


def _flat_reward(first: Steps, recent: Steps) -> Iterable[Finding]:
    start, now = _full(first, "reward/mean"), _full(recent, "reward/mean")
    if not start or not now or _now(recent) < PATIENCE or not any(_values(first, "reward/std")):
        return  # without any spread there is nothing to climb: that is the finding about groups
    if _reward_gain(first, recent, WINDOW) < 0.05:
        yield Finding(
            "reward does not rise",
            f"The mean reward was {fmean(start):.3g} in the first {WINDOW} steps, {fmean(now):.3g} in {_span(recent)}.",
            "Raise learning_rate or group_size, and see whether enough groups have a signal "
            "(temperature, max_redraws).",
            _now(recent),
        )


def _clip_fraction(first: Steps, recent: Steps) -> Iterable[Finding]:
    values = _full(recent, "policy/clip_fraction")
    if values and fmean(values) > LARGE_CLIP_FRACTION:
        yield Finding(
            "clip fraction high",
            f"{fmean(values):.0%} of ratios were clipped over the last {WINDOW} steps (step {_now(recent)}): "
            "the updates are larger than the data supports.",
            "Lower learning_rate, or take fewer updates from each rollout.",
            _now(recent),
        )


def _idle_critic(first: Steps, recent: Steps) -> Iterable[Finding]:
    values = _full(recent, "value/explained_variance", 5)
    if not values or max(values) > 0 or _now(recent) < PATIENCE:
        return
    start, now = _values(first, "reward/std"), _values(recent, "reward/std")[-5:]
    # Once nearly all completions earn the same, what is left of the variance is chance, and no critic explains it.
    if start and now and fmean(now) < 0.5 * fmean(start):
        return
    agent = bool(_values(recent, "episode/return"))
    # One that keeps up its poles sees no episode end in a rollout: its returns are alike, and rightly.
    if agent and _reward_gain(first, recent, 10) > KEPT:
        return
    yield Finding(
        "critic that explains nothing",
        f"The critic explained {fmean(values):.2g} of the variance of returns over the last 5 rollouts, and none of "
        f"them above 0 (step {_now(recent)}): one number for all states would have served as well.",
        "Change value_coef or learning_rate, take more updates from each rollout (epochs), "
        + (
            "or scale what the critic sees and has to predict (normalize_observations, scale_rewards)."
            if agent
            else "start the critic from a reward model (--value-model), or compare the answers to one prompt instead: "
            "GRPO needs no critic."
        ),
        _now(recent),
    )


def _diverging_values(first: Steps, recent: Steps) -> Iterable[Finding]:
    start, errors, returns = _errors(first), _errors(recent), _values(recent, "episode/return")
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
        f"{_now(recent)}), more than twofold within the last {WINDOW}, while the return did not rise "
        f"({earned:.4g}, now {earns:.4g}): they chase themselves.",
        "Update the target network less often (target.every) or more slowly (target.rate), lower learning_rate or "
        "gamma, and see whether a step that terminated still bootstraps.",
        _now(recent),
    )


def _swinging_values(first: Steps, recent: Steps) -> Iterable[Finding]:
    errors, returns = _errors(recent)[-2 * WINDOW :], _values(recent, "episode/return")[-2 * WINDOW :]
    if len(errors) < 2 * WINDOW or len(returns) < 2 * WINDOW:
        return
    swing, size = median(abs(after - before) for before, after in pairwise(errors)), median(errors)
    if swing <= SWING * size or fmean(returns[WINDOW:]) > fmean(returns[:WINDOW]):
        return
    yield Finding(
        "errors of values swing",
        f"From one step to the next the error of the values changed by {swing:.3g}, where its size is {size:.3g} "
        f"(medians of the last {2 * WINDOW} steps, step {_now(recent)}), and the return did not rise: "
        "each update undoes the one before.",
        "Lower learning_rate, learn from larger batches, or let the target network follow in small steps "
        "(target.rate below 1 with target.every 1).",
        _now(recent),
    )


def _episodes_alike(first: Steps, recent: Steps) -> Iterable[Finding]:
    lengths, returns = _full(recent, "episode/length", ALIKE), _full(recent, "episode/return", ALIKE)
    if not lengths or not returns or len({*lengths}) > 1 or len({*returns}) > 1:
        return
    counts = _values(recent[-ALIKE:], "episode/count")
    if (counts and counts[-1] - counts[0] < 100) or returns[-1] > fmean(_values(first, "episode/return")):
        return  # too few to say; or it has learned to do always the same, which is what pays
    yield Finding(
        "episodes all alike",
        f"Every episode had {lengths[-1]:g} steps and a return of {returns[-1]:g} over the last {ALIKE} steps of the "
        f"run (step {_now(recent)}): there is nothing to prefer.",
        "If the length is the environment's limit, the agent never gets to what is rewarded: explore more "
        "(exploration.end, entropy_coef) or shape the reward; if not, it does one thing everywhere: see its actions.",
        _now(recent),
    )


def _return_collapse(first: Steps, recent: Steps) -> Iterable[Finding]:
    returns, start = _values(recent, "episode/return"), _full(first, "episode/return")
    if not start or len(returns) < 2 * WINDOW:
        return
    at, now = _best(returns, 10), returns[-10:]
    begun, best = fmean(start[:5]), fmean(returns[at : at + 10])
    gained = best - begun
    # A mean over the latest episodes wanders, at worst as a sum of its changes does: what was learned lies far beyond.
    changes = [after - before for before, after in pairwise(returns)]
    # A median, so that the fall itself does not count as wandering; 1.5 of it are a standard deviation.
    wanders = 1.5 * median(abs(change - median(changes)) for change in changes) * math.sqrt(len(changes))
    learned = gained > 2 * wanders and gained > 0.25 * max(abs(best), abs(begun))
    if learned and max(now) < begun + KEPT * gained:
        yield Finding(
            "return collapse",
            f"The return rose from {begun:.4g} to {best:.4g} (best mean of 10 steps) and fell to {fmean(now):.4g} by "
            f"step {_now(recent)}: more than half of what was gained is lost.",
            "Lower learning_rate, or let it fall over the run (anneal, final_learning_rate); with a replay memory "
            "raise its capacity, without one lower clip or epochs. Go on from the checkpoint of the best step.",
            _now(recent),
        )


def _errors(steps: Steps) -> list[float]:
    """The errors of values, in the unit of the returns."""
    return _values(steps, "value/td_error") or [math.sqrt(2 * abs(loss)) for loss in _values(steps, "loss/value")]


def _best(values: list[float], count: int) -> int:
    """Where the `count` values in a row begin that have the highest mean."""
    return max(range(len(values) - count + 1), key=lambda at: sum(values[at : at + count]))


def _reward_gain(first: Steps, recent: Steps, count: int) -> float:
    """How far the mean reward rose, in units of its spread in the first steps; inf or 0 where that spread is 0.

    Of an agent in environments it is the return that rises, in units of the most that it had risen.
    """
    if not _values(recent, "reward/mean"):
        return _share_kept(_values(first, "episode/return")[:count], _values(recent, "episode/return"), count)
    start, now = _values(first, "reward/mean")[:count], _values(recent, "reward/mean")[-count:]
    spread = _values(first, "reward/std")[:count]
    if not start or not now:
        return 0.0
    gain = fmean(now) - fmean(start)
    return gain / fmean(spread) if spread and fmean(spread) > 0 else (math.inf if gain > 0 else 0.0)


def _share_kept(start: list[float], returns: list[float], count: int) -> float:
    if not start or len(returns) < count:
        return 0.0
    at = _best(returns, count)
    gained = fmean(returns[at : at + count]) - fmean(start)
    return (fmean(returns[-count:]) - fmean(start)) / gained if gained > 0 else 0.0


RULES: list[Callable[[Steps, Steps], Iterable[Finding]]] = [
    _not_finite,
    _silent_groups,
    _truncation,
    _entropy_collapse,
    _kl_blow_up,
    _sampler_gap,
    _far_sampler,
    _gradient,
    _silent_parts,
    _flat_reward,
    _clip_fraction,
    _idle_critic,
    _diverging_values,
    _swinging_values,
    _episodes_alike,
    _return_collapse,
]
"""Rules in the order in which their findings are told."""
