"""How metrics are called where people read them, console and report. What each means is said in align.metrics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Label(NamedTuple):
    """A metric's name in words, its unit, and how its number is written."""

    words: str
    unit: str = ""
    form: str = ".3g"


LABELS: dict[str, Label] = {
    "episode/return": Label("return", "mean of the latest episodes", ".4g"),
    "seeds/return_low": Label("lowest return", "of the seeds", ".4g"),
    "seeds/return_high": Label("highest return", "of the seeds", ".4g"),
    "greedy_value": Label("value of greedy policy", "from the start, discounted", ".4g"),
    "episode/length": Label("episode length", "steps, mean", ".1f"),
    "reward/mean": Label("reward", "mean of the rollout"),
    "reward/std": Label("spread of reward", "standard deviation"),
    "returns/objective": Label("reward less KL", "mean of completions"),
    "preference/accuracy": Label("preference accuracy", "share of pairs", ".1%"),
    "preference/margin": Label("preference margin", "reward of chosen - rejected"),
    "preference/chosen_reward": Label("reward of chosen", "nats times beta"),
    "preference/rejected_reward": Label("reward of rejected", "nats times beta"),
    "reward_model/mean": Label("score", "mean of both answers"),
    "reward_model/calibration_error": Label("calibration error", "share of pairs", ".1%"),
    "reward/faults": Label("rewards that failed", "share of completions", ".1%"),
    "policy/entropy": Label("entropy", "nats per action"),
    "kl/reference": Label("KL to the reference", "nats per token"),
    "kl/completion": Label("KL of a completion", "to the reference, nats"),
    "kl/coef": Label("weight of the KL", "score per nat"),
    "kl/reference_point": Label("reference point", "mean log-ratio, nats"),
    "completion/length": Label("completion length", "tokens, mean", ".1f"),
    "completion/truncated": Label("completions cut", "share at max_new_tokens", ".0%"),
    "group/silent": Label("groups without signal", "share", ".0%"),
    "policy/clip_fraction": Label("clipped ratios", "share of actions", ".1%"),
    "policy/sampler_gap": Label("sampler gap", "nats per token", ".1e"),
    "policy/importance_weight": Label("importance weight", "policy / sampler, mean"),
    "policy/importance_cut": Label("weights out of bounds", "share of tokens", ".1%"),
    "sft/accuracy": Label("token accuracy", "share", ".1%"),
    "optim/grad_norm": Label("gradient norm", "before clipping"),
    "optim/learning_rate": Label("learning rate", "", ".2e"),
    "optim/loss": Label("loss", ""),
    "tokens/per_second": Label("speed", "tokens per second", ",.0f"),
    "tokens/generated": Label("tokens sampled", "in the step", ",.0f"),
    "tokens/trained": Label("tokens learned from", "in the step", ",.0f"),
    "tokens/total": Label("tokens", "since the start", ",.0f"),
    "episode/count": Label("episodes", "since the start", ",.0f"),
    "steps/per_second": Label("speed", "environment steps per second", ",.0f"),
    "steps/total": Label("environment steps", "since the start", ",.0f"),
    "value/explained_variance": Label("critic explains", "share of the variance of returns", ".0%"),
    "value/td_error": Label("TD error", "mean of its size"),
    "value/loss": Label("value loss", "before its weight"),
    "returns/mean": Label("lambda-return", "mean over actions"),
    "policy/approx_kl": Label("KL of the update", "nats per action"),
    "policy/epsilon": Label("random actions", "share", ".1%"),
    "exploration/rate": Label("exploration", "epsilon, temperature or width"),
    "learning/alpha": Label("step size", "share of the way to the target"),
    "policy/epochs": Label("epochs", "of the update", ".0f"),
    "loss/policy": Label("policy loss", ""),
    "loss/value": Label("value loss", ""),
    "loss/td": Label("TD loss", ""),
    "optim/updates": Label("gradient steps", "since the start", ",.0f"),
    "time/step": Label("time of a step", "seconds", ".2f"),
    "time/sample": Label("time of sampling", "seconds", ".2f"),
}
"""In the order in which they are shown."""

EXACT = frozenset(
    {"optim/learning_rate", "policy/epsilon", "exploration/rate", "learning/alpha", "kl/coef"}
    | {"steps/total", "episode/count", "tokens/total", "optim/updates"}
)
"""Set or counted, not measured: without noise, so that a mean of some steps would only hide the first and the last."""


def label(name: str) -> Label:
    """Return the label of a metric; an unknown one is called by its own name."""
    if name.startswith("eval/"):
        # An evaluation is named after the metric of training that it repeats: eval/reward/mean, eval/loss.
        inner = label(name.removeprefix("eval/"))
        return inner._replace(words=f"{evaluated([name])} {inner.words}", unit=_held_out(inner.unit))
    if name.startswith("reward/") and name not in LABELS:
        return Label(f"reward: {_words(name.removeprefix('reward/'))}", "mean of the rollout")
    return LABELS.get(name, Label(_words(name)))


def evaluated(names: Iterable[str]) -> str:
    """Return what evaluations are called: data are held out, but of an environment there is no more to hold out."""
    of_agents = ("eval/episode/", "eval/greedy_value")
    return "evaluated" if any(name.startswith(of_agents) for name in names) else "held-out"


def in_order(names: Iterable[str]) -> list[str]:
    """Sort metrics as they are read: what is to rise, evaluations, then the rest; the loss where it matters.

    In reinforcement learning the loss says next to nothing and comes late; where there is no reward it comes first.
    """
    known = list(LABELS)
    present = sorted(set(names) - {"step"})
    has_reward = "reward/mean" in present
    after_reward = known.index("reward/mean") + 0.5

    def place(name: str) -> tuple[float, float, str]:
        inner = name.removeprefix("eval/")
        row = known.index(inner) if inner in LABELS else len(known)
        if name == "optim/loss" and not has_reward:
            return (-1, 0, name)
        if inner != name:
            return (after_reward, row, name)
        part = name.startswith("reward/") and name not in LABELS
        return (after_reward + 1 if part else row, 0, name)

    return sorted(present, key=place)


def number(name: str, value: float) -> str:
    """Write the value of a metric as it is read."""
    return "not finite" if value != value or abs(value) == float("inf") else format(value, label(name).form)


def duration(seconds: float) -> str:
    """Write a time as 1:02 or 2:05:30."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _held_out(unit: str) -> str:
    return unit.replace("of the rollout", "held out").replace("of the latest episodes", "of evaluated episodes")


def _words(name: str) -> str:
    return name.replace("_", " ")
