"""A replay memory: a ring of transitions of several environments, drawn uniformly or in proportion to priorities.

Each slot knows the slot of the step that followed it in its episode, so that returns over n steps are summed when they
are drawn, up to the end of the episode or to the newest step, and never reach into another episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

PRIORITY_FLOOR = 1e-6
"""Added to every |TD error|, so that a transition whose error was 0 is still drawn now and then."""


class Batch(NamedTuple):
    """Transitions over up to n steps, ready for `classic_rl.losses.q_targets`.

    obs: s_t. [B, ...]
    actions: a_t. [B]
    rewards: sum of gamma^k r_{t+k} over the k < n steps that the episode has. [B]
    next_obs: the state after the last of these; of a truncated step the one before the reset. [B, ...]
    terminated: bool, whether that last step terminated. [B]
    discounts: gamma to the number of steps summed, what the value of `next_obs` is multiplied by. [B]
    weights: of importance sampling, at most 1; None where draws are uniform. [B]
    slots: where they lie, for `Replay.set_priorities`. [B]
    """

    obs: Tensor
    actions: Tensor
    rewards: Tensor
    next_obs: Tensor
    terminated: Tensor
    discounts: Tensor
    weights: Tensor | None
    slots: NDArray[np.int64]

    def split(self, size: int) -> list[Batch]:
        """Part it into batches of `size`."""
        count = len(self.slots) // size
        if count == 1:
            return [self]
        *tensors, weights, slots = self
        parts = [x.split(size) for x in tensors]
        parts.append([None] * count if weights is None else weights.split(size))
        return [Batch(*part) for part in zip(*parts, slots.reshape(count, size), strict=True)]


class SumTree:
    """Non-negative leaves under a binary tree of their sums: set and find cost log2(size) operations on arrays.

    A parent is always recomputed from its children, so no rounding error piles up.

    Args:
        size: number of leaves, all 0 at first.

    >>> tree = SumTree(3)
    >>> tree.set([0, 2], [1.0, 3.0])
    >>> tree.total, tree.find([0.5, 1.5]).tolist()
    (4.0, [0, 2])
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size = size
        self._depth = (size - 1).bit_length()
        self._first = 1 << self._depth  # node 1 is the root, node i has the children 2i and 2i + 1
        self._nodes = np.zeros(2 * self._first)

    @property
    def total(self) -> float:
        """The sum of all leaves."""
        return float(self._nodes[1])

    @property
    def leaves(self) -> NDArray[np.float64]:
        """A view of the leaves, to read. [size]"""
        return self._nodes[self._first : self._first + self.size]

    def set(self, indices: ArrayLike, values: ArrayLike) -> None:
        """Set leaves and the sums above them; of an index given twice the last value counts. [B], [B]

        Raises:
            ValueError: if a value is negative or not finite.
        """
        values = np.asarray(values, dtype=np.float64)
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ValueError(f"priorities must be finite and at least 0, got {values.tolist()}: is a TD error NaN?")
        nodes, at = self._nodes, np.asarray(indices, dtype=np.int64) + self._first
        nodes[at] = values
        for _ in range(self._depth):
            at = at >> 1
            left = at << 1
            nodes[at] = nodes[left] + nodes[left + 1]

    def find(self, sums: ArrayLike) -> NDArray[np.int64]:
        """Return for each u in (0, total] the first leaf at which the running sum of the leaves reaches u. [B]"""
        nodes, left_over = self._nodes, np.array(sums, dtype=np.float64)
        at = np.ones(left_over.shape, dtype=np.int64)
        for _ in range(self._depth):
            at = at << 1
            left = nodes[at]
            # A sum may be rounded up past its two parts: never step into a branch that is empty.
            right = (left_over > left) & (nodes[at + 1] > 0)
            left_over -= np.where(right, left, 0.0)
            at += right
        return at - self._first


class Replay:
    """The last `capacity` transitions of `num_envs` environments, the oldest overwritten first.

    Uniform draws where `priority_exponent` is 0. Above 0 transition i is drawn with probability
    P(i) = p_i^alpha / sum_j p_j^alpha, where p_i is |TD error| plus a floor, and the largest p so far for a new
    one; its weight of importance sampling is (size * P(i))^-beta, divided by the largest weight of the batch.

    Source: Mnih et al. 2015 for replay; Schaul et al. 2016 (arXiv:1511.05952), the proportional variant with draws
    stratified over the batch, for priorities.

    Args:
        capacity: transitions kept, of all environments together.
        num_envs: environments that are stepped together.
        obs_shape: shape of one observation.
        obs_dtype: as which they are kept, such as np.uint8 for pictures.
        gamma: discount per step, in [0, 1].
        n_step: rewards summed before the bootstrap.
        priority_exponent: alpha.

    Raises:
        ValueError: if the ring cannot hold two steps of every environment, or a number is out of its range.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        obs_shape: tuple[int, ...],
        *,
        obs_dtype: Any = np.float32,
        gamma: float,
        n_step: int = 1,
        priority_exponent: float = 0.0,
    ) -> None:
        if capacity < 2 * num_envs:
            raise ValueError(f"capacity must be at least 2 steps of {num_envs} environments, got {capacity}: raise it")
        if n_step < 1 or not 0 <= gamma <= 1 or priority_exponent < 0:
            raise ValueError(
                "expected n_step >= 1, gamma in [0, 1] and priority_exponent >= 0, "
                f"got {n_step}, {gamma} and {priority_exponent}"
            )
        self.capacity, self.gamma, self.n_step, self.alpha = capacity, gamma, n_step, priority_exponent
        self._obs = np.zeros((capacity, *obs_shape), dtype=obs_dtype)
        self._next_obs = np.zeros_like(self._obs)
        self._actions = np.zeros(capacity, dtype=np.int64)
        self._rewards = np.zeros(capacity, dtype=np.float32)
        self._terminated = np.zeros(capacity, dtype=np.bool_)
        self._truncated = np.zeros(capacity, dtype=np.bool_)
        self._following = np.full(capacity, -1, dtype=np.int64)  # the slot of the next step; -1 where there is none
        self._envs = np.arange(num_envs)
        self._newest = np.full(num_envs, -1, dtype=np.int64)  # each environment's open step; -1 after an end
        self._tree = SumTree(capacity) if priority_exponent else None
        self._largest = 1.0  # the largest p so far
        self._added = 0

    def __len__(self) -> int:
        """Transitions held."""
        return min(self._added, self.capacity)

    def add(
        self,
        obs: ArrayLike,
        actions: ArrayLike,
        rewards: ArrayLike,
        next_obs: ArrayLike,
        terminated: ArrayLike,
        truncated: ArrayLike,
        valid: ArrayLike | None = None,
    ) -> NDArray[np.int64]:
        """Add one step of every environment, and return the slots it went to.

        Args:
            obs, next_obs: s_t, and the state that the action led to, before any reset. [N, ...]
            actions, rewards: of the step. [N]
            terminated, truncated: bool, in Gymnasium's sense; both end the episode. [N]
            valid: bool, False where an environment only reset, which is no transition; None counts all. [N]
        """
        envs = self._envs if valid is None else np.flatnonzero(valid)
        at = (self._added + np.arange(len(envs))) % self.capacity
        whole = len(envs) == len(self._envs)
        for kept, new in (
            (self._obs, obs), (self._actions, actions), (self._rewards, rewards), (self._next_obs, next_obs),
            (self._terminated, terminated), (self._truncated, truncated),
        ):  # fmt: skip
            kept[at] = new if whole else np.asarray(new)[envs]
        before = self._newest[envs]
        followed = before >= 0
        self._following[before[followed]] = at[followed]
        self._following[at] = -1
        self._newest[envs] = np.where(self._terminated[at] | self._truncated[at], -1, at)
        self._added += len(envs)
        if self._tree:
            self._tree.set(at, np.full(len(at), self._largest**self.alpha))
        return at

    def cut(self, envs: ArrayLike) -> None:
        """Let no further step follow the open ones of some environments, which were lost half-way. [up to N]"""
        self._newest[np.asarray(envs, dtype=np.int64)] = -1

    def sample(self, batch_size: int, rng: np.random.Generator, *, beta: float = 1.0) -> Batch:
        """Draw transitions with replacement.

        Args:
            batch_size: B.
            rng: draws them.
            beta: how much of the bias of prioritised draws the weights take away: 0 none, 1 all. Nothing else reads it.

        Raises:
            ValueError: if the memory is empty.
        """
        if not len(self):
            raise ValueError("the replay memory is empty: add transitions before drawing from it")
        if self._tree is None:
            slots = rng.integers(len(self), size=batch_size)
            return self.gather(slots)
        # 1 - random is in (0, 1], where `find` never meets an empty leaf
        share = (np.arange(batch_size) + 1.0 - rng.random(batch_size)) / batch_size
        slots = self._tree.find(share * self._tree.total)
        return self.gather(slots, self.weights(slots, beta=beta))

    def gather(self, slots: NDArray[np.int64], weights: NDArray[np.float32] | None = None) -> Batch:
        """Return the transitions that lie in some slots, over up to n steps. [B], [B]"""
        rewards, discounts, last = self._sum_n_steps(slots)
        return Batch(
            _rows(self._obs, slots),
            _rows(self._actions, slots),
            torch.from_numpy(rewards),
            _rows(self._next_obs, last),
            _rows(self._terminated, last),
            torch.from_numpy(discounts),
            None if weights is None else torch.from_numpy(weights),
            slots,
        )

    def probabilities(self, slots: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return P(i) of some slots. [B]"""
        if self._tree is None:
            return np.full(len(slots), 1 / len(self))
        return self._tree.leaves[slots] / self._tree.total

    def weights(self, slots: NDArray[np.int64], *, beta: float) -> NDArray[np.float32]:
        """Return (size * P(i))^-beta of some slots, divided by their largest. [B]"""
        weights = (len(self) * self.probabilities(slots)) ** -beta
        return (weights / weights.max()).astype(np.float32)

    def set_priorities(self, slots: NDArray[np.int64], td_errors: ArrayLike) -> None:
        """Make |TD error| plus the floor the priority p of some slots; does nothing where draws are uniform. [B], [B]

        Raises:
            ValueError: if an error is not finite.
        """
        if self._tree is None:
            return
        priorities = np.abs(np.asarray(td_errors, dtype=np.float64)) + PRIORITY_FLOOR
        self._tree.set(slots, priorities**self.alpha)
        self._largest = max(self._largest, float(priorities.max()))

    def state(self) -> dict[str, Any]:
        """Return a copy of all that is held, as tensors and plain values."""
        held = {name: torch.from_numpy(array[: len(self)].copy()) for name, array in self._arrays().items()}
        leaves = None if self._tree is None else torch.from_numpy(self._tree.leaves[: len(self)].copy())
        newest = torch.from_numpy(self._newest.copy())
        return {**held, "newest": newest, "priorities": leaves, "largest": self._largest, "added": self._added}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go back to a state that `state` returned.

        Raises:
            ValueError: if it is that of a memory of another size or kind.
        """
        self._added = int(state["added"])
        arrays = self._arrays()
        for name, array in arrays.items():
            expected = (len(self), *array.shape[1:])
            if tuple(state[name].shape) != expected:
                raise ValueError(
                    f"expected {name} of shape {expected}, got {tuple(state[name].shape)}: another memory's"
                )
        if (state["priorities"] is None) != (self._tree is None) or len(state["newest"]) != len(self._newest):
            raise ValueError("the state is of a memory with other priorities or another number of environments")
        for name, array in arrays.items():
            array[: len(self)] = state[name].numpy()
        self._newest[:] = state["newest"].numpy()
        self._largest = float(state["largest"])
        if self._tree is not None:
            self._tree = SumTree(self.capacity)
            self._tree.set(np.arange(len(self)), state["priorities"].numpy())

    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "obs": self._obs,
            "actions": self._actions,
            "rewards": self._rewards,
            "next_obs": self._next_obs,
            "terminated": self._terminated,
            "truncated": self._truncated,
            "following": self._following,
        }

    def _sum_n_steps(
        self, slots: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Return the discounted rewards, the discount of what follows, and the slot of the last step summed."""
        last, rewards = slots, self._rewards[slots]
        discounts = np.full(len(slots), self.gamma, dtype=np.float32)
        for _ in range(self.n_step - 1):
            following = self._following[last]
            goes_on = following >= 0
            last = np.where(goes_on, following, last)
            rewards += np.where(goes_on, discounts * self._rewards[last], 0)
            discounts = np.where(goes_on, discounts * np.float32(self.gamma), discounts)
        return rewards, discounts, last


def _rows(array: NDArray[Any], slots: NDArray[np.int64]) -> Tensor:
    """Gather rows: `take` that clips, the slots being right already, is several times faster than an index."""
    return torch.from_numpy(array.take(slots, axis=0, mode="clip"))
