"""What every agent needs beside its algorithm: to learn, act, save its policy and go on where it was.

A policy folder is `policy.safetensors`, the weights and the statistics they belong to, and `policy.json`, which says
what they are: algorithm, settings, environment and spaces. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
from gymnasium import spaces
from safetensors.torch import load_file, save_file
from torch import Tensor

if TYPE_CHECKING:
    from classic_rl.envs import Stepper

FORMAT = 1
WEIGHTS, DESCRIPTION = "policy.safetensors", "policy.json"


class Policy(Protocol):
    """What acts, and can be saved."""

    def act(self, obs: np.ndarray, *, deterministic: bool = False) -> np.ndarray: ...  # noqa: D102

    def save(self, folder: str | Path, algorithm: str) -> None: ...  # noqa: D102


P = TypeVar("P", bound=Policy)


class Resumable(Protocol):
    """What can say where it is, in tensors and plain values, and go back there."""

    def state(self) -> dict[str, Any]: ...  # noqa: D102

    def load_state(self, state: dict[str, Any]) -> None: ...  # noqa: D102


class Agent(Generic[P]):
    """A loop that yields the metrics of each update, and what all agents do alike around it.

    Attributes:
        name: of the algorithm.
        policy: what acts.
        stepper: its environments.
        parts: all that the next update depends on, beside `step`.
        step, total_steps: updates done, and of the whole run.
    """

    name: ClassVar[str]
    policy: P
    stepper: Stepper
    parts: dict[str, Resumable]
    step: int
    total_steps: int

    def steps(self) -> Iterator[dict[str, float]]:
        """Run from the current update to the last, and yield the metrics of each."""
        raise NotImplementedError

    @property
    def env_steps(self) -> int:
        """Steps of environments since the start."""
        return self.stepper.env_steps

    def learn(self, env_steps: int | None = None) -> list[dict[str, float]]:
        """Learn until so many environment steps were made since the start, or to the end; return all metrics."""
        most, steps = math.inf if env_steps is None else env_steps, self.steps()
        history: list[dict[str, float]] = []
        while self.env_steps < most and (metrics := next(steps, None)):
            history.append(metrics)
        return history

    def act(self, obs: np.ndarray, *, deterministic: bool = False) -> np.ndarray:
        """Return actions for observations. [N, ...] -> [N, ...]"""
        return self.policy.act(obs, deterministic=deterministic)

    def save(self, folder: str | Path) -> None:
        """Write the policy's folder, which `load` of the same class reads."""
        self.policy.save(folder, self.name)

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs: weights, optimizers, environments, generators, statistics and step."""
        return {**{name: part.state() for name, part in self.parts.items()}, "step": self.step}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        for name, part in self.parts.items():
            part.load_state(state[name])
        self.step = int(state["step"])

    def examples(self) -> list[dict[str, Any]]:
        """Return nothing: an agent of Gymnasium has no completions to show."""
        return []


# --- folders of policies ---


@dataclass(frozen=True)
class PolicyFolder:
    """What a policy folder holds.

    algorithm: name of the algorithm.
    config: its settings.
    observation_space, action_space: of one environment.
    tensors: weights and statistics.
    """

    algorithm: str
    config: dict[str, Any]
    observation_space: spaces.Space
    action_space: spaces.Space
    tensors: dict[str, Tensor]


def save_policy(
    folder: str | Path,
    *,
    algorithm: str,
    config: Any,
    observation_space: spaces.Space,
    action_space: spaces.Space,
    tensors: Mapping[str, Tensor],
) -> None:
    """Write a policy folder; `config` is a dataclass of plain values."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "format": FORMAT,
        "algorithm": algorithm,
        "config": asdict(config) if is_dataclass(config) and not isinstance(config, type) else config,
        "observation_space": describe_space(observation_space),
        "action_space": describe_space(action_space),
    }
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def load_policy(folder: str | Path, algorithm: str) -> PolicyFolder:
    """Read a policy folder.

    Raises:
        ValueError: if it holds a policy of another algorithm or format.
    """
    description = json.loads((Path(folder) / DESCRIPTION).read_text(encoding="utf-8"))
    if description.get("format") != FORMAT or description.get("algorithm") != algorithm:
        raise ValueError(
            f"expected a policy of {algorithm} in format {FORMAT}, got one of {description.get('algorithm')} in format "
            f"{description.get('format')}: load it with the class that saved it."
        )
    return PolicyFolder(
        algorithm,
        description["config"],
        space_from(description["observation_space"]),
        space_from(description["action_space"]),
        load_file(Path(folder) / WEIGHTS),
    )


def describe_space(space: spaces.Space) -> dict[str, Any]:
    """Say what a space is in plain values. Raises ValueError for one that is no array."""
    if isinstance(space, spaces.Box):
        bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
        return {"kind": "Box", "dtype": str(space.dtype), "shape": list(space.shape), **_finite(bounds)}
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "dtype": str(space.dtype), "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        sizes = {"nvec": space.nvec.tolist(), "start": np.asarray(space.start).tolist()}
        return {"kind": "MultiDiscrete", "dtype": str(space.dtype), **sizes}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    raise ValueError(f"expected a Box, Discrete, MultiDiscrete or MultiBinary space, got {space}")


def space_from(description: Mapping[str, Any]) -> spaces.Space:
    """Make a space from what `describe_space` said of it."""
    kind = description["kind"]
    dtype = np.dtype(description.get("dtype", np.int64))  # older folders say none of Discrete
    if kind == "Box":
        # Straight to their type: integers of 64 bits are no floats.
        low, high = (np.array(description[name], dtype=dtype) for name in ("low", "high"))
        return spaces.Box(low, high, tuple(description["shape"]), dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(description["n"], start=description["start"], dtype=dtype.type)
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(
            np.array(description["nvec"]), dtype=dtype.type, start=np.array(description["start"])
        )
    if kind == "MultiBinary":
        return spaces.MultiBinary(description["n"])
    raise ValueError(f"expected the description of a space, got one of kind {kind!r}")


def _finite(value: Any) -> Any:
    """Write infinity as a word: JSON has none."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return str(value) if value in (float("inf"), float("-inf")) else value
