"""Two processes give the run of one: the same prompts, the same samples, the same parameters."""

from __future__ import annotations

import os
import socket
import traceback
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch.testing import assert_close

from align.config import ImportanceConfig, OptimizerConfig, SamplingConfig
from align.dpo import DPO
from align.kto import KTO
from align.reward_model import RewardTraining
from tests.small_runs import (
    share_of_letter,
    small_dpo,
    small_grpo,
    small_kto,
    small_ppo,
    small_reward_model,
    small_sft,
)


def sometimes(prompts, completions, letter):
    return [
        float(len(text) % 2) if prompt[0] in "abc" else 1.0 for prompt, text in zip(prompts, completions, strict=True)
    ]


def partial_scores(prompts, completions, letter):
    """Give a score that not every completion has."""
    return [None if "q" in text else len(set(text)) / 6 for text in completions]


# Adam divides by the size of the gradient, so an entry whose gradient is all rounding moves by up to a learning rate:
# a usual one keeps that within the tolerance, and the case with few learning rows is run in float64.
OPTIMIZER = OptimizerConfig(learning_rate=1e-3)

CACHES: list[Path] = []
"""The last one is the folder of this run's caches."""

CASES = {
    "sft": lambda: small_sft(optimizer=OPTIMIZER, steps=20, double=True),
    "sft lora": lambda: small_sft(optimizer=OPTIMIZER, steps=20, lora=True),
    "dpo": lambda: small_dpo(optimizer=OPTIMIZER, steps=8),
    "dpo lora": lambda: small_dpo(optimizer=OPTIMIZER, steps=8, lora=True),
    "dpo, a pair for the first process alone": lambda: small_dpo(optimizer=OPTIMIZER, steps=8, pairs_per_step=1),
    "kto": lambda: small_kto(optimizer=OPTIMIZER, steps=8),
    "dpo from a cache": lambda: small_dpo(optimizer=OPTIMIZER, steps=8, cache=CACHES[-1] / "dpo"),
    "kto from a cache": lambda: small_kto(optimizer=OPTIMIZER, steps=8, lora=True, cache=CACHES[-1] / "kto"),
    "kto lora": lambda: small_kto(optimizer=OPTIMIZER, steps=8, lora=True),
    "kto, three answers for two processes": lambda: small_kto(
        optimizer=OPTIMIZER, steps=8, examples_per_step=3, double=True
    ),
    "reward model": lambda: small_reward_model(optimizer=OPTIMIZER, steps=20),
    "reward model lora": lambda: small_reward_model(optimizer=OPTIMIZER, steps=20, lora=True),
    "reward model, a pair for the first process alone": lambda: small_reward_model(
        optimizer=OPTIMIZER, steps=8, pairs_per_step=1
    ),
    "grpo fixed rollouts": lambda: small_grpo(optimizer=OPTIMIZER, steps=20, updates_per_rollout=20, kl=True),
    "grpo fixed rollouts, odd number of prompts": lambda: small_grpo(
        optimizer=OPTIMIZER,
        steps=20,
        updates_per_rollout=20,
        prompts_per_step=5,
        reward=sometimes,
        max_redraws=2,
        double=True,
    ),
    "grpo in micro-batches, not as many in each": lambda: small_grpo(
        optimizer=OptimizerConfig(learning_rate=1e-3, tokens_per_micro_batch=25),
        steps=20,
        updates_per_rollout=20,
        prompts_per_step=3,
        lora=True,
        kl=True,
        double=True,
    ),
    "grpo": lambda: small_grpo(optimizer=OPTIMIZER, steps=5, reward=share_of_letter),
    "grpo fixed rollouts under top_p, weighed": lambda: small_grpo(
        optimizer=OPTIMIZER,
        steps=12,
        updates_per_rollout=12,
        prompts_per_step=3,
        sampling=SamplingConfig(max_new_tokens=6, top_p=0.8),
        importance=ImportanceConfig(importance="sequence-truncate"),
        double=True,
    ),
    "ppo under top_k, weighed": lambda: small_ppo(
        optimizer=OPTIMIZER,
        steps=4,
        prompts_per_step=7,
        sampling=SamplingConfig(max_new_tokens=6, top_k=5),
        double=True,
    ),
    "ppo fixed rollouts": lambda: small_ppo(optimizer=OPTIMIZER, steps=20, epochs=10, entropy_coef=0.01),
    "ppo": lambda: small_ppo(
        optimizer=OPTIMIZER,
        steps=10,
        prompts_per_step=7,
        reward=partial_scores,
        token_rewards={"kl_target": 0.01, "normalise_scores": True, "score_clip": 2.0, "missing_eos_penalty": 0.1},
    ),
    "ppo lora, stopped early, bootstrapped": lambda: small_ppo(
        optimizer=OptimizerConfig(learning_rate=1e-2),
        steps=8,
        lora=True,
        double=True,
        epochs=4,
        kl_limit=1e-4,
        token_rewards={"truncated": "bootstrapped"},
    ),
    "ppo lora, a value model": lambda: small_ppo(
        optimizer=OPTIMIZER, steps=8, prompts_per_step=5, lora=True, double=True, value_model=True
    ),
}


def result_of(case: str) -> dict:
    """Run a case in this process; half-way the state is taken and put back, as a resume would."""
    torch.manual_seed(0)
    algorithm = CASES[case]()
    metrics = [next(algorithm.steps()) for _ in range(algorithm.total_steps // 2)]
    resumed = CASES[case]()
    resumed.load_state(algorithm.state())
    metrics += list(resumed.steps())
    if isinstance(resumed, DPO | KTO | RewardTraining):
        metrics.append(resumed.evaluate(resumed.data))
    world = resumed.accelerator.num_processes
    timeless = [{k: v for k, v in m.items() if not k.startswith("time/") and k != "tokens/per_second"} for m in metrics]
    return {"parameters": resumed.trainer.state()["parameters"], "metrics": timeless, "world": world}


def child(rank: int, port: int, directory: str) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    torch.set_num_threads(1)
    CACHES.append(Path(directory))
    try:
        results = {case: result_of(case) for case in CASES}
    except BaseException:
        traceback.print_exc()
        raise
    if rank == 0:
        torch.save(results, f"{directory}/results.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    directory = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(child, args=(port, str(directory)), nprocs=2)
    return torch.load(directory / "results.pt")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_run_of_one(case, two, tmp_path):
    CACHES.append(tmp_path)
    one = result_of(case)
    assert one["world"] == 1 and two[case]["world"] == 2, "a launcher that silently runs one process proves nothing"
    assert_close(two[case]["parameters"], one["parameters"], rtol=0, atol=1e-6)
    if case == "dpo from a cache":  # every pair of the first step is a tie, which rounding breaks
        one["metrics"][0].pop("preference/accuracy"), two[case]["metrics"][0].pop("preference/accuracy")
    for alone, together in zip(one["metrics"], two[case]["metrics"], strict=True):
        assert alone.keys() == together.keys()
        for name in alone:
            assert together[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-5), name
