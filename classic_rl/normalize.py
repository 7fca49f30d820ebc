"""Running means and variances, by which observations and rewards of any unit become numbers of about 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


class RunningMoments:
    """Mean and population variance of all rows seen so far, of one shape.

        mean' = mean + delta * n / (count + n),   delta = mean of the batch - mean
        var'  = (var * count + var of the batch * n + delta^2 * count * n / (count + n)) / (count + n)

    Source: Chan et al. 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    Args:
        shape: of one row.
        count: weight of the start, mean 0 and variance 1.

    >>> moments = RunningMoments(())
    >>> moments.update(np.array([1.0, 3.0]))
    >>> round(float(moments.mean), 3), round(float(moments.var), 3)
    (2.0, 1.0)
    """

    def __init__(self, shape: tuple[int, ...], count: float = 1e-4) -> None:
        self.mean, self.var, self.count = np.zeros(shape), np.ones(shape), count

    def update(self, rows: np.ndarray) -> None:
        """Take in rows; the first axis is their number. [n, ...]"""
        if len(rows) == 0:
            return
        rows = np.asarray(rows, dtype=np.float64)
        delta, total = rows.mean(axis=0) - self.mean, self.count + len(rows)
        squares = self.var * self.count + rows.var(axis=0) * len(rows) + delta**2 * self.count * len(rows) / total
        self.mean = self.mean + delta * len(rows) / total
        self.var, self.count = squares / total, total

    def normalize(self, rows: np.ndarray, *, clip: float = 10.0) -> np.ndarray:
        """Shift and scale rows to mean 0 and variance 1, cut off at `clip` standard deviations. float32."""
        scaled = (rows - self.mean) / np.sqrt(self.var + 1e-8)
        return np.clip(scaled, -clip, clip).astype(np.float32)

    def state(self) -> dict[str, Any]:
        """Return the moments as tensors."""
        return {"mean": torch.tensor(self.mean), "var": torch.tensor(self.var), "count": self.count}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.mean, self.var = state["mean"].double().numpy().copy(), state["var"].double().numpy().copy()
        self.count = float(state["count"])


class RewardScale:
    """Divides rewards by the standard deviation of the discounted returns so far; what is 0 stays 0.

    The returns are summed forwards, R_t = gamma * R_{t-1} + r_t, and begin again after an episode.

    Source: Engstrom et al. 2020 (arXiv:2005.12729), reward scaling, as in openai/baselines.
    """

    def __init__(self, num_envs: int, gamma: float) -> None:
        self.gamma = gamma
        self._returns = np.zeros(num_envs)
        self.moments = RunningMoments(())

    def __call__(self, rewards: np.ndarray, ended: np.ndarray, valid: np.ndarray, *, clip: float = 10.0) -> np.ndarray:
        """Take in the rewards of a rollout, then scale them.

        Args:
            rewards: [N, T]
            ended: bool, terminated or truncated. [N, T]
            valid: bool, rows that are transitions. [N, T]
            clip: scaled rewards are cut off here.

        Returns:
            float32. [N, T]
        """
        returns = np.zeros(rewards.shape)
        for t in range(rewards.shape[1]):
            self._returns = np.where(valid[:, t], self.gamma * self._returns + rewards[:, t], self._returns)
            returns[:, t] = self._returns
            self._returns = np.where(ended[:, t], 0.0, self._returns)
        self.moments.update(returns[valid])
        return np.clip(rewards / np.sqrt(self.moments.var + 1e-8), -clip, clip).astype(np.float32)

    def state(self) -> dict[str, Any]:
        """Return the moments and the open returns."""
        return {"moments": self.moments.state(), "returns": torch.from_numpy(self._returns.copy())}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.moments.load_state(state["moments"])
        self._returns = state["returns"].numpy().copy()
