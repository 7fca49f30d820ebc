"""One optimizer step: the cut into micro-batches, clipping, the schedule, and what is never trained on."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from align.batch import Sequences
from align.config import OptimizerConfig
from align.training import NonFiniteError, Trainer, cut_by_tokens, learning_rate
from tests.small_runs import small_grpo, small_policy, small_sft


def parameters(algorithm) -> dict[str, torch.Tensor]:
    return algorithm.trainer.state()["parameters"]


def run(algorithm, steps: int) -> list[dict[str, float]]:
    metrics = algorithm.steps()
    return [next(metrics) for _ in range(steps)]


def timeless(metrics: list[dict[str, float]]) -> list[dict[str, float]]:
    clocks = ("time/", "tokens/per_second")
    return [{name: value for name, value in m.items() if not name.startswith(clocks)} for m in metrics]


@pytest.mark.parametrize("make", [small_sft, small_grpo])
@pytest.mark.parametrize("lora", [False, True])
def test_how_a_step_is_cut_into_micro_batches_never_changes_its_gradient(make, lora):
    whole, cut = make(lora=lora), make(lora=lora, micro=16)
    for algorithm in (whole, cut):  # in float64, so that only a wrong denominator could differ
        algorithm.trainer.unwrapped.double()
    gradients = []
    for algorithm in (whole, cut):
        seen = {}
        algorithm.trainer.optimizer.step = lambda a=algorithm, s=seen: s.update(
            {n: p.grad.clone() for n, p in a.trainer.unwrapped.named_parameters() if p.requires_grad}
        )
        run(algorithm, 1)
        gradients.append(seen)
    assert any(g.abs().max() > 1e-3 for g in gradients[0].values())
    # Where rows share their prompts, the model's float32 normalisation rounds differently.
    assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-8)


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 80))
def test_micro_batches_hold_every_row_once_and_keep_to_the_budget(lengths, budget):
    batches = cut_by_tokens(torch.tensor(lengths, dtype=torch.int64), budget)
    assert sorted(row for rows in batches for row in rows.tolist()) == list(range(len(lengths)))
    for rows in batches:
        longest = max((lengths[row] for row in rows.tolist()), default=0)
        assert len(rows) <= 1 or len(rows) * longest <= budget


def test_the_gradient_norm_is_clipped_once_for_the_whole_step():
    algorithm = small_sft(micro=16, optimizer=OptimizerConfig(learning_rate=1e-2, max_grad_norm=1e-3))
    norms = []
    algorithm.trainer.optimizer.step = lambda: norms.append(
        torch.stack([p.grad.norm() for p in algorithm.trainer.unwrapped.parameters()]).norm()
    )
    reported = run(algorithm, 1)[0]["optim/grad_norm"]
    assert reported > 0.01
    assert_close(norms[0], torch.tensor(1e-3), rtol=1e-3, atol=0)


def test_a_loss_that_is_not_finite_stops_before_the_update_and_keeps_the_batch():
    algorithm = small_sft()
    run(algorithm, 2)
    before = parameters(algorithm)
    loss = algorithm.trainer.step
    algorithm.trainer.step = lambda sequences, loss_of, step: loss(
        sequences, lambda logprobs, rows: (loss_of(logprobs, rows)[0] * torch.nan, {}), step=step
    )
    with pytest.raises(NonFiniteError, match=r"step 3: loss nan.*weights are as before") as caught:
        run(algorithm, 1)
    assert_close(parameters(algorithm), before, rtol=0, atol=0)
    assert caught.value.evidence["input_ids"].shape == caught.value.evidence["action_mask"].shape
    assert algorithm.step == 2


def test_an_infinite_gradient_under_a_finite_loss_is_caught_too():
    algorithm = small_sft()
    before = parameters(algorithm)
    next(algorithm.trainer.unwrapped.parameters()).register_hook(lambda grad: grad / 0)
    with pytest.raises(NonFiniteError, match=r"gradient norm (nan|inf)"):
        run(algorithm, 1)
    assert_close(parameters(algorithm), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.8, 0.6, 0.4]),
        ("cosine", [0.5, 1.0, 1.0, 0.8828, 0.6, 0.3172]),
    ],
)
def test_the_learning_rate_rises_and_falls_as_the_schedule_says(schedule, expected):
    config = OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup_steps=2, final_fraction=0.2)
    rates = [learning_rate(config, step, total_steps=6) for step in range(6)]
    assert_close(torch.tensor(rates), torch.tensor(expected), rtol=1e-3, atol=0)


def test_a_model_without_anything_to_train_is_refused():
    policy, _ = small_policy()
    with pytest.raises(ValueError, match="no parameter requires a gradient"):
        Trainer(policy.requires_grad_(False), OptimizerConfig(), Accelerator(cpu=True), 10)


def test_a_checkpoint_of_another_model_is_refused_by_name():
    with pytest.raises(ValueError, match="LoRA options"):
        small_sft().load_state(small_sft(lora=True).state())


def test_sft_makes_its_examples_likely():
    algorithm = small_sft(steps=40)
    losses = [m["optim/loss"] for m in run(algorithm, 40)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("make", [small_sft, small_grpo])
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one_at_every_position_inside_a_rollout(make, lora, stop):
    changes = {"updates_per_rollout": 3, "kl": True} if make is small_grpo else {}
    unbroken = make(lora=lora, **changes)
    expected = run(unbroken, 6)

    first = make(lora=lora, **changes)
    run(first, stop)
    state = first.state()
    run(first, 1)  # what happens after the state was taken must not reach it
    second = make(lora=lora, **changes)
    second.load_state(state)
    rest = run(second, 6 - stop)

    assert_close(parameters(second), parameters(unbroken), rtol=0, atol=0)
    timeless = [{k: v for k, v in m.items() if not k.startswith("time/") and k != "tokens/per_second"} for m in rest]
    assert timeless == [
        {k: v for k, v in m.items() if not k.startswith("time/") and k != "tokens/per_second"} for m in expected[stop:]
    ]


def test_settings_of_accelerate_that_would_change_the_gradient_are_refused():
    policy, _ = small_policy()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    with pytest.raises(ValueError, match="accumulate gradients"):
        Trainer(policy, OptimizerConfig(), accelerator, 10)


@pytest.mark.parametrize(
    "setting",
    [{"learning_rate": math.nan}, {"max_grad_norm": math.nan}, {"warmup_steps": -1}, {"weight_decay": math.nan}],
)
def test_settings_that_are_not_numbers_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        OptimizerConfig(**setting)


def test_a_state_of_before_the_first_step_brings_back_an_optimizer_without_moments():
    policy, _ = small_policy()
    trainer = Trainer(policy, OptimizerConfig(learning_rate=1e-2), Accelerator(cpu=True), 10)
    fresh, sequences = trainer.state(), Sequences.from_lists([[5, 6, 7, 8, 9]], [[False] + [True] * 4])
    ends = []
    for _ in range(2):
        trainer.load_state(fresh)
        trainer.step(sequences, lambda said, rows: ((-said.logprobs).sum(), {}), step=0)
        ends.append(trainer.state()["parameters"])
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
