"""Say in words what the numbers of a run give away: one set of rules, live and over a finished run.

A rule looks at the first values of a metric and at the latest ones and answers with a finding or nothing; each is said
once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from align.runs import health_of_agents, health_of_completions, health_of_learning
from align.runs.readings import Finding, Readings, Rule

RULES: list[Rule] = [*health_of_learning.RULES, *health_of_completions.RULES, *health_of_agents.RULES]
"""Rules in the order in which their findings are told."""


class HealthWatch:
    """The rules, asked after each step; it remembers what was said."""

    def __init__(self, rules: Sequence[Rule] = RULES) -> None:
        self._rules = rules
        self._readings = Readings()
        self._said: set[str] = set()

    def update(self, metrics: Mapping[str, float]) -> list[Finding]:
        """Take in the metrics of a step (with "step"); return what is newly found."""
        self._readings.take(metrics)
        found = [finding for rule in self._rules for finding in _asked(rule, self._readings)]
        news = [finding for finding in found if finding.name not in self._said]
        self._said.update(finding.name for finding in news)
        return news


def findings(history: Iterable[Mapping[str, float]]) -> list[Finding]:
    """Return what the rules find over a run, in the order of the steps; the same as was said live."""
    watch = HealthWatch()
    return [
        finding for index, metrics in enumerate(history) for finding in watch.update({"step": index + 1, **metrics})
    ]


def _asked(rule: Rule, readings: Readings) -> list[Finding]:
    """What a rule answers; what it raises is told as a finding, since to watch a run must never end it."""
    try:
        return list(rule(readings))
    except Exception as error:
        name = rule.__name__.strip("_").replace("_", " ")
        return [
            Finding(
                f"rule fails: {name}",
                f"The rule about {name} failed at step {readings.step}: {type(error).__name__}: {error}.",
                "This is a fault of the rule and says nothing of the run: please report it, with metrics.jsonl.",
                readings.step,
            )
        ]
