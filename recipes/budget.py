"""An algorithm under a budget of trained tokens, so that methods whose steps differ in size can be compared.

A trained token is one whose log-probability a step's gradient went through: the metric tokens/trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

EVALUATIONS = 12
"""Of a run, evenly over its budget, besides the one before it."""


class Budgeted:
    """Runs an algorithm until its budget is used; the step that uses it up is the last.

    The learning rate falls with the budget: its schedule ends where the tokens a step so far would use the budget up.

    algorithm: one of `align`, with a `trainer`; its own number of steps is the most that are taken.
    budget: trained tokens.
    evaluate: held-out numbers by name, asked for each time that another part of the budget is used, not at its end.
    total_steps: the most steps there may be; once the budget is used, those that there were.
    """

    def __init__(self, algorithm: Any, budget: int, evaluate: Callable[[], dict[str, float]]) -> None:
        if budget < 1:
            raise ValueError(f"the budget must be at least 1 trained token, got {budget}")
        self.algorithm, self.budget, self.evaluate = algorithm, budget, evaluate
        self.used, self.step, self.total_steps = 0, algorithm.step, algorithm.total_steps

    def steps(self) -> Iterator[dict[str, float]]:
        """Yield the metrics of each step, and of the evaluations within the run."""
        steps = self.algorithm.steps()
        while self.step < self.total_steps:
            metrics, before = next(steps), self.used
            self._use(int(metrics["tokens/trained"]))
            due = self.used * EVALUATIONS // self.budget > before * EVALUATIONS // self.budget
            if due and self.step < self.total_steps:
                metrics |= {f"eval/{name}": value for name, value in self.evaluate().items()}
            yield metrics

    def _use(self, tokens: int) -> None:
        self.used, self.step = self.used + tokens, self.algorithm.step
        if self.used:  # what learned nothing yet tells nothing of the steps to come
            self.algorithm.trainer.total_steps = math.ceil(self.step * self.budget / self.used)
        if self.used >= self.budget:
            self.total_steps = self.step

    def state(self) -> dict[str, Any]:
        """Return the algorithm's state and what is used."""
        return {"algorithm": self.algorithm.state(), "used": self.used}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.algorithm.load_state(state["algorithm"])
        self.used, self.total_steps = 0, self.algorithm.total_steps
        self._use(state["used"])

    def examples(self) -> list[dict[str, Any]]:
        """Return those of the algorithm."""
        return self.algorithm.examples()
