"""Reward models: learn from pairs of answers to give a score that is higher where people prefer.

A score means something beside another to the same prompt only: a constant added to both changes neither the probability
that one is preferred nor the loss. `align.reward_head` has the model, and its use as a reward.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from align.batch import rows_at
from align.config import RewardModelConfig
from align.logprobs import base_model
from align.models import check_lengths
from align.pairs import Pairs
from align.preferences import bradley_terry_loss
from align.reward_head import RewardModel, TokenScores, at_last, check_ends
from align.training import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

BINS = 10
"""Of equal width, over the confidences 1/2 to 1, in the calibration error."""


def reward_model_loss(
    chosen_scores: Tensor, rejected_scores: Tensor, *, margin: Tensor | None = None, centring: float = 0.0
) -> Tensor:
    """Add to the Bradley-Terry loss a pull of each pair's scores to a mean of 0, which the loss leaves open.

        L = -log sigmoid(chosen - rejected - margin) + centring * (chosen + rejected)^2

    Source: the second term: Eisenstein et al. 2023 (arXiv:2312.09244). Otherwise as `bradley_terry_loss`.
    """
    loss = bradley_terry_loss(chosen_scores, rejected_scores, margin=margin)
    return loss + centring * (chosen_scores + rejected_scores).square()


def calibration_error(margins: Tensor) -> Tensor:
    """Say how far the confidence in a pair is from how often such pairs are right: the expected calibration error.

        confidence = sigmoid(|margin|), right where margin > 0 (a tie is half right)
        error      = sum over bins b of (pairs in b / pairs) * |share right in b - mean confidence in b|

    Source: Guo et al. 2017 (arXiv:1706.04599), with the two answers of a pair as the classes; so confidences lie in
    [1/2, 1], which is cut into `BINS` bins of equal width.

    Args:
        margins: score of the chosen minus that of the rejected answer. [B]

    >>> calibration_error(torch.tensor([1.0, 1.0, 1.0, -1.0])).round(decimals=3)  # right in 75 %, sure of 73 %
    tensor(0.0190, dtype=torch.float64)
    """
    return _surplus(margins).abs().sum() / max(len(margins), 1)


class RewardTraining:
    """The loop: `steps()` yields the metrics of each optimizer step; `state()` is all that a resumed run needs.

    model: `align.reward_head.RewardModel`, its padding separated.
    pairs: tokenised with the reward model's own tokenizer; their margins count where there are any.
    """

    def __init__(self, model: RewardModel, pairs: Pairs, config: RewardModelConfig, accelerator: Accelerator) -> None:
        if len(pairs) == 0:
            raise ValueError("there are no pairs to learn from: every row was left out, or none was read")
        pad: int | None = base_model(model.model).config.get_text_config().pad_token_id
        check_ends([ids[-1:] for side in (pairs.chosen, pairs.rejected) for ids in side.ids], pad)
        check_lengths(model, [*pairs.chosen.ids, *pairs.rejected.ids])
        self.config = config
        self.data = pairs
        self.accelerator = accelerator
        self.trainer = Trainer(model, config.optimizer, accelerator, config.steps)
        self.step = 0
        self.total_steps = config.steps

    def steps(self) -> Iterator[dict[str, float]]:
        """Run from the current step to the last."""
        while self.step < self.total_steps:
            yield self._step()

    def _step(self) -> dict[str, float]:
        started = time.perf_counter()
        count = self.config.pairs_per_step
        rows = rows_at(self.step * count, count, len(self.data), self.config.seed)
        rows = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        sequences = at_last(self.data.select(rows))

        def loss_of(said: TokenScores, micro_batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            scores = said.logprobs
            pairs = [rows[number] for number in (micro_batch[::2] // 2).tolist()]
            losses, sums = self._compare(scores, self.data, pairs)
            return losses.sum() / count, sums

        result = self.trainer.step(sequences, loss_of, step=self.step, together=2)
        self.step += 1
        return {
            "optim/loss": result["loss"],
            "optim/grad_norm": result["grad_norm"],
            "optim/learning_rate": result["learning_rate"],
            **_preferences(result, count),
            "time/step": time.perf_counter() - started,
        }

    def _compare(self, scores: Tensor, pairs: Pairs, rows: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each pair, and sums over pairs; scores [2b, t] are chosen, rejected, chosen, ..."""
        chosen, rejected = scores.sum(dim=1).view(-1, 2).unbind(dim=1)  # one token of each row has a score
        margin = torch.tensor([pairs.margins[row] for row in rows]).to(chosen) if pairs.margins else None
        losses = reward_model_loss(chosen, rejected, margin=margin, centring=self.config.centring)
        chosen, rejected = chosen.detach().double(), rejected.detach().double()
        return losses, {
            "right": _right(chosen - rejected).sum(),
            "margin": (chosen - rejected).sum(),
            "scores": (chosen + rejected).sum(),
        }

    @torch.no_grad()
    def margins(self, held_out: Pairs) -> Tensor:
        """Return the score of the chosen minus that of the rejected answer, of every pair on all processes. [N]"""
        return self._scores(held_out) @ torch.tensor([1.0, -1.0], dtype=torch.float64)

    @torch.no_grad()
    def evaluate(self, held_out: Pairs) -> dict[str, float]:
        """Return mean loss, accuracy, mean margin and score, and calibration on pairs that were not learned from."""
        scores = self._scores(held_out)
        losses, sums = self._compare(scores.view(-1, 1), held_out, list(range(len(held_out))))
        error = calibration_error(scores[:, 0] - scores[:, 1])
        told = _preferences({name: float(value) for name, value in sums.items()}, len(held_out))
        return {"loss": float(losses.mean()), **told, "reward_model/calibration_error": float(error)}

    def _scores(self, pairs: Pairs) -> Tensor:
        """Return the scores of chosen and rejected answers, each process computing its share. [N, 2]"""
        rows = range(len(pairs))[self.accelerator.process_index :: self.accelerator.num_processes]
        sequences, found = at_last(pairs.select(rows)), {}
        for micro_batch in self.trainer.cut(sequences, together=2) if rows else []:
            batch = sequences.select(micro_batch).to(self.accelerator.device)
            # not the wrapped model, whose forward may wait for processes that have no further batch
            with self.accelerator.autocast():
                scores = self.trainer.unwrapped(batch.input_ids, batch.action_mask).logprobs.sum(dim=1)
            for number, both in zip((micro_batch[::2] // 2).tolist(), scores.view(-1, 2).tolist(), strict=True):
                found[rows[number]] = both
        everywhere = dict(self.trainer.gathered(list(found.items())))
        return torch.tensor([everywhere[row] for row in range(len(pairs))], dtype=torch.float64).view(-1, 2)

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


def _preferences(sums: dict[str, float], pairs: int) -> dict[str, float]:
    return {
        "preference/accuracy": sums["right"] / pairs,
        "preference/margin": sums["margin"] / pairs,
        "reward_model/mean": sums["scores"] / (2 * pairs),
    }


def _right(margins: Tensor) -> Tensor:
    return ((margins > 0).double() + (margins >= 0).double()) / 2


def _surplus(margins: Tensor) -> Tensor:
    """Return, of each bin, the sum over its pairs of right minus confidence. [BINS]"""
    confidence = torch.sigmoid(margins.double().abs())
    bins = ((confidence - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    return torch.zeros(BINS, dtype=torch.float64).index_add(0, bins, _right(margins) - confidence)
