"""Keep the record of a run: what a step measured goes to the files of its directory and to the display.

Only the main process of a run keeps one.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from align.runs.console import Display
from align.runs.directory import RunDirectory
from align.runs.health import HealthWatch

SAMPLES_OF_A_RUN = 20
"""Rollouts that are kept in completions.jsonl, about."""
LONGEST_TEXT = 4000
"""Characters of a prompt or a completion that are kept."""
MOST_REWARDS = 1024
"""Rewards of a rollout that are kept for the histogram."""
MOST_IN_GROUP = 16


class Journal:
    """What happened, written line by line as it happens."""

    def __init__(
        self,
        directory: RunDirectory,
        display: Display,
        track: Callable[[int, dict[str, float]], None] | None = None,
    ) -> None:
        self.directory, self.display, self.track = directory, display, track
        self._watch = HealthWatch()
        self._not_finite: set[str] = set()
        self._every = max(1, math.ceil(display.total_steps / (SAMPLES_OF_A_RUN - 2)))

    def recall(self) -> None:
        """Take in the steps before a resume, so that what was said is not said again."""
        for metrics in self.directory.history():
            self._watch.update(metrics)
            self._not_finite.update(_not_finite(metrics))

    def event(self, kind: str, step: int, words: str, **more: Any) -> None:
        """Record something that is no number of a step."""
        self.directory.append(
            "events.jsonl", {"step": step, "kind": kind, "words": words, "time": round(time.time(), 1), **more}
        )

    def warn(self, kind: str, step: int, words: str, **more: Any) -> None:
        """Record something and tell it."""
        self.event(kind, step, words, **more)
        self.display.warn(words)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step; step 0 is the evaluation before the first one."""
        values = {name: float(value) for name, value in metrics.items()}
        bad = _not_finite(values)
        line = {name: None if name in bad else value for name, value in values.items()}
        self.directory.append("metrics.jsonl", {**line, "step": step})
        if self.track:
            self.track(step, values)
        if step:
            self.display.step(step, values)
        else:
            self.display.evaluation(step, values)
        if bad:
            self._tell_not_finite(step, bad)
        for finding in self._watch.update({**values, "step": step}):
            if not finding.name.startswith("not finite"):
                self.warn("finding", step, f"{finding.words} {finding.advice}", name=finding.name)

    def _tell_not_finite(self, step: int, names: list[str]) -> None:
        words = f"not finite at step {step}: {', '.join(names)} (written as null)."
        # Each occurrence is recorded; the console hears of each metric once.
        if set(names) <= self._not_finite:
            self.event("not_finite", step, words, names=names)
        else:
            self.warn("not_finite", step, words, names=names)
        self._not_finite.update(names)

    def wants_examples(self, step: int) -> bool:
        """Whether the rollout of a step is one of those that are kept: the first, the last, some between."""
        return step == 1 or step % self._every == 0 or step >= self.display.total_steps

    def examples(self, step: int, examples: list[dict[str, Any]]) -> None:
        """Record some of a rollout's completions; nothing for an algorithm without any."""
        if not examples:
            return
        chosen = choose_examples(examples, step)
        self.directory.append(
            "completions.jsonl",
            {
                "step": step,
                "rewards": [_number(example.get("reward")) for example in examples[:MOST_REWARDS]],
                "samples": [{"role": role, **_kept(example)} for role, example in chosen],
                "group": [_kept(example) for example in telling_group(examples)[:MOST_IN_GROUP]],
            },
        )
        self.display.samples(step, chosen)


def choose_examples(examples: list[dict[str, Any]], step: int) -> list[tuple[str, dict[str, Any]]]:
    """Return the best, the worst and a random example; the draw depends on the step alone.

    One without a reward is neither the best nor the worst, unless none has any.
    """
    by_reward = sorted(_judged(examples) or examples, key=_reward)
    drawn = examples[random.Random(step).randrange(len(examples))]
    return [("best", by_reward[-1]), ("worst", by_reward[0]), ("random", drawn)]


def telling_group(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the group whose rewards differ most, the first of equals: the one from which most is learned."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for example in examples:
        groups.setdefault(example.get("group", 0), []).append(example)

    def spread(group: list[dict[str, Any]]) -> float:
        rewards = [_reward(example) for example in _judged(group)]
        return max(rewards, default=0.0) - min(rewards, default=0.0)

    return max(groups.values(), key=spread)


def _judged(examples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [example for example in examples if _number(example.get("reward")) is not None]


def _reward(example: Mapping[str, Any]) -> float:
    return _number(example.get("reward")) or 0.0


def _not_finite(metrics: Mapping[str, float]) -> list[str]:
    return [name for name, value in metrics.items() if not math.isfinite(value)]


def _number(value: Any) -> float | None:
    """A finite float, or None: JSON has no NaN."""
    return float(value) if value is not None and math.isfinite(value) else None


def _kept(example: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an example that are written, as JSON values; long texts are cut."""
    return {
        "prompt": _text(example.get("prompt", "")),
        "completion": _text(example.get("completion", "")),
        "reward": _number(example.get("reward")),
        "advantage": _number(example.get("advantage")),
        "parts": {str(name): _number(value) for name, value in (example.get("parts") or {}).items()},
        "group": int(example.get("group", 0)),
        "tokens": int(example.get("tokens", 0)),
        "terminated": bool(example.get("terminated", True)),
    }


def _text(value: Any) -> str:
    """A text; a list of messages becomes one, a paragraph a message."""
    if isinstance(value, list):
        value = "\n\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in value)
    return str(value)[:LONGEST_TEXT]
