"""DPO and its family: learn from pairs of answers, of which one was preferred, without a reward model or sampling.

A loss is a function of the pairs' log-probabilities of whole answers, (chosen, rejected, ref_chosen, ref_rejected)
-> [B]; without a reference, (chosen, rejected) -> [B]. It is passed in, not named: `align.preferences` has them, and
`summed` and `averaged`, which say what the log-probability of an answer is. A loss of margins is one of four by

    loss = lambda *logprobs: hinge_loss(dpo_margins(*logprobs), beta=0.1)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from align.aggregate import token_mean
from align.batch import Sequences, rows_at
from align.config import DPOConfig
from align.logprobs import TokenLogprobs
from align.models import Reference, check_lengths, disable_dropout
from align.pairs import Pairs
from align.preferences import dpo_loss, summed
from align.training import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator


class DPO:
    """The loop: `steps()` yields the metrics of each optimizer step; `state()` is all that a resumed run needs.

    policy: the module that is trained; its dropout is switched off.
    pairs: what was preferred to what.
    reference: as `align.models.reference_of` gives it, taken before anything is trained, or
        `align.reference_cache.cached_reference`; None for a loss that needs none.
    loss: of each pair; `dpo_loss` with the config's beta and label smoothing by default.
    score: the log-probability of an answer, (logprobs [B, T], action_mask [B, T]) -> [B]: `summed`, or `averaged` for
        IPO, SimPO and ORPO.
    """

    def __init__(
        self,
        policy: nn.Module,
        pairs: Pairs,
        config: DPOConfig,
        accelerator: Accelerator,
        *,
        reference: Reference | None,
        loss: Callable[..., Tensor] | None = None,
        score: Callable[[Tensor, Tensor], Tensor] = summed,
    ) -> None:
        if len(pairs) == 0:
            raise ValueError("there are no pairs to learn from: every row was left out, or none was read")
        if reference is None and loss is None:
            raise ValueError(
                "DPO compares with a reference and none was given: pass reference=reference_of(policy), or a loss of "
                "(chosen, rejected) alone, such as simpo_loss"
            )
        check_lengths(policy, [*pairs.chosen.ids, *pairs.rejected.ids])
        disable_dropout(policy)  # or what is compared with the reference would be noise
        self.config = config
        self.data = pairs
        self.accelerator = accelerator
        self.trainer = Trainer(policy, config.optimizer, accelerator, config.steps)
        self.reference = reference
        self.loss = loss or partial(dpo_loss, beta=config.beta, label_smoothing=config.label_smoothing)
        self.score = score
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
        sequences = self.data.select(rows[self.accelerator.process_index :: self.accelerator.num_processes])
        mask = sequences.action_mask
        tokens = self.trainer.sum_over_processes({"all": mask.sum(), "chosen": mask[::2].sum()})

        def loss_of(said: TokenLogprobs, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            logprobs = said.logprobs
            batch = sequences.select(rows).to(logprobs.device)
            losses, sums = self._compare(batch, logprobs)
            imitated = token_mean(-logprobs[::2], batch.action_mask[::2], denominator=tokens["chosen"])
            return losses.sum() / count + self.config.sft_weight * imitated, sums

        result = self.trainer.step(sequences, loss_of, step=self.step, together=2)
        self.step += 1
        return {
            "optim/loss": result["loss"],
            "optim/grad_norm": result["grad_norm"],
            "optim/learning_rate": result["learning_rate"],
            **_preferences(result, count),
            "tokens/trained": tokens["all"],
            "time/step": time.perf_counter() - started,
        }

    def _compare(self, batch: Sequences, logprobs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each pair, and sums over pairs; rows are chosen, rejected, chosen, rejected, ..."""
        scores = self.score(logprobs, batch.action_mask)
        references = []
        if self.reference is not None:
            with self.accelerator.autocast():  # the arithmetic of the policy, or the two would differ from the start
                references.append(self.score(self.reference(batch.input_ids, batch.action_mask), batch.action_mask))
        losses = self.loss(*(part for both in (scores, *references) for part in (both[::2], both[1::2])))
        if losses.shape != scores[::2].shape:
            raise ValueError(f"the loss must give a value a pair, {[len(scores) // 2]}, got {list(losses.shape)}")
        chosen, rejected = (self.config.beta * (scores.detach() - sum(references))).view(-1, 2).double().unbind(dim=1)
        right = ((chosen > rejected).double() + (chosen >= rejected).double()) / 2
        return losses, {"right": right.sum(), "chosen": chosen.sum(), "rejected": rejected.sum()}

    @torch.no_grad()
    def evaluate(self, held_out: Pairs) -> dict[str, float]:
        """Return the mean "loss" of a pair, and the preferences, on pairs that were not learned from."""
        rows = range(len(held_out))[self.accelerator.process_index :: self.accelerator.num_processes]
        sequences, total = held_out.select(rows), {"loss": torch.zeros(())}
        for micro_batch in self.trainer.cut(sequences, together=2) if rows else []:
            batch = sequences.select(micro_batch).to(self.accelerator.device)
            # not the wrapped policy, whose forward may wait for processes that have no further batch
            with self.accelerator.autocast():
                logprobs = self.trainer.unwrapped(batch.input_ids, batch.action_mask).logprobs
            losses, sums = self._compare(batch, logprobs)
            for name, value in {"loss": losses.double().sum(), **sums}.items():
                total[name] = total.get(name, 0.0) + value.cpu()
        result = self.trainer.sum_over_processes(total)
        return {"loss": result["loss"] / len(held_out), **_preferences(result, len(held_out))}

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
    chosen, rejected = sums["chosen"] / pairs, sums["rejected"] / pairs
    return {
        "preference/accuracy": sums["right"] / pairs,
        "preference/margin": chosen - rejected,
        "preference/chosen_reward": chosen,
        "preference/rejected_reward": rejected,
    }
