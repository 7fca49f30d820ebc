"""Playing whole episodes with a policy, to know what it is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import gymnasium
import numpy as np

from classic_rl.envs import make_envs


class Act(Protocol):
    """A policy: observations [N, ...] to actions [N, ...], the best ones or drawn ones."""

    def __call__(self, obs: np.ndarray, *, deterministic: bool) -> np.ndarray: ...  # noqa: D102


@dataclass(frozen=True)
class Evaluation:
    """What came of each episode, in the order of their seeds.

    returns: sum of rewards, undiscounted. [episodes]
    lengths: steps. [episodes]
    """

    returns: np.ndarray
    lengths: np.ndarray

    def metrics(self) -> dict[str, float]:
        """Return the means by the names that training uses."""
        return {"episode/return": float(self.returns.mean()), "episode/length": float(self.lengths.mean())}


def evaluate(
    act: Act,
    env: str | Callable[[], gymnasium.Env],
    *,
    episodes: int = 100,
    seed: int = 0,
    deterministic: bool = True,
    num_envs: int = 25,
) -> Evaluation:
    """Play episodes to their ends, several at a time, and count them here.

    Each episode has its number and with it its seed, and all that begin are counted: counting the first ones to end
    would favour short episodes. A deterministic policy gets the same result whatever `num_envs` is.

    Args:
        act: the policy.
        env: an id, or a function that makes an environment.
        episodes: how many, at least 1.
        seed: of the episodes; other numbers than training has drawn from the same seed.
        deterministic: whether the policy takes its best action or draws one.
        num_envs: environments at a time.

    Raises:
        ValueError: if `episodes` is below 1.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    vector = make_envs(env, min(num_envs, episodes))
    seeds = [int(n) for n in np.random.SeedSequence([seed, EVALUATION]).generate_state(episodes)]
    returns, lengths = np.zeros(episodes), np.zeros(episodes, dtype=np.int64)
    playing: list[tuple[int, gymnasium.Env, np.ndarray]] = []
    free, waiting = list(vector.envs), list(range(episodes))
    try:
        while playing or waiting:
            while free and waiting:
                number, one = waiting.pop(0), free.pop()
                playing.append((number, one, one.reset(seed=seeds[number])[0]))
            actions = act(np.stack([obs for _, _, obs in playing]), deterministic=deterministic)
            still: list[tuple[int, gymnasium.Env, np.ndarray]] = []
            for (number, one, _), action in zip(playing, actions, strict=True):
                obs, reward, terminated, truncated, _ = one.step(action)
                returns[number] += float(reward)
                lengths[number] += 1
                if terminated or truncated:
                    free.append(one)
                else:
                    # a copy: environments may write into what they gave
                    still.append((number, one, np.array(obs)))
            playing = still
    finally:
        vector.close()
    return Evaluation(returns, lengths)


EVALUATION = 1_000_003
"""What the seeds of evaluation are mixed with, so that they differ from those of training."""
