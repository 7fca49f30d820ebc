"""Supervised fine-tuning: raise the log-probability of the tokens to imitate.

The denominator is the number of those tokens in the whole optimizer step, so that every token weighs the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from align.aggregate import token_mean
from align.batch import rows_at
from align.config import SFTConfig
from align.data import Examples
from align.logprobs import TokenLogprobs
from align.models import check_lengths
from align.training import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator


def sft_loss(logprobs: Tensor) -> Tensor:
    """Return the cross-entropy of each token: the negative of its log-probability. [B, T] -> [B, T]"""
    return -logprobs


class SFT:
    """The loop: `steps()` yields the metrics of each optimizer step; `state()` is all that a resumed run needs."""

    def __init__(self, policy: nn.Module, examples: Examples, config: SFTConfig, accelerator: Accelerator) -> None:
        if len(examples) == 0:
            raise ValueError("there are no examples to learn from: every row was dropped, or none was read")
        check_lengths(policy, examples.ids)
        self.config = config
        self.data = examples
        self.accelerator = accelerator
        self.trainer = Trainer(policy, config.optimizer, accelerator, config.steps)
        self.step = 0
        self.total_steps = config.steps

    def steps(self) -> Iterator[dict[str, float]]:
        """Run from the current step to the last."""
        while self.step < self.total_steps:
            yield self._step()

    def _step(self) -> dict[str, float]:
        started = time.perf_counter()
        count = self.config.examples_per_step
        rows = rows_at(self.step * count, count, len(self.data), self.config.seed)
        sequences = self.data.select(rows[self.accelerator.process_index :: self.accelerator.num_processes])
        tokens = self.trainer.sum_over_processes({"tokens": sequences.action_mask.sum()})["tokens"]

        def loss_of(said: TokenLogprobs, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            mask = sequences.select(rows).action_mask.to(said.logprobs.device)
            return token_mean(sft_loss(said.logprobs), mask, denominator=tokens), {}

        result = self.trainer.step(sequences, loss_of, step=self.step)
        self.step += 1
        return {
            "optim/loss": result["loss"],
            "optim/grad_norm": result["grad_norm"],
            "optim/learning_rate": result["learning_rate"],
            "tokens/trained": tokens,
            "time/step": time.perf_counter() - started,
        }

    @torch.no_grad()
    def evaluate(self, held_out: Examples) -> dict[str, float]:
        """Return "loss", the mean cross-entropy per token to imitate, on examples that were not learned from."""
        rows = range(len(held_out))[self.accelerator.process_index :: self.accelerator.num_processes]
        sums = {"loss": torch.zeros(()), "tokens": torch.zeros(())}
        sequences = held_out.select(rows)
        for batch in self.trainer.cut(sequences) if rows else []:
            part = sequences.select(batch).to(self.accelerator.device)
            # not the wrapped policy, whose forward may wait for processes that have no further batch
            losses = sft_loss(self.trainer.unwrapped(part.input_ids, part.action_mask).logprobs)
            sums["loss"] += losses[part.action_mask].double().sum().cpu()
            sums["tokens"] += part.action_mask.sum().cpu()
        total = self.trainer.sum_over_processes(sums)
        return {"loss": total["loss"] / total["tokens"]}

    def state(self) -> dict[str, Any]:
        """Return weights, optimizer and step; the order of the data follows from the seed and the step."""
        return {"trainer": self.trainer.state(), "step": self.step}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.trainer.load_state(state["trainer"])
        self.step = int(state["step"])

    def examples(self) -> list[dict[str, Any]]:
        """Return nothing: no completions are sampled here."""
        return []
