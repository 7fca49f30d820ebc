"""GRPO on the numbers game, for an instruct model of one's own: reaching the target earns 1, any expression 0.1.

    python -m recipes.countdown --model FOLDER_OR_HUB_ID

The games are generated (`recipes/numbers_game.py`); --data countdown:numbers=3 asks for easier ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from recipes import numbers_game
from recipes.common import recipe
from recipes.grpo import build
from recipes.options import GRPOOptions, HeldOutOptions, own_defaults
from recipes.prompted import train_on_prompts

REWARDS = ("recipes.numbers_game:on_target", "recipes.numbers_game:expressed=0.1")


def train(options: GRPOOptions, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    return train_on_prompts("countdown", options, command, build)


def defaults(arguments: Sequence[str]) -> GRPOOptions:
    """Return what holds where nothing else is said: LoRA, 2,000 games to learn from and 200 to measure on."""
    options = own_defaults(
        arguments, rewards=REWARDS, system=numbers_game.SYSTEM, data=f"{numbers_game.SCHEME}size=2000"
    )
    return replace(options, held_out=HeldOutOptions(eval_data=f"{numbers_game.SCHEME}size=200"))


main = recipe("python -m recipes.countdown", GRPOOptions, train, defaults)

if __name__ == "__main__":
    main()
