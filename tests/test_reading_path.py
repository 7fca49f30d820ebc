"""The way of one GRPO step stays short enough to read."""

import importlib

import pytest

from benchmarks.reading_path import MOST_FILES, MOST_LINES, ROOT, files_run_by, reading_path


def test_the_way_of_a_grpo_step_is_at_most_ten_files_and_two_thousand_lines():
    files = reading_path()
    assert {"recipes/grpo_walk.py", "align/grpo.py", "align/sampler.py", "align/training.py"} <= set(files)
    assert "classic_rl/losses.py" in files, "the step stopped before its loss"
    assert len(files) <= MOST_FILES and sum(files.values()) <= MOST_LINES, files


@pytest.mark.parametrize("name", ["REINFORCE", "A2C", "PPO"])
def test_the_way_of_an_agent_from_the_environment_to_the_gradient_step_is_at_most_seven_files(name):
    module = importlib.import_module(f"classic_rl.{name.lower()}")
    agent = getattr(module, name)("CartPole-v1", getattr(module, f"{name}Config")())
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
    assert {"envs.py", "returns.py", "losses.py", f"{name.lower()}.py"} <= files
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
