"""Policy folders and evaluation."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from classic_rl.agents import describe_space, load_policy, save_policy, space_from
from classic_rl.evaluate import evaluate
from tests.classic_rl.counting import Counter, Walk

SPACES = [
    spaces.Box(-1.0, 1.0, (2, 2), np.float32),
    spaces.Box(np.array([-np.inf, 0.0]), np.array([3.4e38, np.inf]), dtype=np.float64),
    spaces.Box(0, 255, (4, 8, 8), np.uint8),
    spaces.Box(-np.inf, np.inf, (2,), np.int64),
    spaces.Box(0, 2**63 - 1, (1,), np.int64),
    spaces.Box(1, 2**64 - 1, (1,), np.uint64),
    spaces.Discrete(3, start=1),
    spaces.Discrete(3, dtype=np.int32),
    spaces.MultiDiscrete([2, 3], start=[0, 1]),
    spaces.MultiDiscrete([[2, 3], [4, 5]], dtype=np.int8),
    spaces.MultiBinary(4),
]


@pytest.mark.parametrize(
    "space", [*SPACES, *(gymnasium.make(name).observation_space for name in ("CartPole-v1", "Taxi-v4"))]
)
def test_a_space_comes_back_from_json(space):
    again = space_from(json.loads(json.dumps(describe_space(space), allow_nan=False)))
    assert again == space


def test_a_policy_folder_holds_tensors_and_says_what_they_are(tmp_path):
    tensors = {"weight": torch.arange(6.0).reshape(2, 3).T, "mean": torch.zeros(2, dtype=torch.float64)}
    space = spaces.Discrete(2)
    save_policy(
        tmp_path / "new", algorithm="ppo", config={"gamma": 0.9}, observation_space=space, action_space=space,
        tensors=tensors,
    )  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["policy.json", "policy.safetensors"]
    folder = load_policy(tmp_path / "new", "ppo")
    assert folder.config == {"gamma": 0.9} and folder.action_space == space
    assert all(torch.equal(folder.tensors[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(ValueError, match="expected a policy of a2c in format 1, got one of ppo"):
        load_policy(tmp_path / "new", "a2c")


def zeros(obs: np.ndarray, *, deterministic: bool) -> np.ndarray:
    return np.zeros(len(obs), dtype=np.int64)


@pytest.mark.parametrize("num_envs", [1, 3, 50])
def test_an_evaluation_plays_every_episode_that_it_begins_however_many_at_a_time(num_envs):
    result = evaluate(zeros, Walk, episodes=20, seed=4, num_envs=num_envs)
    alone = evaluate(zeros, Walk, episodes=20, seed=4, num_envs=7)
    np.testing.assert_array_equal(result.returns, alone.returns)
    np.testing.assert_array_equal(result.lengths, alone.lengths)
    assert len(set(result.returns)) == 20


def test_short_episodes_are_not_counted_more_often_than_long_ones():
    made = iter(range(100))

    def either() -> Counter:
        return Counter(1 if next(made) % 2 else 100)

    result = evaluate(zeros, either, episodes=10, num_envs=10)
    assert sorted(result.lengths) == [1] * 5 + [100] * 5
    assert sorted(result.returns) == [1.0] * 5 + [5050.0] * 5
    assert result.metrics() == {"episode/return": 2525.5, "episode/length": 50.5}


def test_an_evaluation_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        evaluate(zeros, Walk, episodes=0)
