"""Gymnasium environments by the dozen: making them, and stepping them so that every row is a true transition.

Gymnasium resets an environment that ended in one of three ways, and two of them lose or mix up something: `Stepper`
knows all three, and whoever learns sees none of them.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

EnvSource = str | Callable[[], gymnasium.Env] | VectorEnv
"""An environment's id, a function that makes one, or a vector of them that is made already."""


def make_envs(env: str | Callable[[], gymnasium.Env], num_envs: int, **kwargs: Any) -> SyncVectorEnv:
    """Make equal environments that step one after another in this process and are reset by `Stepper`.

    Always copies of the one environment, never the vector environment that some ids register beside it: those reset
    by rules of their own.

    Args:
        env: an id known to Gymnasium, or a function that makes one environment.
        num_envs: N, at least 1.
        kwargs: for `gymnasium.make`, with an id only.

    Raises:
        ValueError: if `num_envs` is below 1, or kwargs come with a function.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    if not isinstance(env, str):
        if kwargs:
            raise ValueError(f"got {sorted(kwargs)} for a function that makes environments: set them inside of it")
        return SyncVectorEnv([env] * num_envs, autoreset_mode=AutoresetMode.DISABLED)

    def maker(index: int) -> Callable[[], gymnasium.Env]:
        # One checked environment tells of a fault as well as all of them do, and the check costs time in each step.
        return lambda: gymnasium.make(env, **{"disable_env_checker": index > 0, **kwargs})

    return SyncVectorEnv([maker(index) for index in range(num_envs)], autoreset_mode=AutoresetMode.DISABLED)


def vector_of(env: EnvSource, num_envs: int) -> VectorEnv:
    """Return a vector of environments as it is, and of anything else `num_envs` made by `make_envs`.

    Raises:
        ValueError: if a vector holds another number of environments: updates and steps are counted by `num_envs`.
    """
    if not isinstance(env, VectorEnv):
        return make_envs(env, num_envs)
    if env.num_envs != num_envs:
        raise ValueError(
            f"num_envs is {num_envs}, but the vector has {env.num_envs} environments: set num_envs={env.num_envs}"
        )
    return env


TRUE_REWARD = "true_reward"
"""Where a wrapper that changes rewards leaves in its `info` what the environment gave; returns are counted by that."""


class Transition(NamedTuple):
    """One step of N environments.

    obs: what was acted on. [N, ...]
    actions: what was done. [N, ...]
    rewards: float32, what is learned from. [N]
    true_rewards: float32, as they were before any wrapper changed them. [N]
    next_obs: what that led to; where an episode ended, its last observation, not the first of the next. [N, ...]
    terminated: bool, the task ended: no future. [N]
    truncated: bool, a limit cut the episode, which had a future; never with `terminated`. [N]
    valid: bool; False marks a row in which the environment was reset and nothing was done: never learn from it. [N]
    """

    obs: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    true_rewards: np.ndarray
    next_obs: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray


class Episode(NamedTuple):
    """An episode that ended: the sum of its rewards, undiscounted and before any shaping, and its steps."""

    total: float
    length: int


class Stepper:
    """Steps environments, resets those that ended, and counts episodes; `obs` is what to act on now. [N, ...]

    With environments of `make_envs` every row is a transition, and `state` brings back exactly where they were. Those
    of others may reset in any way: in Gymnasium's NEXT_STEP the row after an end is not `valid`.

    Args:
        envs: what to step.
        seed: of all, or one for each of equal blocks of them, which begin as they would alone.

    Attributes:
        obs: the observations to act on. [N, ...]
        latest: the latest 100 episodes that ended, of each block of environments.
        episodes: how many ended since the start.
        env_steps: steps since the start, of all environments together.
    """

    def __init__(self, envs: VectorEnv, seed: int | Sequence[int]) -> None:
        seeds = [seed] if isinstance(seed, int) else seed
        self.envs, self.num_envs = envs, envs.num_envs
        self._mode = _mode_of(envs)
        # Only such environments show their generators before a reset, and can be begun again. What is derived of their
        # class may step in a way of its own.
        self._sync = envs if type(envs) is SyncVectorEnv and self._mode is AutoresetMode.DISABLED else None
        _check_arrays(envs.single_observation_space, "observation")
        _check_arrays(envs.single_action_space, "action")
        self._block = self.num_envs // len(seeds)
        # of each environment a seed, or its generator's state before the reset
        self._origins: list[Any] = [origin for one in seeds for origin in _seeds(one, self._block)]
        self.obs = self._reset(list(self._origins))
        self.latest: list[deque[Episode]] = [deque(maxlen=100) for _ in seeds]
        self.episodes = self.env_steps = 0
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._fresh = np.zeros(self.num_envs, dtype=bool)  # will be reset instead of stepped: NEXT_STEP alone
        self._done: list[list[Any]] = [[] for _ in range(self.num_envs)]  # the open episodes' actions

    def step(self, actions: np.ndarray) -> Transition:
        """Do one action in each environment. [N, ...]"""
        obs, fresh, step = self.obs, self._fresh, self._one_by_one if self._sync else self.envs.step
        seen, rewards, terminated, truncated, infos = step(actions)
        seen = np.array(seen, dtype=self.obs.dtype)  # a copy: environments may write into what they gave
        ended, valid = terminated | truncated, ~fresh
        earned = _true_rewards(rewards, infos)
        self._count(earned, valid, actions)
        next_obs = self.obs = seen
        if np.count_nonzero(ended):
            self._note(ended)
            next_obs, self.obs = self._after_an_end(seen, ended, infos)
            truncated = truncated & ~terminated
        self._fresh = ended if self._mode is AutoresetMode.NEXT_STEP else fresh
        rewards, earned = rewards.astype(np.float32), earned.astype(np.float32)
        return Transition(obs, actions, rewards, earned, next_obs, terminated, truncated, valid)

    def restart(self) -> None:
        """Leave the open episodes, which then count nowhere, and begin new ones in all environments."""
        if self._sync:
            self._origins = [_generator(env).state for env in self._sync.envs]
        self.obs = np.array(self.envs.reset()[0])
        self._done = [[] for _ in self._done]
        self._returns[:], self._lengths[:], self._fresh = 0.0, 0, np.zeros(self.num_envs, dtype=bool)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the latest episodes, those on returns and lengths once there is one."""
        means = self.latest_means()
        if not len(means):
            return {"episode/count": 0.0}
        total, length = means.mean(axis=0).tolist()
        return {"episode/return": total, "episode/length": length, "episode/count": float(self.episodes)}

    def latest_means(self) -> np.ndarray:
        """Return the mean return and length of the latest episodes of each block that has any. [blocks, 2]"""
        return np.array([np.mean(latest, axis=0) for latest in self.latest if latest])

    def _one_by_one(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Do what the vector's own `step` does, in half its time; of what an environment told only the true reward."""
        assert self._sync is not None
        did = [env.step(action) for env, action in zip(self._sync.envs, actions, strict=True)]
        seen, rewards, terminated, truncated, infos = zip(*did, strict=True)
        gave = np.array(rewards, dtype=np.float64)
        told: dict[str, Any] = {}
        if TRUE_REWARD in infos[0]:
            told = {TRUE_REWARD: np.array([info[TRUE_REWARD] for info in infos]), f"_{TRUE_REWARD}": True}
        return seen, gave, np.array(terminated, dtype=np.bool_), np.array(truncated, dtype=np.bool_), told

    def _reset(self, seeds: list[int]) -> np.ndarray:
        # Vectors of environments take a list of seeds, though the type of their base class does not say so; those that
        # step all at once by themselves, such as Gymnasium's own CartPole, have one generator, and take one.
        each = isinstance(self.envs.unwrapped, SyncVectorEnv | AsyncVectorEnv)
        seed: Any = list(seeds) if each else seeds[0]
        return np.array(self.envs.reset(seed=seed)[0])

    def _after_an_end(
        self, seen: np.ndarray, ended: np.ndarray, infos: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The true successors, and what to act on next."""
        if self._mode is AutoresetMode.SAME_STEP:
            last = seen.copy()
            for index in np.flatnonzero(ended):
                last[index] = infos["final_obs"][index]
            return last, seen
        if self._sync:
            begun = seen.copy()
            for index in np.flatnonzero(ended):
                self._origins[index] = _generator(self._sync.envs[index]).state
                begun[index], _ = self._sync.envs[index].reset()
            return seen, begun
        if self._mode is AutoresetMode.DISABLED:
            return seen, np.array(self.envs.reset(options={"reset_mask": ended})[0])
        return seen, seen

    def _count(self, rewards: np.ndarray, valid: np.ndarray, actions: np.ndarray) -> None:
        self.env_steps += self.num_envs
        self._returns += rewards * valid
        self._lengths += valid
        if self._sync:
            for done, action in zip(self._done, actions, strict=True):
                done.append(action)

    def _note(self, ended: np.ndarray) -> None:
        for index in np.flatnonzero(ended):
            episode = Episode(float(self._returns[index]), int(self._lengths[index]))
            self.latest[index // self._block].append(episode)
            self._done[index].clear()
            self.episodes += 1
        self._returns[ended] = 0.0
        self._lengths[ended] = 0

    # --- going on exactly where it was ---

    def state(self) -> dict[str, Any]:
        """Return what brings the environments back: how each open episode began, and what was done in it since."""
        return {
            "origins": list(self._origins),
            "actions": [torch.from_numpy(np.array(done)) for done in self._done],
            "obs": torch.from_numpy(self.obs.copy()),
            "returns": self._returns.tolist(),
            "latest": [[list(episode) for episode in latest] for latest in self.latest],
            "episodes": self.episodes,
            "env_steps": self.env_steps,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Begin the open episodes again and do in them what was done; where one cannot be repeated, warn.

        Environments have no state that could be saved. One that draws from elsewhere than its own generator, or was
        not made by `make_envs`, begins a new episode instead: the run goes on, but not as it would have.
        """
        self.latest = [deque((Episode(*one) for one in latest), maxlen=100) for latest in state["latest"]]
        self.episodes, self.env_steps = int(state["episodes"]), int(state["env_steps"])
        # Other episodes than those at the start of the run, for the environments that must begin anew.
        seeds = _seeds([*(n for n in state["origins"] if isinstance(n, int)), self.episodes], self.num_envs)
        self.obs = self._reset(seeds)
        self._origins, self._done = list(seeds), [[] for _ in seeds]
        self._returns[:], self._lengths[:], self._fresh[:] = 0.0, 0, False
        lost = [index for index in range(self.num_envs) if not self._repeated(index, state)]
        if lost:
            warnings.warn(
                f"This resume is inexact: the open episodes of {len(lost)} of {self.num_envs} environments could not "
                "be repeated, so new ones begin. Only environments of make_envs that draw all their chances from "
                "their own np_random can be brought back.",
                stacklevel=2,
            )

    def _repeated(self, index: int, state: dict[str, Any]) -> bool:
        """Whether an open episode, begun again from its origin, led to where it was."""
        if self._sync is None:
            return False
        env, origin = self._sync.envs[index], state["origins"][index]
        done = list(state["actions"][index].numpy())
        if isinstance(origin, int):
            obs, _ = env.reset(seed=origin)
        else:
            _generator(env).state = origin
            obs, _ = env.reset()
        total, ended = 0.0, False
        for action in done:
            if ended:
                break
            obs, reward, terminated, truncated, info = env.step(action)
            total, ended = total + float(info.get(TRUE_REWARD, reward)), terminated or truncated
        same = np.array_equal(np.asarray(obs), state["obs"][index].numpy()) and total == state["returns"][index]
        if ended or not same:
            self.obs[index], _ = env.reset()
            return False
        self.obs[index], self._origins[index], self._done[index] = obs, origin, done
        self._returns[index], self._lengths[index] = total, len(done)
        return True


def _true_rewards(rewards: np.ndarray, infos: dict[str, Any]) -> np.ndarray:
    """Return what the environments gave before a wrapper changed it. [N]"""
    for told in (infos, infos.get("final_info", {})):  # in SAME_STEP the latter is of who ended
        if TRUE_REWARD in told:
            # In a vector's infos `_key` is who told `key`.
            rewards = np.where(told[f"_{TRUE_REWARD}"], told[TRUE_REWARD], rewards)
    return rewards


def _seeds(entropy: int | list[int], count: int) -> list[int]:
    """Seeds of environments: seed, seed + 1, ... would give runs of neighbouring seeds the same ones."""
    return [int(n) for n in np.random.SeedSequence(entropy).generate_state(count)]


def _generator(env: gymnasium.Env) -> Any:
    return env.unwrapped.np_random.bit_generator


def _mode_of(envs: VectorEnv) -> AutoresetMode:
    mode = envs.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise ValueError(
            f"{type(envs).__name__} does not say how it resets environments that ended: "
            f"metadata['autoreset_mode'] is {mode!r}. Use classic_rl.envs.make_envs, or set it to an AutoresetMode."
        )
    return mode


def _check_arrays(space: gymnasium.Space, what: str) -> None:
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise ValueError(
            f"expected an {what} space of arrays (Box, Discrete, MultiDiscrete, MultiBinary), got {space}: "
            "wrap the environment, for observations in gymnasium.wrappers.FlattenObservation."
        )
