"""The way of one step of GRPO and of RLHF's PPO stays short enough to read."""

import importlib

import pytest

from benchmarks.reading_path import LIMITS, ROOT, files_run_by, reading_path


@pytest.mark.parametrize("name", LIMITS)
def test_the_way_of_a_step_is_at_most_so_many_files_and_lines(name):
    files, (most_files, most_lines) = reading_path(name), LIMITS[name]
    assert {f"recipes/{name}_walk.py", f"align/{name}.py", "align/sampler.py", "align/training.py"} <= set(files)
    assert "classic_rl/losses.py" in files, "the step stopped before its loss"
    assert len(files) <= most_files and sum(files.values()) <= most_lines, files


def test_the_limits_are_ten_files_of_2000_lines_for_grpo_and_twelve_of_2400_for_ppo():
    assert LIMITS == {"grpo": (10, 2_000), "ppo": (12, 2_400)}


@pytest.mark.parametrize(
    ("name", "short", "sums"),
    [
        ("REINFORCE", {}, "returns.py"),
        ("A2C", {}, "returns.py"),
        ("PPO", {}, "returns.py"),
        ("DQN", {"learning_starts": 64, "env_steps": 2000}, "q_learning.py"),
    ],
)
def test_the_way_of_an_agent_from_the_environment_to_the_gradient_step_is_at_most_seven_files(name, short, sums):
    module = importlib.import_module(f"classic_rl.{name.lower()}")
    agent = getattr(module, name)("CartPole-v1", getattr(module, f"{name}Config")(**short))
    step = agent.optimizer.step

    class Done(Exception):
        pass

    def and_no_further(*args, **kwargs):
        step(*args, **kwargs)
        raise Done

    agent.optimizer.step = and_no_further

    def one_gradient_step():
        with pytest.raises(Done):
            next(agent.steps())

    files = {path.name for path in files_run_by(one_gradient_step)}
    assert {"envs.py", "networks.py", sums, f"{name.lower()}.py"} <= files
    assert len(files) <= 7, files


def test_a_file_is_on_the_way_if_a_function_of_it_runs_in_whatever_thread_and_only_then():
    import threading

    from classic_rl import divergences, masked

    def work():
        thread = threading.Thread(target=lambda: masked.check_same_shape())
        thread.start()
        thread.join()

    assert divergences.kl_k1
    assert files_run_by(work) == {ROOT / "classic_rl/masked.py"}
