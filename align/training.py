"""One optimizer step over micro-batches: length-sorted, under a token budget, with denominators of the whole step.

How a step is cut, into micro-batches or over processes, never changes its gradient: losses arrive divided by counts of
the whole step, so the parts add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from align.batch import Sequences
from align.config import OptimizerConfig
from align.logprobs import Policy, SharedPrompts, TokenLogprobs, pays
from align.trained_state import load_trained_state, trained_state

if TYPE_CHECKING:
    from accelerate import Accelerator

Loss = Callable[[Any, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""(what the policy says [b, t], rows [b]) -> the micro-batch's part of the step's loss, and sums over it to add up."""


class NonFiniteError(ArithmeticError):
    """A loss or gradient was NaN or infinite. The weights are as they were before the step.

    evidence: tensors of the batch that did it, to look at.
    """

    def __init__(self, message: str, evidence: dict[str, Tensor]) -> None:
        super().__init__(message)
        self.evidence = evidence


class Trainer:
    """A policy with its optimizer, under Accelerate.

    policy: after construction, the module that Accelerate prepared; `unwrapped` is the one inside.
    total_steps: length of the learning-rate schedule.
    """

    def __init__(self, policy: nn.Module, config: OptimizerConfig, accelerator: Accelerator, total_steps: int) -> None:
        parameters = [p for p in policy.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("no parameter requires a gradient: load adapters as trainable, or unfreeze the model")
        if accelerator.gradient_accumulation_steps != 1 or accelerator.mixed_precision == "fp16":
            raise ValueError(
                "Accelerate is set to accumulate gradients or to float16: leave both out. A step is cut by "
                "tokens_per_micro_batch here, and arithmetic is float32 or bfloat16."
            )
        optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
        self.config = config
        self.accelerator = accelerator
        self.total_steps = total_steps
        self.policy, self.optimizer = accelerator.prepare(policy, optimizer)
        self.unwrapped: Any = accelerator.unwrap_model(self.policy)
        if isinstance(self.unwrapped, Policy):
            self.unwrapped.shortcuts()  # tried out here, so that what a model does not allow is said before any step

    def step(self, sequences: Sequences, loss_of: Loss, *, step: int, together: int = 1) -> dict[str, float]:
        """Take one optimizer step on the rows of this process, of which there may be none.

        Args:
            sequences: rows to learn from. [B, T]
            loss_of: called once a micro-batch with what the policy says of its actions.
            step: optimizer steps taken so far; sets the learning rate.
            together: neighbouring rows that stay in one micro-batch, in their order, as the two of a pair must.

        Returns:
            The sums of `loss_of` over all processes, `loss`, and the gradient's norm and learning rate.

        Raises:
            NonFiniteError: before the update, if the loss or a gradient is not finite.
        """
        micro_batches = self.cut(sequences, together)
        totals: dict[str, Tensor] = {}
        for number, rows in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            # Processes may have different numbers of micro-batches: they meet once, in the backward pass of the last.
            with nullcontext() if last else self.accelerator.no_sync(self.policy):
                for name, value in self._backward(sequences, rows, loss_of).items():
                    totals[name] = totals[name] + value if name in totals else value
        sums = self.sum_over_processes(totals)
        grad_norm = float(self.accelerator.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm))  # pyright: ignore[reportArgumentType]
        if not (math.isfinite(sums["loss"]) and math.isfinite(grad_norm)):
            self.optimizer.zero_grad()
            raise NonFiniteError(
                f"step {step + 1}: loss {sums['loss']}, gradient norm {grad_norm}; the weights are as before the "
                "step. Lower learning_rate or max_grad_norm, or look at the batch that was saved.",
                {"input_ids": sequences.input_ids, "action_mask": sequences.action_mask},
            )
        rate = learning_rate(self.config, step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {**sums, "grad_norm": grad_norm, "learning_rate": rate}

    def _backward(self, sequences: Sequences, rows: Tensor, loss_of: Loss) -> dict[str, Tensor]:
        if len(rows):
            batch = sequences.select(rows).to(self.accelerator.device)
        else:
            # A process without rows still needs a loss, or it skips backward() and the others wait for ever.
            batch = Sequences.from_lists([[0, 0]], [[False, False]]).to(self.accelerator.device)
        said: TokenLogprobs = self.policy(batch.input_ids, batch.action_mask)
        if len(rows):
            loss, sums = loss_of(said, rows)
        else:
            loss, sums = torch.stack([each.sum() for each in said if each is not None]).sum(), {}
        self.accelerator.backward(loss * self.accelerator.num_processes)  # the gradients are averaged over processes
        return {"loss": loss.detach(), **sums}

    def cut(self, sequences: Sequences, together: int = 1) -> list[Tensor]:
        """Return the row numbers of each micro-batch: `cut_by_tokens` with tokens as the policy forwards them."""
        ids, mask, policy = sequences.input_ids, sequences.action_mask, self.unwrapped
        shares = bool(mask[:, 1:].any()) and isinstance(policy, Policy) and policy.shortcuts().cache
        prompts = SharedPrompts.of(ids, mask) if shares else None
        return cut_by_tokens(sequences.lengths, self.config.tokens_per_micro_batch, together, prompts)

    def sum_over_processes(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Add up named scalars over all processes. A process may lack some of them."""
        names = sorted(set(self.gathered(list(sums))))
        parts = [sums.get(name, torch.zeros(())).detach().to(self.accelerator.device, torch.float64) for name in names]
        total: Any = self.accelerator.reduce(torch.stack(parts), "sum")
        return dict(zip(names, total.tolist(), strict=True))

    def gathered(self, items: list[Any]) -> list[Any]:
        """Join a list over all processes, in their order."""
        if self.accelerator.num_processes == 1:
            return items
        from accelerate.utils import gather_object

        return gather_object(items)

    def state(self) -> dict[str, Any]:
        """Return copies of the trained parameters and of the optimizer's state, by parameter name."""
        return trained_state(self.unwrapped, self.optimizer.optimizer)  # the AdamW inside Accelerate's wrapper

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned; training goes on bit for bit."""
        load_trained_state(self.unwrapped, self.optimizer.optimizer, state)


def cut_by_tokens(
    lengths: Tensor, tokens: int, together: int = 1, prompts: SharedPrompts | None = None
) -> list[Tensor]:
    """Cut rows, longest first, into batches that forward at most `tokens`; a longer row is a batch of its own.

    Longest first, so that a run that does not fit into memory fails at its first micro-batch. Where prompts are
    forwarded once, rows with the same prompt follow each other.

    Args:
        lengths: tokens of each row. [B]
        tokens: budget of one batch, padding included.
        together: rows n * together ... n * together + together - 1 stay together, in this order.
        prompts: of the rows, if they are forwarded once.

    Returns:
        Row numbers of each batch; one empty batch if there are no rows.

    >>> [rows.tolist() for rows in cut_by_tokens(torch.tensor([3, 9, 4, 2]), tokens=10)]
    [[1], [2, 0], [3]]
    >>> [rows.tolist() for rows in cut_by_tokens(torch.tensor([3, 2, 4, 9]), tokens=10, together=2)]
    [[2, 3], [0, 1]]
    """
    order = lengths.view(-1, together).amax(dim=1).argsort(descending=True, stable=True)
    if prompts is not None:
        numbers = prompts.numbers[order * together].tolist()
        places = {number: place for place, number in enumerate(dict.fromkeys(numbers))}
        order = order[torch.tensor([places[number] for number in numbers]).argsort(stable=True)]
    rows, batches = (order[:, None] * together + torch.arange(together)).flatten(), []
    while len(rows):
        if prompts is None:
            forwarded = torch.arange(1, len(rows) + 1) * lengths[rows].cummax(0).values
        else:  # rows are forwarded apart from much longer ones, so that hardly any padding is left
            shared, plain = prompts.tokens(rows), lengths[rows].cumsum(0)
            forwarded = torch.where(pays(shared, plain), shared, plain)
        fitting = int((forwarded <= tokens)[together - 1 :: together].int().cumprod(0).sum())
        count = max(1, fitting) * together
        batches.append(rows[:count])
        rows = rows[count:]
    return batches or [rows]


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of a step counted from 0: linear warm-up, then the schedule down to its final fraction.

    >>> config = OptimizerConfig(learning_rate=1.0, schedule="linear", warmup_steps=2, final_fraction=0.1)
    >>> [round(learning_rate(config, step, total_steps=5), 2) for step in range(5)]
    [0.5, 1.0, 1.0, 0.7, 0.4]
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    shape = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
    floor = config.final_fraction if config.schedule != "constant" else 0.0
    return config.learning_rate * (floor + (1 - floor) * shape[config.schedule])
