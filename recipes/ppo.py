"""PPO on any model, prompts and rewards: `align ppo --model FOLDER --data prompts.jsonl --reward exact_answer`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.batch import Prompts
from align.critic import ActorCritic
from align.data import eos_token_ids
from align.models import load_value_head, reference_of, save_value_head
from align.ppo import PPO
from align.rewards import Reward
from align.sampler import Sampler
from recipes import inputs
from recipes.common import recipe
from recipes.options import PPOOptions
from recipes.prompted import train_on_prompts

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase


def train(options: PPOOptions, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    return train_on_prompts("ppo", options, command, build, save_critic)


def build(
    options: PPOOptions,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    held_out: Prompts | None,
    rewards: Sequence[Reward],
    accelerator: Accelerator,
) -> PPO:
    """Load the model, with its value head if it has one, and put the algorithm together."""
    config = options.ppo
    model = inputs.make_model(options.model, seed=config.seed)
    # a completion that is cut is looked at one token further where it bootstraps
    room = config.sampling.max_new_tokens + (config.token_rewards.truncated == "bootstrapped")
    inputs.check_fit(model, [*prompts.ids, *(held_out.ids if held_out else [])], room)
    policy = ActorCritic(model, temperature=config.sampling.temperature)
    load_value_head(policy, options.model.model)
    sampler = Sampler(model, tokenizer, config.sampling, eos_token_ids=eos_token_ids(model, tokenizer))
    return PPO(
        policy,
        sampler,
        prompts,
        rewards,
        config,
        accelerator,
        reference=reference_of(policy) if config.token_rewards.kl_coef else None,
        on_error=options.reward.on_reward_error,
    )


def save_critic(algorithm: PPO, directory: Path) -> None:
    """Write the value head into the folder of the trained model."""
    save_value_head(algorithm.trainer.unwrapped, directory)


main = recipe("align ppo", PPOOptions, train)

if __name__ == "__main__":
    main()
