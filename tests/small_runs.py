"""A small run of each algorithm, that tests build alike."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator

from align.config import (
    CriticConfig,
    DPOConfig,
    GRPOConfig,
    KTOConfig,
    OptimizerConfig,
    PPOConfig,
    RewardModelConfig,
    SamplingConfig,
    SFTConfig,
    TokenRewardConfig,
)
from align.critic import ActorCritic
from align.data import Examples, read_prompts, tokenize_prompts
from align.dpo import DPO
from align.grpo import GRPO
from align.kto import KTO, asked_of_reference
from align.logprobs import Policy
from align.models import add_lora, disable_dropout, reference_of
from align.pairs import Feedback, Pairs
from align.ppo import PPO
from align.preferences import summed
from align.reference_cache import cached_reference
from align.reward_head import RewardModel, reward_model_of, separate_padding
from align.reward_model import RewardTraining
from align.rewards import Reward
from align.sampler import Sampler
from align.sft import SFT
from tests.models import tiny_model
from tests.tiny import tiny_tokenizer

ROWS = [{"prompt": text, "letter": text[0]} for text in ("ab", "bcd", "cdefg", "da", "efgh", "fedcba")]


def share_of_letter(prompts, completions, letter):
    """Reward completions for the share of their characters that are the prompt's first, in words of the alphabet."""
    return [sum(c in "abcdefghij" for c in text) / 8 for text in completions]


def small_policy(*, lora: bool = False, double: bool = False, kind: Any = Policy, model: Any = None) -> tuple[Any, Any]:
    tokenizer = tiny_tokenizer()
    model = model or tiny_model(vocab_size=len(tokenizer), initializer_range=0.1)
    model = model.double() if double else model
    model.config.eos_token_id = tokenizer.eos_token_id
    disable_dropout(model)
    return kind(add_lora(model, rank=4) if lora else model), tokenizer


def small_grpo(
    *,
    lora: bool = False,
    double: bool = False,
    kl: bool = False,
    reward=share_of_letter,
    max_new_tokens=6,
    micro=10_000,
    mixed_precision="no",
    model=None,
    **changes,
):
    policy, tokenizer = small_policy(lora=lora, double=double, model=model)
    config = GRPOConfig(
        **{
            "steps": 6,
            "prompts_per_step": 4,
            "group_size": 4,
            "kl_coef": 0.1 if kl else 0.0,
            "sampling": SamplingConfig(max_new_tokens=max_new_tokens),
            "optimizer": OptimizerConfig(learning_rate=1e-2, tokens_per_micro_batch=micro),
            **changes,
        }
    )
    sampler = Sampler(policy.model, tokenizer, config.sampling, eos_token_ids=[tokenizer.eos_token_id])
    prompts = tokenize_prompts(read_prompts(ROWS), tokenizer)
    reference = reference_of(policy) if kl else None
    accelerator = Accelerator(cpu=True, mixed_precision=mixed_precision)
    return GRPO(policy, sampler, prompts, [Reward(reward)], config, accelerator, reference=reference)


def small_scorer(tokenizer, *, double: bool = False) -> RewardModel:
    """A reward model of the same tokens and another trunk."""
    trunk = tiny_model(vocab_size=len(tokenizer), initializer_range=0.1, num_hidden_layers=1)
    model = reward_model_of(trunk, seed=0)
    separate_padding(model, tokenizer)
    return RewardModel(model.double() if double else model)


def small_ppo(
    *,
    lora: bool = False,
    double: bool = False,
    kl: bool = True,
    reward=share_of_letter,
    max_new_tokens=6,
    micro=10_000,
    learning_rate=1e-2,
    token_rewards=None,
    critic=None,
    reference=None,
    value_model=False,
    **changes,
):
    policy, tokenizer = small_policy(lora=lora, double=double)
    own = small_scorer(tokenizer, double=double) if value_model else None
    policy = ActorCritic(policy.model, value_model=own)
    config = PPOConfig(
        **{
            "steps": 6,
            "prompts_per_step": 8,
            "group_size": 2,
            "token_rewards": TokenRewardConfig(**{"kl_coef": 0.1 if kl else 0.0, **(token_rewards or {})}),
            "critic": CriticConfig(**(critic or {})),
            "sampling": SamplingConfig(max_new_tokens=max_new_tokens),
            "optimizer": OptimizerConfig(learning_rate=learning_rate, tokens_per_micro_batch=micro),
            **changes,
        }
    )
    sampler = Sampler(policy.model, tokenizer, config.sampling, eos_token_ids=[tokenizer.eos_token_id])
    prompts = tokenize_prompts(read_prompts(ROWS), tokenizer)
    reference = reference or (reference_of(policy) if kl else None)
    return PPO(policy, sampler, prompts, [Reward(reward)], config, Accelerator(cpu=True), reference=reference)


def small_sft(*, lora: bool = False, double: bool = False, micro: int = 10_000, model=None, **changes):
    policy, _ = small_policy(lora=lora, double=double, model=model)
    ids = [[5 + (7 * row + t) % 50 for t in range(3 + row % 5)] for row in range(12)]
    examples = Examples(ids, [[False] + [True] * (len(row) - 1) for row in ids])
    config = SFTConfig(
        **{
            "steps": 6,
            "examples_per_step": 5,
            "optimizer": OptimizerConfig(learning_rate=1e-2, tokens_per_micro_batch=micro),
            **changes,
        }
    )
    return SFT(policy, examples, config, Accelerator(cpu=True))


def small_pairs(count: int = 11) -> Pairs:
    """Pairs of answers of different lengths to a prompt of two tokens: to prefer even tokens to odd ones."""

    def side(odd: int) -> Examples:
        ids = [[7, 8 + row % 3, *(10 + 2 * ((row + t) % 20) + odd for t in range(1 + (row * 3 + odd) % 5)), 2]
               for row in range(count)]  # fmt: skip
        return Examples(ids, [[False, False] + [True] * (len(row) - 2) for row in ids])

    return Pairs(side(0), side(1))


def small_dpo(
    *,
    lora: bool = False,
    double: bool = False,
    micro: int = 10_000,
    loss=None,
    score=summed,
    cache=None,
    policy=None,
    **changes,
):
    policy = policy or small_policy(lora=lora, double=double)[0]
    config = DPOConfig(
        **{
            "steps": 6,
            "pairs_per_step": 5,
            "beta": 0.5,
            "sft_weight": 0.1,
            "optimizer": OptimizerConfig(learning_rate=1e-2, tokens_per_micro_batch=micro),
            **changes,
        }
    )
    pairs, accelerator = small_pairs(), Accelerator(cpu=True)
    asked = [pairs.chosen, pairs.rejected]
    reference = cached_reference(cache, policy, asked, accelerator) if cache else reference_of(policy)
    return DPO(policy, pairs, config, accelerator, reference=reference, loss=loss, score=score)


def small_feedback(count: int = 11) -> Feedback:
    """Answers of `small_pairs`: even tokens are liked, of which there are fewer, and odd ones are not."""
    pairs, liked = small_pairs(count), count * 2 // 3
    ids = pairs.chosen.ids[:liked] + pairs.rejected.ids
    masks = pairs.chosen.action_masks[:liked] + pairs.rejected.action_masks
    return Feedback(Examples(ids, masks), [True] * liked + [False] * count)


def small_kto(*, lora: bool = False, double: bool = False, micro: int = 10_000, cache=None, policy=None, **changes):
    policy = policy or small_policy(lora=lora, double=double)[0]
    feedback, accelerator = small_feedback(), Accelerator(cpu=True)
    config = KTOConfig(
        **{
            "steps": 6,
            "examples_per_step": 7,
            "beta": 0.5,
            "desirable_weight": 1.5,
            "optimizer": OptimizerConfig(learning_rate=1e-2, tokens_per_micro_batch=micro),
            **changes,
        }
    )
    asked = asked_of_reference(feedback, config, feedback)
    reference = cached_reference(cache, policy, asked, accelerator) if cache else reference_of(policy)
    return KTO(policy, feedback, config, accelerator, reference=reference)


def small_reward_pairs(count: int = 11) -> Pairs:
    """Pairs of answers of different lengths to a prompt of two tokens: even tokens are preferred to odd ones."""

    def side(odd: int) -> Examples:
        ids = [[7, 8 + row % 3, *(10 + 2 * ((row + t) % 20) + odd for t in range(1 + (row * 3 + odd) % 5)), 2]
               for row in range(count)]  # fmt: skip
        return Examples(ids, [[False, False] + [True] * (len(row) - 2) for row in ids])

    return Pairs(side(0), side(1), margins=[row / 4 for row in range(count)])


def small_reward_model(*, lora: bool = False, double: bool = False, micro: int = 10_000, **changes):
    tokenizer = tiny_tokenizer()
    model = reward_model_of(tiny_model(vocab_size=len(tokenizer), initializer_range=0.1), seed=0)
    separate_padding(model, tokenizer)
    model = model.double() if double else model
    config = RewardModelConfig(
        **{
            "steps": 6,
            "pairs_per_step": 5,
            "centring": 0.05,
            "optimizer": OptimizerConfig(learning_rate=1e-2, tokens_per_micro_batch=micro),
            **changes,
        }
    )
    if lora:
        torch.manual_seed(0)
        model = add_lora(model, rank=4)
    return RewardTraining(RewardModel(model), small_reward_pairs(), config, Accelerator(cpu=True))
