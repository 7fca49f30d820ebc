"""PPO teaches a tiny model to think: the walk task with the true reward, from the start that GRPO has.

    python -m recipes.ppo_walk --seed 1
    python -m recipes.ppo_walk --seed 1 --reward-model runs/reward_walk-.../final --kl-coef 0.2

As in `recipes/grpo_walk.py` the right square earns 1 and everything else 0. Here a value head on the model's own trunk
is the baseline, and the reward pays for every nat that the policy moves away from where it began. With a reward model
its score is what earns; right squares earn nothing then and are counted beside it, to show reward hacking: a score
that rises while right squares become fewer. At the default --kl-coef, which suits the true reward, it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from align.batch import Prompts
from align.config import CriticConfig, OptimizerConfig, PPOConfig, SamplingConfig, TokenRewardConfig
from align.critic import ActorCritic
from align.data import eos_token_ids, read_prompts, tokenize_prompts
from align.models import load_model, load_tokenizer, reference_of, save_value_head
from align.ppo import PPO
from align.reward_names import MODEL, resolve
from align.rewards import Reward
from align.sampler import Sampler
from recipes import walk
from recipes.common import RunOptions, claim_directory, make_accelerator, recipe, tell
from recipes.shown_run import learn_and_show
from recipes.warm_up import warm_up

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn

PPO_DEFAULTS = PPOConfig(
    steps=400,
    prompts_per_step=128,
    epochs=2,
    minibatches=2,
    token_rewards=TokenRewardConfig(kl_coef=0.01),
    critic=CriticConfig(lam=0.95, value_coef=0.5),
    sampling=SamplingConfig(max_new_tokens=walk.LONGEST_COMPLETION),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10, final_fraction=0.1),
)


@dataclass(frozen=True)
class Options:
    """Warm a tiny model up on demonstrations, most of them guesses, and let PPO find out that thinking pays."""

    sft_steps: int = 250
    """Supervised steps on the demonstrations."""
    reward_model: Path | None = None
    """Folder of a reward model, such as recipes.reward_walk saves; its score is the reward then."""
    ppo: PPOConfig = field(default_factory=lambda: PPO_DEFAULTS)
    run: RunOptions = field(default_factory=lambda: RunOptions(evaluate_every=50))


def train(options: Options, command: Sequence[str]) -> int:
    """Run the recipe and return its exit code."""
    accelerator = make_accelerator()
    config = replace(options, run=RunOptions())
    directory = claim_directory(options.run, "ppo_walk", config, accelerator)
    warm = directory / "warm-up" / "final"
    warm_config = replace(options, reward_model=None, ppo=PPO_DEFAULTS, run=RunOptions())
    settings = {"config": warm_config, "steps": options.sft_steps, "seed": options.ppo.seed}
    if not warm.exists() and (code := warm_up(options.run, warm.parent, command, accelerator, **settings)):
        return code
    algorithm, held_out = build(options, warm, accelerator)
    earns = "the right square earns 1, everything else 0" if options.reward_model is None else "the learned score earns"
    tell(f"PPO: {earns}; every nat away from the start costs.", options.run, accelerator)

    return learn_and_show(
        algorithm,
        algorithm.sampler,
        held_out,
        algorithm.rewards,
        directory,
        options,
        seed=options.ppo.seed,
        config=config,
        command=command,
        accelerator=accelerator,
        save_more=partial(save_value_head, algorithm.trainer.unwrapped),
    )


def build(
    options: Options, warm: Path, accelerator: Accelerator, *, value_model: nn.Module | None = None
) -> tuple[PPO, Prompts]:
    """Build PPO on the warmed-up model, with a critic of its own if one is given, and the prompts to measure on."""
    config = options.ppo
    model, tokenizer = load_model(warm), load_tokenizer(warm)
    rollouts = -(-config.steps // (config.epochs * config.minibatches))
    held_out, _, practised = walk.splits(config.seed, rollouts * config.prompts_per_step)
    policy = ActorCritic(model, temperature=config.sampling.temperature, value_model=value_model)
    sampler = Sampler(model, tokenizer, config.sampling, eos_token_ids=eos_token_ids(model, tokenizer))
    prompts = tokenize_prompts(read_prompts(walk.tasks(practised)), tokenizer)
    learned = [] if options.reward_model is None else [resolve(f"{MODEL}{options.reward_model}")]
    rewards = [*learned, Reward(walk.right_square, weight=0.0 if learned else 1.0), Reward(walk.thinks, weight=0.0)]
    reference = reference_of(policy) if config.token_rewards.kl_coef else None
    algorithm = PPO(policy, sampler, prompts, rewards, config, accelerator, reference=reference)
    return algorithm, tokenize_prompts(read_prompts(walk.tasks(held_out)), tokenizer)


main = recipe("python -m recipes.ppo_walk", Options, train)

if __name__ == "__main__":
    main()
