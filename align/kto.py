"""KTO: learn from single answers that were liked or not, without pairs.

Whether an answer counts as a gain is judged against a reference point, which is one number for the whole optimizer
step: it is taken first, without gradient, over all micro-batches and processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from align.batch import Sequences, rows_at
from align.config import KTOConfig
from align.data import Examples
from align.logprobs import TokenLogprobs
from align.models import Reference, check_lengths, disable_dropout
from align.pairs import Feedback
from align.preferences import kto_loss, summed
from align.training import NonFiniteError, Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator


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


def asked_of_reference(feedback: Feedback, config: KTOConfig, held_out: Feedback | None = None) -> Iterator[Examples]:
    """Yield all that a run asks its reference about, for `align.reference_cache.cached_reference`.

    These are the answers, and for the reference points each step's answers under the prompts of others. Which prompt
    meets which answer changes from step to step, so of these there are as many as a run without a cache computes; they
    follow from seed, steps and examples_per_step, and runs that differ in other settings share them.
    """
    yield feedback.examples
    for step in range(config.steps):
        yield mismatched(feedback.examples, _rows(step, len(feedback), config))
    if held_out is not None:
        yield from (held_out.examples, mismatched(held_out.examples, range(len(held_out))))


def _rows(step: int, size: int, config: KTOConfig) -> list[int]:
    return rows_at(step * config.examples_per_step, config.examples_per_step, size, config.seed)


class KTO:
    """The loop: `steps()` yields the metrics of each optimizer step; `state()` is all that a resumed run needs.

    The reference point is z = max(0, mean of log(pi / ref) over the step's answers under other rows' prompts), as in
    the paper: a biased estimate of KL(policy || reference), but a cheap one. The paper takes it from each micro-batch;
    here it is that of the step, so that how a step is cut changes nothing.

    Source: Ethayarajh et al. 2024 (arXiv:2402.01306).

    policy: the module that is trained; its dropout is switched off.
    feedback: what was liked and what was not.
    reference: as `align.models.reference_of` gives it, taken before anything is trained, or
        `align.reference_cache.cached_reference`.
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
        _check_two(feedback)
        check_lengths(policy, feedback.examples.ids)
        disable_dropout(policy)  # or what is compared with the reference would be noise
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
        rows = _rows(self.step, len(self.data), self.config)
        mine = rows[self._mine]
        sequences = self.data.examples.select(mine)
        liked = torch.tensor([self.data.labels[row] for row in mine], dtype=torch.bool)
        reference_point = self._reference_point(mismatched(self.data.examples, rows))

        def loss_of(said: TokenLogprobs, micro_batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            batch = sequences.select(micro_batch).to(said.logprobs.device)
            log_ratios = self._log_ratios(batch, said.logprobs)
            loss, sums = self._judge(log_ratios, liked[micro_batch].to(log_ratios.device), reference_point)
            return loss / count, {"tokens": batch.action_mask.sum(), **sums}

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

    def _judge(self, log_ratios: Tensor, liked: Tensor, reference_point: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the answers' losses, and sums of their rewards by label."""
        losses = kto_loss(
            log_ratios,
            liked,
            reference_point,
            beta=self.config.beta,
            desirable_weight=self.config.desirable_weight,
            undesirable_weight=self.config.undesirable_weight,
        )
        rewards = self.config.beta * log_ratios.detach().double()
        return losses.sum(), {
            "liked": liked.sum(),
            "disliked": (~liked).sum(),
            "chosen": rewards[liked].sum(),
            "rejected": rewards[~liked].sum(),
        }

    def _reference_point(self, crossed: Examples) -> float:
        """Return the mean log-ratio of answers under others' prompts, over all processes, at least 0.

        Raises:
            NonFiniteError: if it is not finite.
        """
        sums = self.trainer.sum_over_processes({"total": self._log_ratios_of(crossed).sum()})
        mean = sums["total"] / len(crossed)
        if not math.isfinite(mean):  # max would take 0 for NaN
            sequences = crossed.select(range(len(crossed)))
            raise NonFiniteError(
                f"step {self.step + 1}: the reference point is {mean}: policy or reference gives a log-probability "
                "that is not finite; look at the answers under others' prompts, which were saved",
                {"input_ids": sequences.input_ids, "action_mask": sequences.action_mask},
            )
        return max(0.0, mean)

    @torch.no_grad()
    def _log_ratios_of(self, examples: Examples) -> Tensor:
        """Return the log-ratios of this process's share of some examples. [share], float64"""
        sequences = examples.select(range(len(examples))[self._mine])
        found = torch.zeros(len(sequences), dtype=torch.float64)
        for rows in self.trainer.cut(sequences) if len(sequences) else []:
            batch = sequences.select(rows).to(self.accelerator.device)
            # not the wrapped policy, whose forward may wait for processes that have no further batch
            with self.accelerator.autocast():
                logprobs = self.trainer.unwrapped(batch.input_ids, batch.action_mask).logprobs
            found[rows] = self._log_ratios(batch, logprobs).double().cpu()
        return found

    @torch.no_grad()
    def evaluate(self, held_out: Feedback) -> dict[str, float]:
        """Return the mean "loss" of an answer, the rewards and the reference point, on what was not learned from.

        The reference point is that of all held-out answers, each under the prompt of the row before.

        Raises:
            ValueError: if there are fewer than two answers.
        """
        _check_two(held_out)
        reference_point = self._reference_point(mismatched(held_out.examples, range(len(held_out))))
        liked = torch.tensor(held_out.labels[self._mine], dtype=torch.bool)
        loss, sums = self._judge(self._log_ratios_of(held_out.examples), liked, reference_point)
        result = self.trainer.sum_over_processes({"loss": loss, **sums})
        return {
            "loss": result["loss"] / len(held_out),
            **_preferences(result),
            "kl/reference_point": reference_point,
        }

    @property
    def _mine(self) -> slice:
        """This process's share of some rows."""
        return slice(self.accelerator.process_index, None, self.accelerator.num_processes)

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


def _check_two(feedback: Feedback) -> None:
    if len(feedback) < 2:
        raise ValueError(f"KTO needs at least 2 answers, got {len(feedback)}: each also meets another's prompt")


def _preferences(sums: dict[str, float]) -> dict[str, float]:
    """Return the mean reward of either label, where the step has answers of it."""
    means = {"chosen": "liked", "rejected": "disliked"}
    return {f"preference/{name}_reward": sums[name] / sums[of] for name, of in means.items() if sums[of]}
