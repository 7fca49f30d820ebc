"""A kill -9 at any instant costs a command nothing: resumed, it ends bitwise as one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.recipes.conftest import Align, metrics_of, weights_of

LORA = ("--lora-rank", 4)
SAMPLING = ("--max-new-tokens", 6, "--prompts-per-step", 4, "--group-size", 4, "--learning-rate", 1e-3)
ASKED = ("--model", "model", "--data", "prompts.jsonl", "--reward", "exact_answer", "rules.py:letters=0.5", *SAMPLING)
GRPO = ("grpo", *ASKED)
PPO = ("ppo", *ASKED, "--kl-target", 0.01, "--normalise-scores")
ONCE = ("--model", "model", "--learning-rate", 1e-2, "--evaluate-every", 0)
DPO = ("dpo", *ONCE, "--data", "preferred.jsonl", "--pairs-per-step", 8)
KTO = ("kto", *ONCE, "--data", "liked.jsonl", "--examples-per-step", 8)
REWARD = ("reward", *ONCE[:4], "--data", "preferences.jsonl", "--eval-data", "few_preferences.jsonl",
          "--pairs-per-step", 8, "--centring", 0.01)  # fmt: skip
CACHED = ("--reference-cache", "CACHE", "--eval-data")

CLASSIC_PPO = ("classic", "ppo", "--env", "CartPole-v1", "--eval-episodes", 2, "--hidden", 8, "--num-envs", 4,
               "--rollout-steps", 16, "--normalize-observations", "--scale-rewards")  # fmt: skip
SHAPED_PPO = ("classic", "ppo", "--env", "MountainCar-v0", "--rewards", "shaped", "--eval-episodes", 2, "--hidden", 8,
              "--num-envs", 4, "--rollout-steps", 16, "--epochs", 2)  # fmt: skip
CLASSIC_DQN = ("classic", "dqn", "--env", "CartPole-v1", "--eval-episodes", 2, "--hidden", 8, "--num-envs", 2,
               "--report-every", 20, "--learning-starts", 20, "--batch-size", 8, "--train-every", 4,
               "--replay.capacity", 90)  # fmt: skip
ENV_STEPS = {"ppo": 64, "dqn": 20}
"""Of a step of the two."""

COMMANDS = {
    "grpo": GRPO,
    "grpo lora": (*GRPO, *LORA, "--kl-coef", 0.1),
    "grpo, rollouts used twice, evaluated": (
        *GRPO, "--updates-per-rollout", 2, "--eval-data", "few.jsonl", "--evaluate-every", 2
    ),
    "ppo": (*PPO, "--kl-limit", 0.01),
    "ppo lora": (*PPO, *LORA, "--missing-eos-penalty", 0.1),
    "ppo lora, a value model": (*PPO, *LORA, "--value-model", "scorer", "--kl-limit", 0.01),
    "dpo": DPO,
    "dpo lora": (*DPO, *LORA),
    "dpo, cached": (*DPO, *CACHED, "preferred.jsonl"),
    "kto": KTO,
    "kto lora": (*KTO, *LORA),
    "kto, cached": (*KTO, *CACHED, "liked.jsonl"),
    "reward, margins": (*REWARD, "--margin", "sure"),
    "reward lora": (*REWARD, *LORA),
    "classic ppo": CLASSIC_PPO,
    "classic ppo, shaped": SHAPED_PPO,
    "classic dqn": (*CLASSIC_DQN, "--replay.n-step", 1, "--replay.priority-exponent", 0),
    "classic dqn, all of it": (
        *CLASSIC_DQN, "--dueling", "--replay.n-step", 3, "--replay.priority-exponent", 0.6, "--target.rate", 0.05
    ),
}  # fmt: skip


def reached(checkpoints: Path, pattern: str) -> int:
    """The greatest step of a checkpoint whose name has this pattern, 0 if there is none."""
    return max((int(path.name.rsplit("-", 1)[1]) for path in checkpoints.glob(pattern)), default=0)


def kill(align: Align, arguments: tuple, run: Path, draw: random.Random, *, inside_a_save: bool) -> None:
    """Start or resume a run, and kill it a few steps on: at a random instant, or with a checkpoint half-written."""
    checkpoints, pattern = run / "checkpoints", ".unfinished-checkpoint-*" if inside_a_save else "checkpoint-*"
    step = reached(checkpoints, "*checkpoint-*") + draw.randint(1, 3)  # past what an earlier kill left unfinished
    pid = align.start(*arguments, "--directory", run, *(("--resume",) if run.exists() else ()))
    deadline = time.monotonic() + 60
    while reached(checkpoints, pattern) < step:
        assert time.monotonic() < deadline, align.said
    time.sleep(0 if inside_a_save else draw.uniform(0, 0.05))
    os.kill(pid, signal.SIGKILL)
    assert align.wait() == -signal.SIGKILL, f"the run ended before it was killed: make it longer\n{align.said}"


def check_kills(align: Align, command: tuple, directory: Path, *, kills: int, inside_a_save: int = 0) -> None:
    """Kill one run again and again, the last times inside a save, and compare its end with that of another."""
    command = tuple(directory / "caches" / "reference" if word == "CACHE" else word for word in command)
    steps = 10 + 5 * kills  # a kill comes two or three steps after the one before
    length = ("--steps", steps)
    if command[0] == "classic":
        steps *= 3  # which take milliseconds
        length = ("--env-steps", steps * ENV_STEPS[command[1]], "--evaluate-every", steps // 4)
    arguments, killed, draw = (*command, *length, "--save-every", 1), directory / "killed", random.Random(0)
    align(*arguments, "--directory", directory / "whole")
    for number in range(kills):
        kill(align, arguments, killed, draw, inside_a_save=number >= kills - inside_a_save)
    assert f"Finished after {steps} steps" in align(*arguments, "--directory", killed, "--resume")
    one, other = weights_of(directory / "whole"), weights_of(killed)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert metrics_of(directory / "whole") == metrics_of(killed)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_killed_twice_ends_bitwise_as_one_left_alone(align: Align, tmp_path: Path, name: str):
    check_kills(align, COMMANDS[name], tmp_path, kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_killed_ten_times_four_inside_a_save_ends_bitwise_as_one_left_alone(align: Align, tmp_path, name: str):
    check_kills(align, COMMANDS[name], tmp_path, kills=10, inside_a_save=4)
