"""DQN: its targets against closed forms, what it learns where the values are known, and going on where it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from align.runs.checkpoint import load_latest, save_checkpoint
from classic_rl.dqn import DQN, QNetwork, move_towards, td_loss, td_targets, value_of
from classic_rl.dqn_config import DQN_PRESETS, ExplorationConfig, ReplayConfig, TargetConfig
from classic_rl.metrics import METRICS
from classic_rl.replay import Batch
from tests.classic_rl.counting import Unrepeatable
from tests.classic_rl.dqn_runs import EVERYTHING, Chain, Corner, Loop, small_config, small_dqn
from tests.reference import classic_case


class Table(nn.Module):
    """Values of actions from a table; observations are its rows."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(rows))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.values[obs.long()]


def batch(**changes) -> Batch:
    """One transition from state 0 by action 1 to state 1, with reward 1 and gamma 0.5."""
    parts = {
        "obs": torch.tensor([0]), "actions": torch.tensor([1]), "rewards": torch.ones(1), "next_obs": torch.tensor([1]),
        "terminated": torch.tensor([False]), "discounts": torch.tensor([0.5]), "weights": torch.ones(1),
        "slots": np.zeros(1, dtype=np.int64),
    }  # fmt: skip
    return Batch(**{**parts, **changes})


# -- equations


def losses(errors: torch.Tensor, delta: float | None) -> torch.Tensor:
    """The loss of each error alone."""
    return torch.stack([td_loss(torch.zeros(1), error[None], delta=delta) for error in errors])


def test_the_huber_loss_of_rlax_and_half_a_square_without_a_bound():
    inputs, expected = classic_case("rlax_huber")
    errors = torch.tensor(inputs["x"])
    assert_close(losses(errors, inputs["delta"]), torch.tensor(expected["loss"]))
    assert_close(losses(errors, None), errors**2 / 2)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 0.5, 0.25, 0.0])])
def test_huber_and_square_are_one_below_the_bound_and_huber_grows_like_a_line_beyond(weights):
    predicted = torch.tensor([-0.3, 1.9, -4.0, 6.0], requires_grad=True)
    td_loss(predicted, torch.zeros(4), delta=2.0, weights=weights).backward()
    slopes = torch.tensor([-0.3, 1.9, -2.0, 2.0])
    assert_close(predicted.grad, slopes * (1 if weights is None else weights) / 4)


@pytest.mark.parametrize("delta", [None, 2.0])
def test_weights_of_one_change_no_loss(delta):
    predicted, targets = torch.tensor([0.5, -4.0]), torch.tensor([1.0, 3.0])
    assert_close(
        td_loss(predicted, targets, delta=delta, weights=torch.ones(2)), td_loss(predicted, targets, delta=delta)
    )


def errors_of(batch: Batch, online: nn.Module, *, double: bool) -> torch.Tensor:
    return td_targets(batch, online, NEXT_VALUES, double=double) - value_of(batch, online)


ONLINE, NEXT_VALUES = Table([[0.0, 3.0], [5.0, 4.0]]), torch.tensor([[7.0, 9.0]])


def test_the_target_is_the_best_value_of_the_target_network():
    assert errors_of(batch(), ONLINE, double=False).item() == 1 + 0.5 * 9 - 3


def test_double_dqn_takes_the_target_networks_value_of_the_online_networks_action():
    assert errors_of(batch(), ONLINE, double=True).item() == 1 + 0.5 * 7 - 3


@pytest.mark.parametrize("double", [False, True])
def test_a_terminated_transition_has_no_future(double):
    assert errors_of(batch(terminated=torch.tensor([True])), ONLINE, double=double).item() == 1 - 3


@pytest.mark.parametrize("double", [False, True])
def test_only_the_value_of_the_action_taken_has_a_gradient(double):
    online = Table([[0.0, 3.0], [5.0, 4.0]])
    errors_of(batch(), online, double=double).sum().backward()
    assert_close(online.values.grad, torch.tensor([[0.0, -1.0], [0.0, 0.0]]))


def test_a_target_moves_as_that_of_stable_baselines3():
    inputs, expected = classic_case("polyak")
    online, target = (Table([inputs[name]]) for name in ("params", "target"))
    move_towards(target, online, rate=inputs["tau"])
    assert_close(target.values.detach(), torch.tensor([expected["target"]]))


def test_a_rate_of_one_copies_to_the_last_bit():
    online, target = Table([[0.1, -1e-9, 3e7]]), Table([[1e10, 1e10, 1e10]])
    move_towards(target, online, rate=1.0)
    assert_close(target.values, online.values, rtol=0, atol=0)


def test_the_dueling_network_of_tianshou():
    inputs, expected = classic_case("dueling_mean")
    network = QNetwork((3,), 4, (), dueling=True, generator=torch.Generator())
    with torch.no_grad():
        for layer, name in ((network.head, "adv"), (network.value_head, "val")):
            layer.weight.copy_(torch.tensor(inputs[f"W_{name}"]))
            layer.bias.copy_(torch.tensor(inputs[f"b_{name}"]))
    assert_close(network(torch.tensor(inputs["x"])), torch.tensor(expected["q"]))


@pytest.mark.parametrize("dueling", [False, True])
def test_actions_are_the_best_by_the_networks_values(dueling):
    agent = small_dqn(env=Chain, dueling=dueling, hidden=(16, 16))
    agent.learn()
    obs = np.arange(5)
    values = agent.network(torch.from_numpy(agent.policy.features(obs)))
    assert agent.act(obs, deterministic=True).tolist() == (values.argmax(dim=-1) + 3).tolist()


# -- what is learned


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize(("terminates", "value"), [(True, 1.0), (False, 2.0)])
def test_truncation_bootstraps_and_termination_does_not(terminates, value, n_step):
    """Each episode is one step that pays 1: Q = 1 if that is all, Q = 1 / (1 - gamma) if only a limit cut it."""
    agent = small_dqn(
        env=lambda: Loop(terminates), env_steps=1000, gamma=0.5, learning_rate=0.05, hidden=(),
        replay=ReplayConfig(capacity=100, n_step=n_step),
    )  # fmt: skip
    agent.learn()
    assert_close(agent.network(torch.tensor([[1.0, 0.0]])), torch.full((1, 2), value), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target": TargetConfig(every=20, double=False), "huber_delta": None},
        {"target": TargetConfig(every=1, rate=0.1)},
        {"dueling": True},
        {"replay": ReplayConfig(capacity=1000, priority_exponent=0.6)},
    ],
    ids=["double", "neither double nor huber", "soft target", "dueling", "prioritised"],
)
def test_the_values_of_a_chain_are_learned(changes):
    """Q*(s, right) = gamma^(4 - s), Q*(s, left) = gamma^(1 + the steps from where that leads)."""
    gamma = 0.8
    agent = small_dqn(
        env=Chain,
        **{
            "env_steps": 3000, "gamma": gamma, "learning_rate": 0.03, "hidden": (), "batch_size": 32,
            "replay": ReplayConfig(capacity=1000), "target": TargetConfig(every=20),
            "exploration": ExplorationConfig(end=0.5, fraction=0.1), **changes,
        },
    )  # fmt: skip
    agent.learn()
    right = [gamma ** (4 - s) for s in range(5)]
    left = [gamma * right[max(s - 1, 0)] for s in range(5)]
    assert_close(agent.network(torch.eye(5)), torch.tensor([left, right]).T, atol=0.02, rtol=0)
    assert agent.act(np.arange(5), deterministic=True).tolist() == [4] * 5


def test_a_network_with_everything_finds_the_way_along_a_chain():
    agent = small_dqn(env=Chain, **{**EVERYTHING, "env_steps": 2000, "learning_rate": 0.01, "hidden": (32,)})
    agent.learn()
    assert agent.act(np.arange(5), deterministic=True).tolist() == [4] * 5


def test_pictures_are_learned_from_through_a_convolution_and_stay_bytes_in_memory():
    agent = small_dqn(env=Corner, env_steps=600, learning_rate=3e-3, hidden=(16,))
    agent.learn()
    pictures = np.zeros((2, 8, 8, 1), np.uint8)
    pictures[0, :, :4] = pictures[1, :, 4:] = 255
    assert agent.act(pictures, deterministic=True).tolist() == [0, 1]
    assert agent.replay.state()["obs"].dtype == torch.uint8


def test_one_transition_is_learned_by_heart():
    agent = small_dqn(num_envs=1, env_steps=2000, learning_rate=0.01, gamma=0.9)
    agent.replay.add([[0.5]], [1], [3.0], [[9.0]], [True], [False])
    agent.replay = FrozenReplay(agent.replay)
    agent.learn()
    assert agent.network(torch.tensor([[0.5]]))[0, 1].item() == pytest.approx(3.0, abs=1e-3)


class FrozenReplay:
    """A memory that takes nothing new."""

    def __init__(self, memory) -> None:
        self.memory, self.sample, self.set_priorities = memory, memory.sample, memory.set_priorities

    def __len__(self) -> int:
        return len(self.memory)

    def add(self, *_) -> None:
        return None


# -- the loop


def test_every_metric_is_documented_and_a_report_comes_after_each_interval():
    agent = small_dqn(env_steps=250)
    history = agent.learn()
    assert {name for metrics in history for name in metrics} <= set(METRICS)
    ends = [*range(20, 250, 20), 250]
    assert [metrics["steps/total"] for metrics in history] == [3 * -(-end // 3) for end in ends]  # whole steps of all 3
    assert agent.total_steps == agent.step == len(ends)
    assert history[-1]["optim/updates"] == agent.updates == 2 * (252 // 4 - 18 // 4)


@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_updates_keep_pace_with_environment_steps_however_many_environments_there_are(num_envs):
    agent = small_dqn(num_envs=num_envs, env_steps=240, learning_starts=0, report_every=240)
    agent.learn()
    assert agent.updates == 2 * (240 // 4)


def test_actions_are_random_before_learning_starts_and_then_as_often_as_the_schedule_says():
    agent = small_dqn(exploration=ExplorationConfig(start=0.8, end=0.1, fraction=0.5))
    told = {metrics["steps/total"]: metrics["policy/epsilon"] for metrics in agent.learn()}
    for steps, epsilon in told.items():
        expected = 1.0 if steps < 20 else max(0.1, 0.8 - 0.7 * steps / 120)
        assert epsilon == pytest.approx(expected)


def test_the_learning_rate_goes_from_the_first_to_the_last_in_a_straight_line():
    history = small_dqn(num_envs=1, learning_rate=0.01, final_learning_rate=0.002).learn()
    assert history[5]["optim/learning_rate"] == pytest.approx(0.006)
    assert history[-1]["optim/learning_rate"] == pytest.approx(0.002)


def test_learning_stops_where_it_is_told_and_goes_on_to_the_end():
    agent = small_dqn(num_envs=1)
    assert len(agent.learn(60)) == 3 and agent.env_steps == 60
    assert len(agent.learn()) == 9 and agent.env_steps == 240
    assert agent.learn() == []


def test_acting_leaves_training_alone():
    first, second = small_dqn(**EVERYTHING), small_dqn(**EVERYTHING)
    for _ in first.steps():
        first.act(np.zeros((4, 1)))
    second.learn()
    assert_close(first.optimizer.memory[0], second.optimizer.memory[0], rtol=0, atol=0)


def test_a_policy_that_is_not_deterministic_acts_at_random_as_often_as_training_did_last():
    agent = small_dqn(env=Chain, env_steps=1000, exploration=ExplorationConfig(end=0.4))
    agent.learn()
    best = agent.act(np.zeros(1, dtype=np.int64), deterministic=True)
    others = (agent.act(np.zeros(5000, dtype=np.int64)) != best).mean()
    assert others == pytest.approx(0.2, abs=0.02)  # half of the random ones are the best by chance


def test_a_loss_that_is_not_finite_stops_training_with_the_weights_as_they_were():
    class Broken(Loop):
        def step(self, action):
            return 0, float("nan"), True, False, {}

    agent = small_dqn(env=lambda: Broken(True))
    before = agent.optimizer.memory[0].clone()
    with pytest.raises(FloatingPointError, match="update 1 is not finite"):
        agent.learn()
    assert_close(agent.optimizer.memory[0], before, rtol=0, atol=0)


@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_saved_policy_acts_as_it_did(tmp_path, changes):
    agent = small_dqn(env=Chain, **changes)
    agent.learn()
    agent.save(tmp_path)
    loaded = DQN.load(tmp_path)
    assert loaded.act(np.arange(5), deterministic=True).tolist() == agent.act(np.arange(5), deterministic=True).tolist()
    assert loaded.config == agent.config
    state, expected = loaded.network.state_dict(), agent.network.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in state)


def test_actions_that_are_not_discrete_are_refused():
    with pytest.raises(ValueError, match="must be Discrete"):
        DQN("Pendulum-v1", small_config())


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"batch_size": 0}, "at least 1"),
        ({"updates": 0}, "at least 1"),
        ({"gamma": 1.5}, "share from 0 to 1"),
        ({"exploration": ExplorationConfig(fraction=1.5)}, "share from 0 to 1"),
        ({"learning_rate": 0.0}, "above 0"),
        ({"target": TargetConfig(rate=0.0)}, "above 0"),
        ({"learning_starts": 240}, "nothing is ever learned"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, advice):
    with pytest.raises(ValueError, match=advice):
        small_config(**changes)


@pytest.mark.parametrize("name", sorted(DQN_PRESETS))
def test_every_preset_can_be_run(name):
    agent = DQN(name, replace(DQN_PRESETS[name], env_steps=400, learning_starts=100, report_every=200, updates=1))
    assert len(agent.learn()) == 2 and agent.updates > 0


# -- going on exactly where it was


def told(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/") and "per_second" not in name}


@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_resumed_run_ends_in_the_weights_and_metrics_of_one_left_alone(tmp_path, changes):
    whole = small_dqn(**changes)
    history = [told(metrics) for metrics in whole.steps()]
    first = small_dqn(**changes)
    for _ in first.steps():
        if first.step == 5:
            save_checkpoint(tmp_path, 5, first.state())
            break
    second = small_dqn(**{**changes, "seed": 0})
    checkpoint = load_latest(tmp_path)
    assert checkpoint
    second.load_state(checkpoint.state)
    assert [told(metrics) for metrics in second.steps()] == history[5:]
    assert_close(second.optimizer.memory[0], whole.optimizer.memory[0], rtol=0, atol=0)
    mine, other = second.replay.state(), whole.replay.state()
    assert all(torch.equal(mine[name], other[name]) for name in ("obs", "rewards", "following"))


def test_a_state_is_a_copy_that_later_steps_leave_alone():
    agent = small_dqn(**EVERYTHING)
    agent.learn(100)
    state = agent.state()
    first = [told(metrics) for metrics in agent.learn()]
    agent.load_state(state)
    assert [told(metrics) for metrics in agent.learn()] == first


def test_where_an_environment_cannot_be_brought_back_nothing_follows_its_open_episode():
    agent = small_dqn(num_envs=1, env=Unrepeatable, report_every=10)
    while (agent.replay.state()["newest"] < 0).any() or not agent.step:
        next(agent.steps())
    newest = int(agent.replay.state()["newest"][0])
    with pytest.warns(UserWarning, match="inexact"):
        agent.load_state(agent.state())
    next(agent.steps())
    assert agent.replay.state()["following"][newest] == -1
