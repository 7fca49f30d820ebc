"""The probes: what Gymnasium asks of an environment, and the values that they are known for."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from classic_rl import probes

ALL = (
    probes.ConstantReward, probes.ObservedReward, probes.LateReward, probes.CutShort, probes.RewardedAction,
    probes.ObservedAction,
)  # fmt: skip


@pytest.mark.parametrize("kind", ALL)
def test_gymnasium_finds_nothing_wrong(kind: type[probes.Probe]) -> None:
    check_env(kind(), skip_render_check=True)


def played(env: probes.Probe, seed: int, action: int) -> tuple[float, list[float], bool, bool]:
    """The first observation, the rewards, terminated, truncated."""
    obs, _ = env.reset(seed=seed)
    first, rewards, terminated, truncated = float(obs[0]), [], False, False
    while not (terminated or truncated):
        _, reward, terminated, truncated, _ = env.step(action)
        rewards.append(float(reward))
    return first, rewards, terminated, truncated


def test_the_rewards_are_those_that_the_known_values_are_made_of() -> None:
    assert played(probes.ConstantReward(), 0, 0) == (1.0, [1.0], True, False)
    assert played(probes.LateReward(), 0, 0) == (-1.0, [0.0, 1.0], True, False)
    assert played(probes.CutShort(4), 0, 0) == (1.0, [1.0] * 4, False, True)
    assert [played(probes.RewardedAction(), 0, action)[1] for action in (0, 1)] == [[0.0], [1.0]]


def test_what_is_seen_decides_where_it_should_and_is_a_fair_coin() -> None:
    firsts = []
    for seed in range(200):
        first, rewards, terminated, _ = played(probes.ObservedReward(), seed, 0)
        assert rewards == [first] and terminated
        for action in (0, 1):
            seen, paid, _, _ = played(probes.ObservedAction(), seed, action)
            assert paid == [float((seen > 0) == (action == 1))]
        firsts.append(first)
    assert set(firsts) == {-1.0, 1.0} and abs(np.mean(firsts)) < 0.25


def test_no_probe_shows_zero_from_which_a_network_with_relu_learns_slowly() -> None:
    for kind in ALL:
        assert kind().reset(seed=0)[0][0] != 0
