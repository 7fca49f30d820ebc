"""Rewards: functions of prompts, completions and the columns of the data, and how several make one score.

A reward is called by name, `f(prompts=..., completions=..., **columns)`, and returns one number a completion, or None
where it does not apply. It may be async. Whatever it does wrong is named by reward and sample; nothing passes silently.
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from align.batch import Completion, Rollouts
from align.config import OnError
from align.reward_await import await_all
from align.reward_faults import LARGEST, faults_of, shown
from align.rows import nearest

RewardFunction = Callable[..., list[float | None]]
METRIC_NAMES = frozenset({"mean", "std", "faults"})
"""Taken by the metrics that stand beside the parts of the reward."""


class RewardError(ValueError):
    """A reward cannot be called, or failed; the message names it and the sample."""


@dataclass(frozen=True)
class Reward:
    """A reward function with its name in the metrics and its weight in the total."""

    function: Callable[..., Any]
    name: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ValueError(f"a reward must be a function, got {shown(self.function)}")
        if not math.isfinite(self.weight):
            raise ValueError(f"weight must be finite, got {self.weight}: leave the reward out instead")
        unwrapped = getattr(self.function, "func", self.function)
        default = getattr(unwrapped, "__name__", type(unwrapped).__name__)
        object.__setattr__(self, "name", self.name or default)

    def arguments(self, available: Iterable[str]) -> list[str]:
        """Return which of the available arguments the function takes: all, if it takes `**columns`.

        Raises:
            RewardError: if it needs one that is not there.
        """
        available = list(available)
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except ValueError:  # some builtins have no signature
            return available
        for parameter in parameters:
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise RewardError(f"reward {self.name!r} takes {parameter.name!r} by position only: remove the `/`")
            named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if named and parameter.default is parameter.empty and parameter.name not in available:
                raise RewardError(
                    f"reward {self.name!r} asks for {parameter.name!r}, which the data do not have: there are "
                    f"{', '.join(available)}{nearest(parameter.name, available)}"
                )
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return available
        taken = {parameter.name for parameter in parameters}
        return [name for name in available if name in taken]


@dataclass(frozen=True)
class Scores:
    """What the rewards say of B completions.

    total: weighted sum over the parts that apply, NaN where none does. B of them.
    parts: of each reward before its weight, NaN where it does not apply; under "skip" and "zero" also "faults", 0 or 1.
    faults: what went wrong and was skipped or set to 0.
    """

    total: list[float]
    parts: dict[str, list[float]]
    faults: list[str] = field(default_factory=list)


def check_rewards(rewards: Sequence[Reward | Callable[..., Any]], columns: Iterable[str]) -> list[Reward]:
    """Return the rewards, bare functions wrapped, that these columns serve: to be called before a model loads.

    Raises:
        RewardError: if there are none, two have one name, or one needs a column that is not there.
    """
    wrapped = [reward if isinstance(reward, Reward) else Reward(reward) for reward in rewards]
    if not wrapped:
        raise RewardError("no rewards: pass at least one")
    available = ["prompts", "completions", "completion_ids", *columns]
    for row, reward in enumerate(wrapped):
        if reward.name in METRIC_NAMES:
            raise RewardError(f"{reward.name!r} is the name of a metric: pass Reward(function, name=...)")
        if reward.name in (earlier.name for earlier in wrapped[:row]):
            raise RewardError(f"two rewards have the name {reward.name!r}: pass Reward(function, name=...)")
        reward.arguments(available)
    if not any(reward.weight for reward in wrapped):
        raise RewardError("every reward has weight 0, which only measures: give one of them a weight")
    return wrapped


def as_completions(texts: Sequence[str], prompts: Sequence[str | list[dict[str, str]]]) -> list[Completion]:
    """Give texts the form of their prompts: a string for a string, one message of the assistant for messages."""
    return [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for text, prompt in zip(texts, prompts, strict=True)
    ]


def score(
    rewards: Sequence[Reward | Callable[..., Any]],
    prompts: Sequence[str | list[dict[str, str]]],
    completions: Sequence[Completion],
    columns: Mapping[str, Sequence[Any]],
    *,
    on_error: OnError = "error",
) -> Scores:
    """Call every reward on all completions, the async ones together, and add them up by weight.

    Args:
        rewards: of different names; bare functions have weight 1.
        prompts: the prompt of each completion, as the data has it. B of them.
        completions: strings or messages, as `as_completions` gives them. B of them.
        columns: other arguments of the rewards by name, B values each.
        on_error: "error" raises; "skip" treats a faulty value as not applicable and "zero" as 0, and both
            note it in `faults`. A reward that raises, or returns no list of B values, is faulty on all samples.

    Raises:
        RewardError: if a reward needs a column that is not there, or fails under "error".
    """
    if on_error not in ("error", "skip", "zero"):
        raise ValueError(f'on_error must be "error", "skip" or "zero", got {on_error!r}')
    arguments = {"prompts": prompts, "completions": completions, **columns}
    for name, values in arguments.items():
        if len(values) != len(completions):
            raise ValueError(f"{name} must have one value a completion: expected {len(completions)}, got {len(values)}")
    called = check_rewards(rewards, columns)
    parts = {} if on_error == "error" else {"faults": [0.0] * len(completions)}
    faults: list[str] = []
    for reward, result in zip(called, _call_all(called, arguments), strict=True):
        values, faulty = _checked(result, completions)
        found = [f"reward {reward.name!r} failed on {fault}" for fault in dict.fromkeys(faulty.values())]
        if found and on_error == "error":
            more = f" (and {len(found) - 1} more faults)" if len(found) > 1 else ""
            raise RewardError(found[0] + more) from (result if isinstance(result, BaseException) else None)
        faults += found
        fill = 0.0 if on_error == "zero" else math.nan
        for row in faulty:
            parts["faults"][row] = 1.0
        parts[reward.name] = [fill if row in faulty else value for row, value in enumerate(values)]
    return Scores(_total(called, parts, len(completions)), parts, faults)


def score_rollouts(rollouts: Rollouts, rewards: Sequence[Reward], *, on_error: OnError = "error") -> Rollouts:
    """Return the rollouts with their rewards; faults that are no errors are said as warnings.

    The columns of the data reach the rewards by name, and the completions' token ids as `completion_ids`.
    """
    asked = rollouts.prompts.select([row // rollouts.group_size for row in range(len(rollouts))])
    sequences = rollouts.sequences
    ids = [row[mask].tolist() for row, mask in zip(sequences.input_ids, sequences.action_mask, strict=True)]
    completions = as_completions(rollouts.texts, asked.texts)
    scores = score(rewards, asked.texts, completions, {**asked.columns, "completion_ids": ids}, on_error=on_error)
    for fault in scores.faults:
        warnings.warn(fault, stacklevel=2)
    parts = {name: torch.tensor(part) for name, part in scores.parts.items()}
    return replace(rollouts, rewards=torch.tensor(scores.total), parts=parts)


def _call_all(rewards: Sequence[Reward], arguments: Mapping[str, Sequence[Any]]) -> list[Any]:
    """Return what each reward returned or raised."""
    results = [_call(reward, arguments) for reward in rewards]
    waiting = {row: result for row, result in enumerate(results) if inspect.isawaitable(result)}
    if waiting:
        for row, result in zip(waiting, await_all(list(waiting.values())), strict=True):
            results[row] = result
    return results


def _call(reward: Reward, arguments: Mapping[str, Sequence[Any]]) -> Any:
    try:
        # Copies of its own: what a reward does to them, neither the next one nor the data see.
        return reward.function(**{name: copy.deepcopy(list(arguments[name])) for name in reward.arguments(arguments)})
    except (Exception, SystemExit) as error:  # whatever the user's code raises is told with its name; Ctrl-C passes
        return error


def _total(rewards: Sequence[Reward], parts: Mapping[str, list[float]], count: int) -> list[float]:
    totals = []
    for row in range(count):
        values = [reward.weight * parts[reward.name][row] for reward in rewards if reward.weight]
        values = [value for value in values if not math.isnan(value)]
        totals.append(sum(values) if values else math.nan)
    return totals


def _checked(result: Any, completions: Sequence[Completion]) -> tuple[list[float], dict[int, str]]:
    """Return the values of B completions, NaN for None or a fault, and the faults by sample."""
    values = result.tolist() if hasattr(result, "tolist") else result
    if isinstance(values, list | tuple) and len(values) == len(completions) and all(map(_good, values)):
        return [math.nan if value is None else float(value) for value in values], {}
    return faults_of(result, completions)


def _good(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and abs(value) <= LARGEST)
