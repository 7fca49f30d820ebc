"""`align classic`: what it prints and leaves behind, and what it refuses in words."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from recipes import classic
from tests.recipes.conftest import Align, metrics_of

SMALL = ("--env", "CartPole-v1", "--eval-episodes", 2, "--hidden", 8, "--num-envs", 2)
ROLLOUTS = (*SMALL, "--rollout-steps", 8, "--env-steps", 32)
TWO_STEPS = {
    "reinforce": (*SMALL, "--updates", 2),
    "a2c": ROLLOUTS,
    "ppo": ROLLOUTS,
    "dqn": (*SMALL, "--env-steps", 64, "--report-every", 32, "--learning-starts", 8, "--batch-size", 8),
}


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command here, where something is missing, and return the error."""
    monkeypatch.setattr("warnings.formatwarning", lambda *_: "")
    with pytest.raises(SystemExit) as ended:
        classic.main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("agent", TWO_STEPS)
def test_an_agent_is_trained_reported_saved_and_measured(align: Align, tmp_path: Path, agent: str):
    said = align("classic", agent, *TWO_STEPS[agent], "--directory", tmp_path / "run")
    assert "step 2/2" in said and "evaluated: return" in said
    assert "greedy return" in said and f"align classic eval {tmp_path}/run/final --env CartPole-v1" in said
    first, *_, last = metrics_of(tmp_path / "run")
    assert first.keys() == {"eval/episode/return", "eval/episode/length", "step"} and last["step"] == 2
    told = align("classic", "eval", tmp_path / "run" / "final", "--env", "CartPole-v1", "--eval-episodes", 2)
    assert re.search(r"greedy +return [\d.]+ ± .*\nas drawn +return [\d.]+ ± .* 2 episodes", told)
    greedy = float(re.findall(r"greedy +return ([\d.]+)", told)[0])
    assert greedy == pytest.approx(last["eval/episode/return"], abs=0.05)


def test_the_report_of_an_agent_is_one_of_episodes_and_environment_steps(align: Align, tmp_path: Path):
    align("classic", "ppo", *ROLLOUTS[:-2], "--env-steps", 256, "--directory", tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text()
    titles = re.findall(r"<figcaption>([^<]*)", page)
    assert titles[:2] == ["return", "episode length"] and "environment steps" not in titles
    assert ">environment step<" in page and "optimizer step" not in page
    assert "evaluated return" in page and "held-out" not in page
    assert "ompletion" not in page and "Rewards" not in page and "token" not in page


def test_the_environment_gives_the_defaults_and_one_without_settings_is_told(align: Align, tmp_path: Path):
    for env, steps in (("CartPole-v1", 50_000), ("LunarLander-v3", 1_000_000), ("MyOwn-v0", 100_000)):
        assert f"(default: {steps})" in align("classic", "ppo", f"--env={env}", "--help")
    words = ("--env", "Blackjack-v1", *TWO_STEPS["dqn"][2:], "--directory", tmp_path / "run")
    said = align("classic", "dqn", *words, code=2)
    assert "no settings of dqn are known to solve Blackjack-v1" in said and "space of observations, got Tuple" in said


def test_settings_of_dqns_parts_are_named_by_them_as_in_the_findings_and_no_others(align: Align, tmp_path: Path):
    words = ("--target.every", 5, "--exploration.end", 0.2, "--replay.n-step", 2, "--directory", tmp_path / "run")
    align("classic", "dqn", *TWO_STEPS["dqn"], *words)
    told = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert (told["target"]["every"], told["exploration"]["end"], told["replay"]["n_step"]) == (5, 0.2, 2)
    shown = {agent: align("classic", agent, "--env", "CartPole-v1", "--help") for agent in ("dqn", "ppo")}
    options = {agent: set(re.findall(r"--[a-z.-]+", words)) for agent, words in shown.items()}
    parts = {option.split(".")[0] for option in options["dqn"] if "." in option}
    assert parts == {"--target", "--exploration", "--replay"}
    assert {"--hidden", "--seed", "--save-every", "--eval-episodes"} < options["dqn"] & options["ppo"]
    assert not any("." in option for option in options["ppo"])


CAR = ("--env", "MountainCar-v0", *ROLLOUTS[2:])


def test_shaped_rewards_are_the_default_where_settings_need_them_and_returns_are_the_true_ones(
    align: Align, tmp_path: Path
):
    words = ("classic", "ppo", *CAR[:-2], "--minibatches", 4, "--env-steps", 2 * 2 * 208, "--rollout-steps", 208)
    said = align(*words, "--directory", tmp_path / "run")
    assert (
        "from shaped rewards, while returns are of the true ones (--rewards true" in said and "no settings" not in said
    )
    *_, last = metrics_of(tmp_path / "run")
    assert last["episode/return"] == last["eval/episode/return"] == -200.0  # each step costs 1, for 200 steps
    other = align(*words, "--rewards", "true", "--resume", "--directory", tmp_path / "run", code=2)
    assert 'rewards: "shaped" -> "true"' in other
    told = align("classic", "eval", tmp_path / "run" / "final", "--env", "MountainCar-v0", "--eval-episodes", 2)
    assert "greedy    return -200.0" in told


def test_settings_for_shaped_rewards_say_so_without_and_other_agents_take_them_on_request(align: Align, tmp_path: Path):
    said = align("classic", "ppo", *CAR, "--rewards", "true", "--minibatches", 4, "--directory", tmp_path / "ppo")
    assert "are for --rewards shaped" in said and "learning from shaped rewards" not in said
    words = ("--env", "MountainCar-v0", *TWO_STEPS["dqn"][2:], "--directory", tmp_path / "dqn")
    assert "learning from shaped rewards" in align("classic", "dqn", *words, "--rewards", "shaped")


def test_a_run_goes_on_only_with_the_options_it_was_started_with(align: Align, tmp_path: Path):
    words = ("classic", "ppo", *TWO_STEPS["ppo"], "--directory", tmp_path / "run")
    align(*words)
    assert "holds a finished run: keep it (--resume), or name another directory." in align(*words, code=2)
    assert "settings.gamma" in align(*words, "--resume", "--gamma", 0.5, code=2)
    assert "Finished after 2 steps" in align(*words, "--resume")


def test_an_episode_is_filmed(align: Align, tmp_path: Path):
    align("classic", "a2c", *TWO_STEPS["a2c"], "--directory", tmp_path / "run", "--video")
    assert (tmp_path / "run" / "episode.mp4").read_bytes()[4:8] == b"ftyp"
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith("tmp")]


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("pppo", "--env", "CartPole-v1"), "did you mean 'ppo'"),
        (("ppo", "--env", "CartPol-v1"), "did you mean 'CartPole-v1'"),
        (("ppo", "--env", "CartPole-v7"), "did you mean 'CartPole-v1'"),
        (("ppo", "--env", "no_such_module:Env-v0"), "no_such_module"),
        (("ppo",), "--env"),
        (("ppo", *TWO_STEPS["ppo"], "--minibatches", 100), "too few to learn from"),
        (("ppo", *TWO_STEPS["ppo"], "--eval-episodes", 0), "eval_episodes must be at least 1"),
        (("ppo", "--env", "CartPole-v1", "--clipp", 0.1), "--clip"),
        (("dqn", "--env", "Pendulum-v1"), "must be Discrete"),
        (
            ("ppo", *TWO_STEPS["ppo"], "--rewards", "shaped"),
            "error: no potential to shape rewards by is known for CartPole-v1",
        ),
        (("eval", "nowhere", "--env", "CartPole-v1"), "expected the policy of a classic agent"),
    ],
)
def test_a_mistake_ends_in_words_with_the_way_out(align: Align, arguments: tuple, advice: str):
    assert advice in align("classic", *arguments, code=2)


@pytest.mark.parametrize("agent", ["a2c", "dqn"])
def test_learning_that_diverges_ends_in_words_and_not_in_a_traceback(align: Align, tmp_path: Path, agent: str):
    words = ("classic", agent, *TWO_STEPS[agent], "--learning-rate", 1e38, "--directory", tmp_path / "run")
    said = align(*words, code=2)
    assert re.search("^error: the (norm of the gradient|loss of update 2) is .*lower", said, re.MULTILINE)


def test_a_policy_is_not_measured_where_it_cannot_act(align: Align, tmp_path: Path):
    align("classic", "ppo", *TWO_STEPS["ppo"], "--directory", tmp_path / "run")
    said = align("classic", "eval", tmp_path / "run" / "final", "--env", "Acrobot-v1", code=2)
    assert "learned with the observation_space" in said and "Acrobot-v1 has" in said


def test_what_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "Box2D", None)
    said = refused(monkeypatch, capsys, "ppo", "--env", "LunarLander-v3")
    assert "LunarLander-v3 needs something that is not installed: pip install 'align-rl[classic]'" in said
    monkeypatch.setitem(sys.modules, "moviepy", None)
    assert "--video needs moviepy" in refused(monkeypatch, capsys, "ppo", "--env", "CartPole-v1", "--video")
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert "classic agents need Gymnasium" in refused(monkeypatch, capsys, "ppo", "--env", "CartPole-v1")
