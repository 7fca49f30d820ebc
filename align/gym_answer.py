"""A reward for tasks of reasoning-gym, by the task's own rules; `align.procedural` is its worker, and makes the data.

Some rules compute for long on what a policy writes, so they work in a process of their own (`align.isolated`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from align.isolated import WorkerEndedError, isolated
from align.procedural import INSTALL
from align.rewards import RewardError, RewardFunction


def reasoning_gym(*, deadline: float = 10.0, workers: int = 1) -> RewardFunction:
    """Make a reward of the task's own score of an answer, between 0 and 1 for most.

    What cannot be judged within the deadline is 0, since a policy must not stop its own training by what it writes.

    Args:
        deadline: seconds for one completion.
        workers: processes that share the completions.

    Raises:
        RewardError: if reasoning-gym is not installed.
    """
    if importlib.util.find_spec("reasoning_gym") is None:
        raise RewardError(f"reward 'reasoning_gym' {INSTALL}")
    judged = isolated("align.procedural:score_answers", deadline=deadline, workers=workers)

    def reasoning_gym(
        prompts: Sequence[Any], completions: Sequence[Any], gym_task: Sequence[str], gym_index: Sequence[int]
    ) -> list[Any]:
        values = judged(prompts=prompts, completions=completions, gym_task=gym_task, gym_index=gym_index)
        return [0.0 if isinstance(value, WorkerEndedError) else value for value in values]

    return reasoning_gym
