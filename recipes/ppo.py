"""PPO on any model, prompts and rewards: `align ppo --model FOLDER --data prompts.jsonl --reward exact_answer`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from align.batch import Prompts
from align.critic import ActorCritic
from align.data import eos_token_ids
from align.models import load_tokenizer, load_value_head, reference_of, save_value_head
from align.ppo import PPO
from align.reward_head import RewardModel, save_reward_model
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
    return train_on_prompts("ppo", options, command, build, partial(save_critic, options))


def build(
    options: PPOOptions,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    held_out: Prompts | None,
    rewards: Sequence[Reward],
    accelerator: Accelerator,
) -> PPO:
    """Load the model and its critic, which is a value model or the value head beside it, and build the algorithm."""
    config = options.ppo
    model = inputs.make_model(options.model, seed=config.seed)
    # a completion that is cut is looked at one token further where it bootstraps
    room = config.sampling.max_new_tokens + (config.token_rewards.truncated == "bootstrapped")
    ids = [*prompts.ids, *(held_out.ids if held_out else [])]
    inputs.check_fit(model, ids, room)
    value_model = None
    if options.critic.value_model is not None:
        value_model = inputs.make_value_model(
            options.critic.value_model, model, tokenizer, trust_remote_code=options.model.trust_remote_code
        )
        inputs.check_fit(value_model.model, ids, room)
    policy = ActorCritic(model, temperature=config.sampling.temperature, value_model=value_model)
    if value_model is None:
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


def save_critic(options: PPOOptions, algorithm: PPO, directory: Path) -> None:
    """Write the value head, or the value model as a reward model, into the folder of the trained model."""
    policy: ActorCritic = algorithm.trainer.unwrapped
    if options.critic.value_model is None:
        save_value_head(policy, directory)
        return
    tokenizer = load_tokenizer(options.critic.value_model, trust_remote_code=options.model.trust_remote_code)
    card = f"# Value model\n\nThe critic of the policy in {directory.name}, trained with it by `align ppo`.\n"
    save_reward_model(cast(RewardModel, policy.value_model).model, tokenizer, directory / "value_model", card=card)


main = recipe("align ppo", PPOOptions, train)

if __name__ == "__main__":
    main()
