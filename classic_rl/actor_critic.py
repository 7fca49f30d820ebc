"""A policy over actions with a critic beside it, and how it plays: what REINFORCE, A2C and PPO share.

Acting runs in NumPy, learning in PyTorch. `actions` are always as they were drawn: categories from 0, Gaussians before
they are clipped or squashed; `to_env` makes of them what the environment takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn import functional as F

from classic_rl.agents import load_policy, save_policy
from classic_rl.envs import EnvSource, Stepper, Transition, vector_of
from classic_rl.networks import Features, Tanh, network, shape_of, without_gradient
from classic_rl.normalize import RunningMoments
from classic_rl.on_policy_config import NetworkConfig

# --- distributions over actions ---


class Categorical(nn.Module):
    """One category of each of one or more kinds, all independent; the network gives the logits of all, side by side.

    A single kind has actions [N], several (MultiDiscrete, MultiBinary) have actions [N, kinds].
    """

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary) -> None:
        super().__init__()
        self.sizes: list[int]
        if isinstance(space, spaces.Discrete):
            self.sizes, self.start = [int(space.n)], space.start
        elif isinstance(space, spaces.MultiDiscrete):
            self.sizes, self.start = space.nvec.reshape(-1).tolist(), space.start
        else:
            self.sizes, self.start = [2] * math.prod(shape_of(space)), 0
        self.single, self.shape, self.dtype = isinstance(space, spaces.Discrete), shape_of(space), space.dtype
        self.outputs = sum(self.sizes)

    def noise(self, rng: np.random.Generator, *shape: int) -> np.ndarray:
        """Return what makes `best` of outputs draw, once it is added to them. [*shape, outputs]"""
        return rng.gumbel(size=(*shape, self.outputs))  # the largest logit plus Gumbel noise is a draw from the softmax

    def best(self, outputs: np.ndarray) -> np.ndarray:
        """Return the most likely actions. [N, outputs] -> [N] or [N, kinds]"""
        if self.single:
            return outputs.argmax(axis=-1)
        parts = np.split(outputs, np.cumsum(self.sizes)[:-1], axis=-1)
        return np.stack([part.argmax(axis=-1) for part in parts], axis=-1)

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        """Return what the environments take."""
        return (actions.reshape(len(actions), *self.shape) + self.start).astype(self.dtype)

    def forward(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities of actions, and entropies. [..., B, outputs] and actions -> [..., B] each"""
        if self.single:
            return _categorical(outputs, actions)
        parts = zip(outputs.split(self.sizes, dim=-1), actions.unbind(dim=-1), strict=True)
        judged = [_categorical(part, chosen) for part, chosen in parts]
        return sum(one for one, _ in judged), sum(other for _, other in judged)  # pyright: ignore[reportReturnType]


class Gaussian(nn.Module):
    """Independent normal distributions; the network gives the means, the spread is learned but the same everywhere.

    Actions go to the environment clipped to its bounds; log-probabilities are those of the unclipped ones. [N, D]
    """

    def __init__(self, space: spaces.Box) -> None:
        super().__init__()
        self.outputs = math.prod(space.shape)
        self.low, self.high, self.dtype = space.low, space.high, space.dtype
        self.log_std = nn.Parameter(torch.zeros(self.outputs))

    def noise(self, rng: np.random.Generator, *shape: int) -> np.ndarray:
        """Return what makes `best` of outputs draw, once it is added to them. [*shape, D]"""
        noise = rng.standard_normal((*shape, self.outputs), dtype=np.float32)
        return np.exp(self.log_std.detach().numpy()) * noise

    def best(self, outputs: np.ndarray) -> np.ndarray:
        """Return the means. [N, D] -> [N, D]"""
        return outputs

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        """Return what the environments take."""
        return np.clip(actions.reshape(len(actions), *self.low.shape), self.low, self.high).astype(self.dtype)

    def forward(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-densities of actions, and entropies. [B, D], [B, D] -> [B], [B]"""
        distance = ((actions - outputs) * torch.exp(-self.log_std)).square().sum(-1)
        width = self.log_std.sum(-1)
        logprobs = -distance / 2 - width - self.outputs * math.log(2 * math.pi) / 2
        entropy = width + self.outputs * (1 + math.log(2 * math.pi)) / 2
        return logprobs, entropy.expand(logprobs.shape)


class SquashedGaussian(Gaussian):
    """A `Gaussian` squashed by tanh into the bounds of the environment, so that no action lies outside.

    Densities are of tanh(u), u the action as drawn: log p(tanh(u)) = log N(u) - sum log(1 - tanh(u)^2). The entropy has
    no closed form and is estimated from the actions given: that of the Gaussian plus the change of volume at them.

    Source: Haarnoja et al. 2018 (arXiv:1801.01290), appendix on bounds.
    """

    def __init__(self, space: spaces.Box) -> None:
        super().__init__(space)
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ValueError(f"expected bounds to squash actions into, got {space}: use squash_actions=False.")

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        """Return what the environments take."""
        share = (np.tanh(actions.reshape(len(actions), *self.low.shape)) + 1) / 2
        return super().to_env(self.low + share * (self.high - self.low))  # by rounding the ends may lie outside

    def forward(self, outputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-densities of actions, and estimated entropies. [B, D], [B, D] -> [B], [B]"""
        logprobs, entropy = super().forward(outputs, actions)
        std = self.log_std.exp()
        # The same actions as functions of mean and spread, for the gradient of the entropy.
        moved = outputs + std * ((actions - outputs) / std).detach()
        return logprobs - _log_slope_of_tanh(actions), entropy + _log_slope_of_tanh(moved)


Distribution = Categorical | Gaussian


def distribution_over(space: spaces.Space, *, squash: bool = False) -> Distribution:
    """Return the distribution over the actions of a space: categories, or normal ones for a Box."""
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return Categorical(space)
    if isinstance(space, spaces.Box):
        return SquashedGaussian(space) if squash else Gaussian(space)
    raise ValueError(f"expected a Discrete, MultiDiscrete, MultiBinary or Box space of actions, got {space}")


def _categorical(logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    logprobs = logits.log_softmax(dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    return logprobs.gather(-1, actions.unsqueeze(-1)).squeeze(-1), entropy


def _log_slope_of_tanh(u: Tensor) -> Tensor:
    # 1 - tanh(u)^2 rounds to 0 where u is large; this form of its logarithm does not.
    return (2 * (math.log(2) - u - F.softplus(-2 * u))).sum(dim=-1)


# --- the policy ---


ACTIVATIONS = {"tanh": Tanh, "relu": nn.ReLU}


class Judged(NamedTuple):
    """What a policy says of actions, and its critic of states; values are 0 where there is no critic. [B] each"""

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


class ActorCritic(nn.Module):
    """A policy, and a critic if wanted. `act` is for those who play; `forward` for those who learn."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        config: NetworkConfig,
        *,
        seed: int = 0,
        critic: bool = True,
    ) -> None:
        super().__init__()
        self.config, self.spaces = config, (observation_space, action_space)
        self.encode = Features(observation_space)
        self.distribution = distribution_over(action_space, squash=config.squash_actions)
        generator = torch.Generator().manual_seed(seed)
        kinds = {"activation": ACTIVATIONS[config.activation], "generator": generator}
        # A policy begins near uniform, so that the first updates see all actions.
        self.actor = network(self.encode.shape, config.hidden, self.distribution.outputs, last_gain=0.01, **kinds)
        self.critic = network(self.encode.shape, config.hidden, 1, **kinds) if critic else None
        self.moments: RunningMoments | None = None
        if config.normalize_observations:
            if self.encode.is_image:
                raise ValueError("images are divided by 255 already: use normalize_observations=False.")
            self.moments = RunningMoments(self.encode.shape)
        self._rng = np.random.default_rng(seed)

    def features(self, obs: np.ndarray) -> np.ndarray:
        """Return what the networks take. [N, ...] -> [N, D] or [N, C, H, W]"""
        encoded = self.encode(obs)
        return encoded if self.moments is None else self.moments.normalize(encoded)

    def act(self, obs: np.ndarray, *, deterministic: bool = False) -> np.ndarray:
        """Return actions for the environments; drawn ones come from a generator apart from training's."""
        outputs = self.outputs()(self.features(obs))
        if not deterministic:
            outputs = outputs + self.distribution.noise(self._rng, len(obs))
        return self.distribution.to_env(self.distribution.best(outputs))

    def outputs(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return the actor without gradient: what it gives the distribution. [N, ...] -> [N, outputs]"""
        return without_gradient(self.actor)

    def watch(self, seen: Sequence[np.ndarray], valid: np.ndarray) -> None:
        """Let the moments, if there are any, take in the observations of steps that count. T of [N, ...], [N, T]"""
        if self.moments is not None:
            self.moments.update(np.stack([self.encode(obs) for obs in seen], axis=1)[valid])

    def forward(self, features: Tensor, actions: Tensor) -> Judged:
        """Judge actions as they were drawn. [B, ...], [B] or [B, D] -> [B] each"""
        logprobs, entropy = self.distribution(self.actor(features), actions)
        return Judged(logprobs, entropy, self.values(features))

    def values(self, features: Tensor) -> Tensor:
        """Return the critic's values. [B, ...] -> [B]"""
        return torch.zeros(len(features)) if self.critic is None else self.critic(features).squeeze(-1)

    def save(self, folder: str | Path, algorithm: str) -> None:
        """Write a policy folder: weights, statistics of observations, networks and spaces."""
        tensors = dict(self.state_dict())
        if self.moments is not None:
            tensors |= {f"observations.{name}": torch.as_tensor(x) for name, x in self.moments.state().items()}
        seen, done = self.spaces
        save_policy(
            folder, algorithm=algorithm, config=asdict(self.config), observation_space=seen, action_space=done,
            tensors=tensors,
        )  # fmt: skip

    @classmethod
    def load(cls, folder: str | Path, algorithm: str) -> ActorCritic:
        """Read a policy folder; the policy acts as the one saved did."""
        saved = load_policy(folder, algorithm)
        tensors = dict(saved.tensors)
        policy = cls(
            saved.observation_space, saved.action_space, NetworkConfig(**saved.config),
            critic=any(name.startswith("critic.") for name in tensors),
        )  # fmt: skip
        if policy.moments is not None:
            policy.moments.load_state({name: tensors.pop(f"observations.{name}") for name in ("mean", "var", "count")})
        policy.load_state_dict(tensors)
        return policy


# --- playing ---


@dataclass(frozen=True)
class Rollout:
    """Steps of N environments, time last but for what one step holds.

    features: [N, T, ...]
    actions: as drawn. [N, T] or [N, T, D]
    rewards: float32, what is learned from. [N, T]
    true_rewards: float32, as they were before any wrapper changed them. [N, T]
    terminated, truncated: bool, in Gymnasium's sense. [N, T]
    valid: bool; False where nothing was done that could be learned from. [N, T]
    cut: bool, steps whose successor `features` do not show: truncated ones, and the last where still open. [N, T]
    cut_features: those successors. [number of cuts, ...]
    """

    features: Tensor
    actions: Tensor
    rewards: Tensor
    true_rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    cut: Tensor
    cut_features: Tensor

    @property
    def shape(self) -> torch.Size:
        """[N, T]"""
        return self.rewards.shape

    def split(self, count: int) -> list[Rollout]:
        """Part the environments into equal blocks."""
        *laid_out, hidden = (getattr(self, field.name) for field in fields(self))
        cuts = self.cut.view(count, -1).sum(dim=1).tolist()
        return [Rollout(*part) for part in zip(*(x.chunk(count) for x in laid_out), hidden.split(cuts), strict=True)]


class Actor(Protocol):
    """What plays: an `ActorCritic`, or several side by side, each in environments of its own."""

    distribution: Distribution

    def features(self, obs: np.ndarray) -> np.ndarray: ...  # noqa: D102

    def outputs(self) -> Callable[[np.ndarray], np.ndarray]: ...  # noqa: D102

    def watch(self, seen: Sequence[np.ndarray], valid: np.ndarray) -> None: ...  # noqa: D102


Played = tuple[np.ndarray, np.ndarray, Transition]
"""One step of all environments: features, actions as drawn, and what came of them."""


def play(policy: Actor, stepper: Stepper, noise: Iterable[np.ndarray]) -> Iterator[Played]:
    """Take a step in every environment for each noise that is added to the policy's outputs. [N, outputs] each"""
    outputs, distribution = policy.outputs(), policy.distribution
    for added in noise:
        features = policy.features(stepper.obs)
        actions = distribution.best(outputs(features) + added)
        yield features, actions, stepper.step(distribution.to_env(actions))


def rollout_of(policy: Actor, played: Sequence[Played]) -> Rollout:
    """Lay steps out by environment, time last, and let the policy watch what it saw."""
    features, actions, steps = zip(*played, strict=True)
    rewards, true_rewards, terminated, truncated, valid = (
        np.stack([getattr(step, name) for step in steps], axis=1)
        for name in ("rewards", "true_rewards", "terminated", "truncated", "valid")
    )
    cut = truncated.copy()
    cut[:, -1] |= ~terminated[:, -1]
    after = {t: policy.features(steps[t].next_obs) for t in np.flatnonzero(cut.any(axis=0))}
    hidden = [after[t][n] for n, t in np.argwhere(cut)]
    cut_features = np.stack(hidden) if hidden else features[0][:0]
    # After the rollout: what was acted on is what is learned from.
    policy.watch([step.obs for step in steps], valid)
    seen, done = np.stack(features, axis=1), np.stack(actions, axis=1)
    arrays = (seen, done, rewards, true_rewards, terminated, truncated, valid, cut, cut_features)
    return Rollout(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


@dataclass
class Player:
    """A policy in its environments: it plays, and can be brought back to exactly where it was."""

    policy: ActorCritic
    stepper: Stepper
    rng: np.random.Generator

    @classmethod
    def make(cls, env: EnvSource, num_envs: int, network: NetworkConfig, *, seed: int, critic: bool = True) -> Player:
        """Make environments and a policy for them, all chances from one seed."""
        envs = vector_of(env, num_envs)
        policy = ActorCritic(envs.single_observation_space, envs.single_action_space, network, seed=seed, critic=critic)
        return cls(policy, Stepper(envs, seed), np.random.default_rng([seed, 1]))

    def play(self, steps: int) -> Rollout:
        """Go on for some steps in every environment, whatever episodes they belong to."""
        noise = self.policy.distribution.noise(self.rng, steps, self.stepper.num_envs)
        return rollout_of(self.policy, list(play(self.policy, self.stepper, noise)))

    def play_episodes(self, most_steps: int) -> Rollout:
        """Play one whole episode in each environment, or its first `most_steps`; what follows an end is not valid."""
        envs = self.stepper.num_envs
        self.stepper.restart()
        noise = (self.policy.distribution.noise(self.rng, envs) for _ in range(most_steps))
        ended = np.zeros(envs, dtype=bool)
        rows: list[Played] = []
        for features, actions, step in play(self.policy, self.stepper, noise):
            rows.append((features, actions, step._replace(valid=step.valid & ~ended)))
            ended = ended | step.terminated | step.truncated
            if ended.all():
                break
        return rollout_of(self.policy, rows)

    def state(self) -> dict[str, Any]:
        """Return environments, generator and statistics; the weights are with their optimizer."""
        moments = self.policy.moments
        return {
            "stepper": self.stepper.state(),
            "rng": self.rng.bit_generator.state,
            "moments": moments.state() if moments else None,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.stepper.load_state(state["stepper"])
        self.rng.bit_generator.state = state["rng"]
        if self.policy.moments:
            self.policy.moments.load_state(state["moments"])


def next_values(policy: ActorCritic, rollout: Rollout, values: Tensor) -> Tensor:
    """Return V(s_{t+1}): the next column, or the value of the true successor where a cut hides it. [N, T]"""
    with torch.no_grad():
        following = values.detach().roll(-1, dims=-1)
        following[rollout.cut] = policy.values(rollout.cut_features)
    return following


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """Return 1 - Var(returns - values) / Var(returns): 1 is perfect, 0 no better than a constant; a mean over rows.

    Args:
        values, returns: [..., B]

    >>> round(explained_variance(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.5, 1.0, 3.5, 6.0])), 4)
    0.7097
    """
    spread, left = (x.var(dim=-1, correction=0) for x in (returns, returns - values))
    return torch.where(spread > 1e-12, 1 - left / spread, 0.0).mean().item()
