"""DQN: learn the values of discrete actions from a replay memory, and act greedily on them, now and then at random.

With it come Double DQN, dueling heads, returns over n steps and prioritised replay, each by its own setting and each
alone or together. A step of the environment that was truncated bootstraps from the state before the reset; one that
terminated does not.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F

from classic_rl.agents import Agent, load_policy, save_policy
from classic_rl.dqn_config import DQNConfig, config_from
from classic_rl.envs import EnvSource, Stepper, vector_of
from classic_rl.losses import double_q_targets, dueling_q_values, q_targets
from classic_rl.masked import check_same_shape
from classic_rl.networks import Adam, Features, ReLU, torso, without_gradient
from classic_rl.networks import linear as dense
from classic_rl.replay import Batch, Replay
from classic_rl.schedules import linear

AT_ONCE = 16
"""Batches that are drawn and valued at once, at most: more of them leave a processor's cache."""


def td_loss(predicted: Tensor, targets: Tensor, *, delta: float | None = 1.0, weights: Tensor | None = None) -> Tensor:
    """Weigh TD errors by Huber's loss, or by half their square, and take the mean.

        L = error^2 / 2                        where |error| <= delta, or everywhere without a delta
        L = delta * (|error| - delta / 2)      beyond, error = target - prediction

    Source: Huber 1964; in DQN the gradient it has is the "error clipping" of Mnih et al. 2015.

    Args:
        predicted: Q(s, a). [B]
        targets: y, constants. [B]
        delta: where the square turns into a line, in the unit of the errors.
        weights: of the losses in the mean; None weighs all by 1. [B]

    Returns:
        The mean loss. []

    Raises:
        ValueError: if the shapes differ.

    >>> td_loss(torch.zeros(2), torch.tensor([0.5, -3.0]))
    tensor(1.3125)
    """
    check_same_shape(targets=targets, predicted=predicted)
    how = "mean" if weights is None else "none"
    if delta is None:
        loss = F.mse_loss(predicted, targets.detach(), reduction=how) / 2
    else:
        loss = F.huber_loss(predicted, targets.detach(), reduction=how, delta=delta)
    return loss if weights is None else (weights * loss).mean()


@torch.no_grad()
def td_targets(batch: Batch, online: nn.Module, next_values: Tensor, *, double: bool) -> Tensor:
    """Return y by `q_targets` or, if `double`, `double_q_targets`.

    Args:
        batch: B transitions.
        online: the network that learns.
        next_values: of the target network, at `batch.next_obs`. [B, A]
        double: whether the online network chooses among them.

    Returns:
        The targets. [B]
    """
    if not double:
        return q_targets(batch.rewards, next_values, batch.terminated, gamma=batch.discounts)
    chosen_by = online(batch.next_obs)
    return double_q_targets(batch.rewards, chosen_by, next_values, batch.terminated, gamma=batch.discounts)


def value_of(batch: Batch, online: nn.Module) -> Tensor:
    """Return Q(s, a). [B]"""
    return online(batch.obs).gather(-1, batch.actions[:, None]).squeeze(-1)


@torch.no_grad()
def move_towards(target: nn.Module, online: nn.Module, *, rate: float) -> None:
    """Move a target network by a share of the way to the online one: target = (1 - rate) * target + rate * online.

    Source: Polyak & Juditsky 1992 for averages of weights; as a slow target, Lillicrap et al. 2016 (arXiv:1509.02971).
    """
    for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, rate)


class QNetwork(nn.Module):
    """Values of actions: layers for vectors or images, and one head, or two that `dueling_q_values` joins.

    Args:
        shape: of one observation's features, [D] or [C, H, W].
        actions: A.
        hidden: widths of the dense layers.
        dueling: whether there are two heads.
        generator: draws the weights.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        actions: int,
        hidden: tuple[int, ...],
        *,
        dueling: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.torso, width = torso(shape, hidden, activation=ReLU, generator=generator)
        self.head = dense(width, actions, gain=1.0, generator=generator)
        self.value_head = dense(width, 1, gain=1.0, generator=generator) if dueling else None

    @property
    def ranks(self) -> nn.Sequential:
        """The layers whose outputs rank the actions of a state as their values do. [B, ...] -> [B, A]"""
        return nn.Sequential(*self.torso, self.head)

    def forward(self, features: Tensor) -> Tensor:
        """Return Q(s, .). [B, ...] -> [B, A]"""
        shared = self.torso(features)
        values = self.head(shared)
        return values if self.value_head is None else dueling_q_values(self.value_head(shared).squeeze(-1), values)


class QPolicy:
    """A network that acts: on its best action, or at random as often as it is told.

    Args:
        observation_space, action_space: of one environment; actions are Discrete.
        config: settings of the network, and the seed of its first weights.

    Raises:
        ValueError: if the actions are not discrete.
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, config: DQNConfig) -> None:
        if not isinstance(action_space, spaces.Discrete):
            raise ValueError(
                f"DQN compares the values of a few actions, so they must be Discrete, got {action_space}: use PPO"
            )
        self.observation_space, self.action_space, self.config = observation_space, action_space, config
        self.features = Features(observation_space, scale=config.scale_observations)
        self.network = QNetwork(
            self.features.shape, int(action_space.n), config.hidden, dueling=config.dueling,
            generator=torch.Generator().manual_seed(config.seed),
        )  # fmt: skip
        self.rng = np.random.default_rng([config.seed, 1])  # of `act`; training has another, which `act` leaves alone

    @cached_property
    def _ranks(self) -> Callable[[np.ndarray], np.ndarray]:
        # At the first action: an optimizer made after the policy moves the weights to another place.
        return without_gradient(self.network.ranks)

    def act(self, obs: np.ndarray, *, deterministic: bool = False) -> np.ndarray:
        """Return the best actions, or random ones as often as at the end of training. [N, ...] -> [N]"""
        return self.explore(self.features(obs), 0.0 if deterministic else self.config.exploration.end, self.rng)

    def explore(self, features: np.ndarray, epsilon: float, rng: np.random.Generator) -> np.ndarray:
        """Return the best actions, each replaced by a random one with probability `epsilon`. [N, ...] -> [N]"""
        start, count = self.action_space.start, len(features)
        if epsilon == 0:
            return self._ranks(features).argmax(axis=-1) + start
        random = rng.random(count) < epsilon
        chance = np.count_nonzero(random)
        actions = self._ranks(features).argmax(axis=-1) if chance < count else np.zeros(count, dtype=np.int64)
        if chance:
            actions[random] = rng.integers(self.action_space.n, size=chance)
        return actions + start

    def save(self, folder: str | Path, algorithm: str = "dqn") -> None:
        """Write a policy folder: see `classic_rl.agents`."""
        save_policy(
            folder, algorithm=algorithm, config=self.config, observation_space=self.observation_space,
            action_space=self.action_space, tensors=self.network.state_dict(),
        )  # fmt: skip

    @classmethod
    def load(cls, folder: str | Path) -> QPolicy:
        """Read what `save` wrote. Raises ValueError if it is a policy of another algorithm."""
        found = load_policy(folder, "dqn")
        policy = cls(found.observation_space, found.action_space, config_from(found.config))
        policy.network.load_state_dict(found.tensors)
        return policy


class DQN(Agent[QPolicy]):
    """The loop: see `Agent` for what it has beside `steps`.

    Args:
        env: with discrete actions: an id, a function that makes one, or a vector of them made already.
        config: the settings.

    Attributes:
        updates: gradient steps taken so far.
        step, total_steps: reports so far, and of the whole run.
    """

    name = "dqn"

    def __init__(self, env: EnvSource, config: DQNConfig) -> None:
        self.config = config
        envs = vector_of(env, config.num_envs)
        self.policy = QPolicy(envs.single_observation_space, envs.single_action_space, config)
        self.network = self.policy.network
        self.target = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = Adam(self.network, max_grad_norm=config.max_grad_norm)
        self.rng = np.random.default_rng([config.seed, 2])
        self.stepper = Stepper(envs, config.seed)
        self.replay = Replay(
            config.replay.capacity, envs.num_envs, self.policy.features.shape,
            obs_dtype=np.uint8 if self.policy.features.is_image else np.float32, gamma=config.gamma,
            n_step=config.replay.n_step, priority_exponent=config.replay.priority_exponent,
        )  # fmt: skip
        explore, run = config.exploration, config.env_steps
        self._epsilon = linear(explore.start, explore.end, max(1, int(explore.fraction * run)))
        self._learning_rate = linear(config.learning_rate, config.final_learning_rate, run)
        self._beta = linear(config.replay.priority_correction, 1.0, run)
        self.parts = {"optimizer": self.optimizer, "replay": self.replay, "stepper": self.stepper}
        self.updates = self.step = 0
        self.total_steps = config.total_steps

    @staticmethod
    def load(folder: str | Path) -> QPolicy:
        """Read a policy that `save` wrote: it acts, and needs no environment."""
        return QPolicy.load(folder)

    def steps(self) -> Iterator[dict[str, float]]:
        """Run from where it is to `config.env_steps`; metrics come after every `config.report_every` of them."""
        while self.step < self.total_steps:
            yield self._report_of(min((self.step + 1) * self.config.report_every, self.config.env_steps))

    def _report_of(self, until: int) -> dict[str, float]:
        started, first, told = time.perf_counter(), self.stepper.env_steps, _Told()
        while self.stepper.env_steps < until:
            self._interact()
            self._learn(self._updates_due(), told)
        self.step += 1
        took = time.perf_counter() - started
        return {
            **self.stepper.metrics(),
            "steps/total": float(self.stepper.env_steps),
            "steps/per_second": (self.stepper.env_steps - first) / took,
            **told.means(),
            "optim/updates": float(self.updates),
            "optim/learning_rate": self._learning_rate(self.stepper.env_steps),
            "policy/epsilon": self._epsilon_now(),
            "time/step": took,
        }

    def _epsilon_now(self) -> float:
        return self._epsilon(self.stepper.env_steps) if self.stepper.env_steps >= self.config.learning_starts else 1.0

    def _interact(self) -> None:
        """Take one step in every environment, and remember it."""
        features = self.policy.features
        seen_from = features(self.stepper.obs)
        actions = self.policy.explore(seen_from, self._epsilon_now(), self.rng)
        seen = self.stepper.step(actions)
        self.replay.add(
            seen_from, actions - self.policy.action_space.start, seen.rewards, features(seen.next_obs),
            seen.terminated, seen.truncated, seen.valid,
        )  # fmt: skip

    def _updates_due(self) -> int:
        if self.stepper.env_steps < self.config.learning_starts or not len(self.replay):
            return 0
        every, before = self.config.train_every, self.stepper.env_steps - self.stepper.num_envs
        return (self.stepper.env_steps // every - before // every) * self.config.updates

    def _learn(self, updates: int, told: _Told) -> None:
        """Take gradient steps; the batches of several are drawn and valued at once where none changes the next."""
        size, beta = self.config.batch_size, self._beta(self.stepper.env_steps)
        while updates:
            count = min(updates, self._independent())
            drawn = self.replay.sample(count * size, self.rng, beta=beta)
            with torch.no_grad():
                next_values = self.target(drawn.next_obs)
            for batch, values in zip(drawn.split(size), next_values.split(size), strict=True):
                self._update(batch, values, told)
            updates -= count

    def _independent(self) -> int:
        """Count updates ahead whose draws depend on no priorities, and whose target is the same."""
        every = self.config.target.every
        return 1 if self.config.replay.priority_exponent else min(AT_ONCE, every - self.updates % every)

    def _update(self, batch: Batch, next_values: Tensor, told: _Told) -> None:
        """Take one gradient step on one batch.

        Raises:
            FloatingPointError: if the loss is not finite; the weights are as they were.
        """
        config = self.config
        targets = td_targets(batch, self.network, next_values, double=config.target.double)
        predicted = value_of(batch, self.network)
        loss = td_loss(predicted, targets, delta=config.huber_delta, weights=batch.weights)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"the loss of update {self.updates + 1} is not finite: the values diverged, or a reward is not finite. "
                "The weights are as they were; lower the learning rate, or look at the environment's rewards."
            )
        norm = self.optimizer.step(loss, learning_rate=self._learning_rate(self.stepper.env_steps))
        self.updates += 1
        if self.updates % config.target.every == 0:
            move_towards(self.target, self.network, rate=config.target.rate)
        errors = targets - predicted.detach()
        self.replay.set_priorities(batch.slots, errors)
        told.add(loss.item(), errors, norm)

    # --- going on exactly where it was ---

    def state(self) -> dict[str, Any]:
        """Return a copy of all that the next step depends on, the replay memory among it."""
        target = {name: weight.clone() for name, weight in self.target.state_dict().items()}
        return {**super().state(), "updates": self.updates, "target": target, "rng": self.rng.bit_generator.state}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        super().load_state(state)
        self.updates = int(state["updates"])
        self.target.load_state_dict(state["target"])
        # An environment that could not be brought back has begun anew: nothing may follow its open episode.
        lost = (self.stepper.obs != state["stepper"]["obs"].numpy()).reshape(self.stepper.num_envs, -1).any(axis=1)
        self.replay.cut(np.flatnonzero(lost))
        self.rng.bit_generator.state = state["rng"]


class _Told:
    """What updates say until the next report."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.errors: list[Tensor] = []
        self.norms: list[Tensor] = []

    def add(self, loss: float, errors: Tensor, norm: Tensor) -> None:
        self.losses.append(loss)
        self.errors.append(errors)
        self.norms.append(norm)

    def means(self) -> dict[str, float]:
        if not self.losses:
            return {}
        return {
            "loss/td": float(np.mean(self.losses)),
            "value/td_error": torch.cat(self.errors).abs().mean().item(),
            "optim/grad_norm": torch.stack(self.norms).mean().item(),
        }
