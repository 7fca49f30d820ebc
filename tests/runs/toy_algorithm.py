"""A small algorithm with everything a real one has to keep: weights, an optimizer, a generator, a queue of data.

Below it are the jobs that tests run in children, to kill them.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from align.runs.checkpoint import save_checkpoint
from align.runs.run import run


class Toy:
    """Fits a linear model to noisy data; `fail_at` raises there, `nan_at` yields a metric that is not finite."""

    def __init__(
        self, total_steps: int = 12, *, ballast: int = 0, delay: float = 0.0, fail_at: int = 0, nan_at: int = 0
    ) -> None:
        self.step, self.total_steps = 0, total_steps
        self.delay, self.fail_at, self.nan_at = delay, fail_at, nan_at
        self.generator = torch.Generator().manual_seed(7)
        self.model = nn.Linear(4, 1)
        with torch.no_grad():
            self.model.weight.fill_(0.5)
            self.model.bias.fill_(0.0)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05)
        self.queue: list[int] = []  # position in the data, as a rollout buffer has
        self.ballast = torch.arange(ballast, dtype=torch.float32)  # makes a save long enough to be killed in

    def steps(self) -> Iterator[dict[str, float]]:
        while self.step < self.total_steps:
            if self.step + 1 == self.fail_at:
                raise RuntimeError("the toy broke")
            time.sleep(self.delay)
            if not self.queue:
                self.queue = torch.randperm(5, generator=self.generator).tolist()
            x = torch.randn(8, 4, generator=self.generator) + self.queue.pop()
            loss = ((self.model(x) - x.sum(1, keepdim=True)) ** 2).mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            reward = float("nan") if self.step == self.nan_at else -loss.item()
            yield {"optim/loss": loss.item(), "reward/mean": reward, "reward/std": 0.5}

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "queue": self.queue,
            "ballast": self.ballast,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.step, self.queue = state["step"], state["queue"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.ballast = state["ballast"]

    def examples(self) -> list[dict[str, Any]]:
        weight = self.model.weight.detach().flatten().tolist()
        return [
            {
                "prompt": f"task {index // 4}",
                "completion": f"answer {index} {weight[index % 4]:.3f}",
                "reward": weight[index % 4] + index // 4,
                "advantage": weight[index % 4] - 0.5,
                "parts": {"right": weight[index % 4], "form": 1.0},
                "group": index // 4,
                "tokens": index + 1,
                "terminated": index % 3 > 0,
            }
            for index in range(8)
        ]

    def evaluate(self) -> dict[str, float]:
        return {"error": float((self.model.weight.detach() - 1).abs().sum())}


def run_toy(directory: str, *, resume: bool = False, save_every: int = 1, limit: int = 0, **toy: Any) -> int:
    """Run the toy in a child; `limit` is the largest file it may write. Returns the exit code."""
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    algorithm = Toy(**toy)
    result = run(
        algorithm, directory, config=dict(toy), command="toy run", resume=resume, save_every=save_every,
        evaluate=algorithm.evaluate, evaluate_every=4,
    )  # fmt: skip
    return result.exit_code


def save_for_ever(directory: str, *, ballast: int = 200_000) -> int:
    """Save state after state; the tensor of each is filled with its step."""
    step = 0
    while True:
        step += 1
        save_checkpoint(directory, step, {"step": step, "tensor": torch.full((ballast,), float(step))})


def save_once(directory: str, *, step: int, size: int, limit: int) -> int:
    """Save one state under a limit of file size; 3 if that is refused with one line."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        save_checkpoint(directory, step, {"tensor": torch.zeros(size), "text": "x" * 3000})
    except RuntimeError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))  # for the log
        sys.stdout.write(f"{type(error).__name__} {error}\n")
        return 3
    return 0


def warm() -> None:
    """Take one step: the first one of an optimizer imports half of torch."""
    next(Toy().steps())
