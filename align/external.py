"""Completions from elsewhere, an inference server or another precision, in the form that GRPO and PPO take.

What they learn from need not come from the policy's own arithmetic, if the log-probabilities under which it was drawn
come with it: name a mode of `align.config.ImportanceConfig`, and what is learned is weighed by them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from align.batch import Prompts, Rollouts, Sequences
from align.config import SamplingConfig
from align.sampler import Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Drawn = tuple[Sequence[int], Sequence[float]]
"""The token ids of a completion, and the log-probability of each under the distribution that drew it, nats."""


class ExternalSampler(Sampler):
    """Has another program sample, and makes rollouts of what it gives; takes the place of `Sampler` in GRPO and PPO.

    complete: (token ids of N prompts, group_size=, seed=, step=, numbers=) -> N * G completions, in the order of the
        prompts; seed, step, the prompt's number and the sample's tell draws apart. Log-probabilities are of the
        distribution that drew, temperature and truncation included: of vLLM, with logprobs_mode "processed_logprobs".
    load: called with the policy and the number of steps that it has taken before each rollout, to hand its weights
        over; None if what samples keeps its own.
    model: the causal LM that is trained, which recipes save; it samples nothing.
    config: what `complete` samples with; its temperature must be the policy's.
    """

    def __init__(
        self,
        complete: Callable[..., Sequence[Drawn]],
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        config: SamplingConfig,
        *,
        eos_token_ids: Sequence[int],
        load: Callable[[nn.Module, int], None] | None = None,
        keep_special_tokens: bool = False,
    ) -> None:
        super().__init__(model, tokenizer, config, eos_token_ids=eos_token_ids, keep_special_tokens=keep_special_tokens)
        self.complete, self.load = complete, load

    def load_weights(self, policy: nn.Module, version: int) -> None:
        """Hand the policy's weights over, and note their version."""
        if self.load is not None:
            self.load(policy, version)
        self.weight_version = version

    def sample(
        self, prompts: Prompts, *, group_size: int, seed: int, step: int, numbers: Sequence[int] | None = None
    ) -> Rollouts:
        """Ask for `group_size` completions of every prompt, otherwise as `Sampler.sample`.

        Raises:
            ValueError: if there are too few or too many completions, one is longer than max_new_tokens, or a
                log-probability is missing, positive or not finite.
        """
        numbers = list(range(len(prompts)) if numbers is None else numbers)
        drawn = self.complete(prompts.ids, group_size=group_size, seed=seed, step=step, numbers=numbers)
        drawn = [_until_end(row, self.eos_token_ids.tolist(), self.config.max_new_tokens) for row in drawn]
        if len(drawn) != len(prompts) * group_size:
            raise ValueError(
                f"expected {len(prompts)} prompts * {group_size} completions, got {len(drawn)}: give as many of each "
                "prompt as group_size says, one prompt's after the other's"
            )
        asked = [ids for ids in prompts.ids for _ in range(group_size)]
        sequences = Sequences.from_lists(
            [[*prompt, *ids] for prompt, (ids, _) in zip(asked, drawn, strict=True)],
            [[False] * len(prompt) + [True] * len(ids) for prompt, (ids, _) in zip(asked, drawn, strict=True)],
        )
        flat = torch.tensor([logprob for _, row in drawn for logprob in row])
        logprobs = torch.zeros(sequences.input_ids.shape).masked_scatter(sequences.action_mask, flat)
        ends = [bool(ids) and ids[-1] in self.eos_token_ids for ids, _ in drawn]
        return Rollouts(
            prompts=prompts,
            numbers=numbers,
            group_size=group_size,
            sequences=sequences,
            logprobs=logprobs,
            entropy=-logprobs,  # of one draw, whose mean is the entropy
            terminated=torch.tensor(ends),
            texts=self.tokenizer.batch_decode(
                [list(ids) for ids, _ in drawn], skip_special_tokens=not self.keep_special_tokens
            ),
            weight_version=self.weight_version,
            rewards=torch.full((len(drawn),), torch.nan),
            parts={},
        )


def _until_end(drawn: Drawn, eos: Sequence[int], cap: int) -> Drawn:
    """Cut a completion after its first EOS; refuse one that cannot be learned from."""
    ids, logprobs = drawn
    if len(ids) != len(logprobs) or not all(-math.inf < logprob <= 0 for logprob in logprobs):
        raise ValueError(
            f"a completion of {len(ids)} tokens came with the log-probabilities {list(logprobs)[:8]}...: give each "
            "token the finite one, at most 0, under which it was drawn"
        )
    end = next((place for place, token in enumerate(ids) if token in eos), len(ids) - 1) + 1
    if end > cap:
        raise ValueError(f"a completion has {end} tokens, more than max_new_tokens {cap}: sample no more, or raise it")
    return ids[:end], logprobs[:end]
