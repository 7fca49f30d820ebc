"""What is told to those who come from TRL is true: every option that is named is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from classic_rl.dqn_config import DQNConfig
from classic_rl.on_policy_config import PPOConfig, REINFORCEConfig
from recipes import options
from recipes.cli import TRAINING
from recipes.foreign import ELSEWHERE, option_names

PAGE = (Path(__file__).parent.parent / "docs" / "from_trl.md").read_text()
COMMANDS = {command: option_names(getattr(options, name)) for command, (_, name, _) in TRAINING.items()}
OURS = set().union(*COMMANDS.values())


def test_every_option_on_the_page_is_one_of_a_command():
    named = set(re.findall(r"--[a-z][a-z-]*", PAGE))
    assert len(named) > 40 and named - OURS == set()


def test_every_hint_at_an_option_is_one_and_no_command_has_all_that_is_hinted_at_from():
    agents = set().union(*map(option_names, (DQNConfig, PPOConfig, REINFORCEConfig)))
    hinted = {said.split()[0] for told in ELSEWHERE.values() for said in told if said.startswith("--")}
    assert hinted - OURS - agents == set()
    assert not [name for name in ELSEWHERE if all(f"--{name}" in names for names in COMMANDS.values())]


@pytest.mark.parametrize(
    ("command", "option", "default"),
    [("sft", "steps", 500), ("sft", "examples-per-step", 32), ("grpo", "prompts-per-step", 16),
     ("ppo", "prompts-per-step", 64), ("grpo", "group-size", 8), ("grpo", "max-new-tokens", 256),
     ("reward", "learning-rate", 1e-5),
     ("sft", "learning-rate", 2e-5), ("dpo", "learning-rate", 1e-6), ("kto", "beta", 0.1), ("grpo", "kl-coef", 0.0)],
)  # fmt: skip
def test_the_defaults_on_the_page_are_those_of_the_commands(command: str, option: str, default: float):
    name = option.replace("-", "_")
    settings = getattr(options, TRAINING[command][1]).__dataclass_fields__[command].default_factory()
    parts = [settings, *(value for value in vars(settings).values() if hasattr(value, "__dataclass_fields__"))]
    assert [getattr(part, name) for part in parts if hasattr(part, name)] == [default]
