"""A reward for answers that are mathematics: 1 where the expression of a completion equals the column `answer`.

math-verify (`pip install 'align-rl[math]'`) reads LaTeX and plain expressions and compares them with SymPy, which can
compute for ever on what a policy writes; so it works in a process of its own (`align.isolated`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from align.batch import Completion, text_of
from align.isolated import WorkerEndedError, isolated
from align.rewards import RewardError, RewardFunction


def math_answer(*, deadline: float = 5.0, workers: int = 1) -> RewardFunction:
    """Make a reward of 1 where the answer is equal, as mathematics, to the column `answer`, else 0.

    1/2, 0.5 and \\frac{2}{4} are equal, and so are x^2+1 and 1+x^2; \\boxed{} is preferred where there is one, and
    thoughts, up to the last `</think>`, are left out. A list in the column holds answers of which any is right; null is
    not applicable. What cannot be compared within the deadline is 0, since a policy must not stop its own training by
    what it writes.

    Args:
        deadline: seconds for one completion.
        workers: processes that share the completions.

    Raises:
        RewardError: if math-verify is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise RewardError("reward 'math_answer' needs math-verify: pip install 'align-rl[math]'")
    compare = isolated("align.math_equal:equal", deadline=deadline, workers=workers)

    def math_answer(completions: Sequence[Completion], answer: Sequence[Any]) -> list[Any]:
        texts = [text_of(completion).rpartition("</think>")[2] for completion in completions]
        values = compare(prompts=texts, completions=texts, answer=answer)
        return [0.0 if isinstance(value, WorkerEndedError) else value for value in values]

    return math_answer
