"""KTO: learn from single answers that were liked or not, without pairs.

Whether an answer counts as a gain is judged against a reference point, which is one number for the whole optimizer
step: it is taken first, without gradient, over all micro-batches and processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from align.batch import Sequences, rows_at
from align.config import KTOConfig
from align.data import Examples
from align.logprobs import TokenLogprobs
from align.pairs import Feedback
from align.preferences import kto_loss, summed
from align.training import Trainer, cut_by_tokens

if TYPE_CHECKING:
    from accelerate import Accelerator

    from align.models import Reference


def mismatched(examples: Examples, rows: Sequence[int]) -> Examples:
    """Give each prompt the answer of the next row, the last one that of the first: what the policy would hardly say.

    A prompt ends where the first token is trained; what follows it is the answer. None becomes longer than the longest
    of the rows, for which there is room.
    """
    borders = [examples.action_masks[row].index(True) for row in rows]
    ids = [examples.ids[row] for row in rows]
    masks = [examples.action_masks[row] for row in rows]
    following, longest = [*range(1, len(rows)), 0], max(map(len, ids))
    return Examples(
        [(ids[row][: borders[row]] + ids[other][borders[other] :])[:longest] for row, other in enumerate(following)],
        [([False] * borders[row] + masks[other][borders[other] :])[:longest] for row, other in enumerate(following)],
    )


class KTO:
    """The loop: `steps()` yields the metrics of each optimizer step; `state()` is all that a resumed run needs.

    The reference point is z = max(0, mean of log(pi / ref) over the step's answers under other rows' prompts), as in
    the paper: a biased estimate of KL(policy || reference), but a cheap one. The paper takes it from each micro-batch;
    here it is that of the step, so that how a step is cut changes nothing.

    Source: Ethayarajh et al. 2024 (arXiv:2402.01306).

    policy: the module that is trained.
    feedback: what was liked and what was not.
    reference: as `align.models.reference_of` gives it, taken before anything is trained.
    """

    def __init__(
        self,
        policy: nn.Module,
        feedback: Feedback,
        config: KTOConfig,
        accelerator: Accelerator,
        *,
        reference: Reference,
    ) -> None:
        if len(feedback) < 2:
            raise ValueError(f"KTO needs at least 2 answers, got {len(feedback)}: each also meets another's prompt")
        self.config = config
        self.data = feedback
        self.accelerator = accelerator
        self.trainer = Trainer(policy, config.optimizer, accelerator, config.steps)
        self.reference = reference
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
        mine = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        sequences = self.data.examples.select(rows[mine])
        liked = torch.tensor([self.data.labels[row] for row in rows[mine]], dtype=torch.bool)
        reference_point = self._reference_point(mismatched(self.data.examples, rows).select(range(count)[mine]), count)

        def loss_of(said: TokenLogprobs, micro_batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            logprobs = said.logprobs
            batch, labels = sequences.select(micro_batch).to(logprobs.device), liked[micro_batch].to(logprobs.device)
            log_ratios = self._log_ratios(batch, logprobs)
            losses = kto_loss(
                log_ratios,
                labels,
                reference_point,
                beta=self.config.beta,
                desirable_weight=self.config.desirable_weight,
                undesirable_weight=self.config.undesirable_weight,
            )
            return losses.sum() / count, _sums(self.config.beta * log_ratios.detach().double(), labels, batch)

        result = self.trainer.step(sequences, loss_of, step=self.step)
        self.step += 1
        return {
            "optim/loss": result["loss"],
            "optim/grad_norm": result["grad_norm"],
            "optim/learning_rate": result["learning_rate"],
            **_preferences(result),
            "kl/reference_point": reference_point,
            "tokens/trained": result["tokens"],
            "time/step": time.perf_counter() - started,
        }

    def _log_ratios(self, batch: Sequences, logprobs: Tensor) -> Tensor:
        """Return log(pi / ref) of whole answers. [B]"""
        with self.accelerator.autocast():  # the arithmetic of the policy, or the two would differ from the start
            ref_logprobs = self.reference(batch.input_ids, batch.action_mask)
        return summed(logprobs - ref_logprobs, batch.action_mask)

    @torch.no_grad()
    def _reference_point(self, sequences: Sequences, count: int) -> float:
        """Return the mean log-ratio over the answers of all processes, at least 0."""
        total = torch.zeros((), dtype=torch.float64)
        budget = self.config.optimizer.tokens_per_micro_batch
        for rows in cut_by_tokens(sequences.lengths, budget) if len(sequences) else []:
            batch = sequences.select(rows).to(self.accelerator.device)
            # not the wrapped policy, whose forward may wait for processes that have no further batch
            with self.accelerator.autocast():
                logprobs = self.trainer.unwrapped(batch.input_ids, batch.action_mask).logprobs
            total += self._log_ratios(batch, logprobs).double().sum().cpu()
        return max(0.0, self.trainer.sum_over_processes({"total": total})["total"] / count)

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


def _sums(rewards: Tensor, liked: Tensor, batch: Sequences) -> dict[str, Tensor]:
    return {
        "tokens": batch.action_mask.sum(),
        "liked": liked.sum(),
        "disliked": (~liked).sum(),
        "chosen": rewards[liked].sum(),
        "rejected": rewards[~liked].sum(),
    }


def _preferences(sums: dict[str, float]) -> dict[str, float]:
    """Return the mean reward of either label, where the step has answers of it."""
    means = {"chosen": "liked", "rejected": "disliked"}
    return {f"preference/{name}_reward": sums[name] / sums[of] for name, of in means.items() if sums[of]}
