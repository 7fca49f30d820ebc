"""DPO and KTO: where they start, what they learn, and what never changes them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.testing import assert_close

from align.batch import rows_at
from align.config import DPOConfig, KTOConfig, OptimizerConfig
from align.data import Examples
from align.dpo import DPO
from align.kto import mismatched
from align.logprobs import Policy
from align.metrics import described
from align.pairs import Feedback, Pairs
from align.preferences import averaged, dpo_margins, hinge_loss, ipo_loss, kto_loss, simpo_loss, summed
from align.training import NonFiniteError
from tests.models import tiny_model
from tests.small_runs import small_dpo, small_feedback, small_kto, small_pairs, small_policy

MAKERS = [small_dpo, small_kto]


def parameters(algorithm) -> dict[str, torch.Tensor]:
    return algorithm.trainer.state()["parameters"]


def run(algorithm, steps: int) -> list[dict[str, float]]:
    metrics = algorithm.steps()
    return [next(metrics) for _ in range(steps)]


def timeless(metrics: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in m.items() if not name.startswith("time/")} for m in metrics]


def gradient_of(algorithm) -> dict[str, torch.Tensor]:
    """The gradient of the algorithm's next step, which is not taken."""
    gradients: dict[str, torch.Tensor] = {}
    trained = algorithm.trainer.unwrapped.named_parameters()
    algorithm.trainer.optimizer.step = lambda: gradients.update(
        {name: p.grad.clone() for name, p in trained if p.requires_grad}
    )
    run(algorithm, 1)
    return gradients


@pytest.mark.parametrize("lora", [False, True])
def test_a_fresh_policy_has_loss_log_2_and_no_margin(lora):
    first = run(small_dpo(lora=lora, sft_weight=0.0), 1)[0]
    assert first["optim/loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert first["preference/margin"] == first["preference/chosen_reward"] == first["preference/rejected_reward"] == 0
    assert first["preference/accuracy"] == 0.5
    assert first["optim/grad_norm"] > 0.1


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("make", MAKERS)
def test_a_policy_that_comes_with_dropout_is_compared_without(make, cached, tmp_path):
    """Its reference is taken, or its cache computed, while the dropout is still there."""
    model = tiny_model("gpt2", resid_pdrop=0.5)
    first = run(make(policy=Policy(model), cache=tmp_path / "cache" if cached else None), 1)[0]
    assert first["preference/chosen_reward"] == pytest.approx(0, abs=1e-5)
    assert first["preference/rejected_reward"] == pytest.approx(0, abs=1e-5)
    assert not any(module.p for module in model.modules() if isinstance(module, torch.nn.Dropout))


def test_a_fresh_policy_has_kto_loss_of_half_the_mean_weight():
    algorithm = small_kto()
    rows = rows_at(0, 7, len(algorithm.data), seed=0)
    weights = [1.5 if algorithm.data.labels[row] else 1.0 for row in rows]
    first = run(algorithm, 1)[0]
    assert first["optim/loss"] == pytest.approx(sum(weights) / 7 / 2, rel=1e-6)
    assert first["kl/reference_point"] == first["preference/chosen_reward"] == first["preference/rejected_reward"] == 0


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("make", MAKERS)
def test_the_reference_stays_where_it_was(make, lora):
    algorithm = make(lora=lora)
    batch = small_pairs().select([0, 1, 2])
    before = algorithm.reference(batch.input_ids, batch.action_mask)
    run(algorithm, 3)
    policy = algorithm.trainer.unwrapped(batch.input_ids, batch.action_mask).logprobs
    assert_close(algorithm.reference(batch.input_ids, batch.action_mask), before, rtol=0, atol=0)
    assert (policy - before).abs().max() > 0.01


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("make", MAKERS)
def test_how_a_step_is_cut_into_micro_batches_never_changes_its_gradient(make, lora):
    start = make(lora=lora, double=True)
    run(start, 2)  # away from the reference, where every log-ratio is 0
    gradients = []
    for micro in (10_000, 16):
        algorithm = make(lora=lora, double=True, micro=micro)
        algorithm.load_state(start.state())
        gradients.append(gradient_of(algorithm))
    assert any(g.abs().max() > 1e-3 for g in gradients[0].values())
    assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(make, lora, stop):
    unbroken = make(lora=lora)
    expected = run(unbroken, 6)
    first = make(lora=lora)
    run(first, stop)
    state = first.state()
    run(first, 1)  # what happens after the state was taken must not reach it
    second = make(lora=lora)
    second.load_state(state)
    rest = run(second, 6 - stop)
    assert_close(parameters(second), parameters(unbroken), rtol=0, atol=0)
    assert timeless(rest) == timeless(expected[stop:])


def test_dpo_learns_what_is_preferred_on_held_out_pairs_too():
    algorithm = small_dpo(steps=30, sft_weight=0.0)
    metrics = run(algorithm, 30)
    assert metrics[-1]["preference/accuracy"] == 1
    assert metrics[-1]["preference/margin"] > 5 > metrics[1]["preference/margin"] > 0
    assert metrics[-1]["optim/loss"] < 0.1
    held_out = small_pairs(40)
    measured = algorithm.evaluate(held_out)
    assert measured["preference/accuracy"] > 0.8 and measured["preference/margin"] > 2


def test_kto_raises_what_was_liked_above_what_was_not():
    metrics = run(small_kto(steps=30), 30)
    assert metrics[-1]["preference/chosen_reward"] > 0.5 > -0.5 > metrics[-1]["preference/rejected_reward"]


def test_an_evaluation_is_the_loss_and_the_preferences_of_a_step_on_the_same_pairs():
    algorithm = small_dpo(pairs_per_step=11, sft_weight=0.0, micro=40)  # one step is one epoch
    run(algorithm, 2)
    measured = algorithm.evaluate(small_pairs())
    step = run(algorithm, 1)[0]
    assert measured.pop("loss") == pytest.approx(step["optim/loss"], rel=1e-5)
    assert measured == pytest.approx({name: step[name] for name in measured}, rel=1e-5)


def test_an_evaluation_of_kto_has_the_reference_point_of_the_held_out_answers():
    algorithm = small_kto(micro=40, steps=20)
    run(algorithm, 1)
    held_out = small_feedback(7)
    ids, size = held_out.examples.ids, len(held_out)
    longest = max(map(len, ids))

    def log_ratio(row: list[int]) -> float:
        tokens = torch.tensor([row])
        mask = (torch.arange(len(row)) >= 2)[None]
        with torch.no_grad():
            policy = algorithm.trainer.unwrapped(tokens, mask).logprobs
        return float((policy - algorithm.reference(tokens, mask)).sum())

    crossed = [(ids[row][:2] + ids[(row + 1) % size][2:])[:longest] for row in range(size)]
    point = max(0.0, sum(map(log_ratio, crossed)) / size)
    own, liked = torch.tensor([log_ratio(row) for row in ids]), torch.tensor(held_out.labels)
    losses = kto_loss(own, liked, point, beta=0.5, desirable_weight=1.5)
    assert point > 0
    assert algorithm.evaluate(held_out) == pytest.approx(
        {
            "loss": float(losses.mean()),
            "preference/chosen_reward": float(0.5 * own[liked].mean()),
            "preference/rejected_reward": float(0.5 * own[~liked].mean()),
            "kl/reference_point": point,
        },
        rel=1e-4,
    )
    with pytest.raises(ValueError, match="at least 2 answers, got 1"):
        algorithm.evaluate(Feedback(Examples(ids[:1], held_out.examples.action_masks[:1]), [True]))


def test_the_weight_of_imitation_adds_the_cross_entropy_of_the_chosen_answers():
    plain, mixed = (run(small_dpo(sft_weight=weight), 1)[0]["optim/loss"] for weight in (0.0, 0.5))
    algorithm = small_dpo()
    rows = rows_at(0, 5, 11, seed=0)
    chosen = small_pairs().chosen.select(rows)
    with torch.no_grad():
        logprobs = algorithm.trainer.unwrapped(chosen.input_ids, chosen.action_mask).logprobs
    assert mixed - plain == pytest.approx(-0.5 * float(logprobs.sum() / chosen.action_mask.sum()), rel=1e-5)


LOSSES: dict[str, dict[str, Any]] = {
    "hinge": {"loss": lambda *four: hinge_loss(dpo_margins(*four), beta=0.5)},
    "ipo": {"loss": lambda *four: ipo_loss(dpo_margins(*four), beta=0.5), "score": averaged},
}


@pytest.mark.parametrize("name", LOSSES)
def test_any_loss_of_pairs_can_be_passed_in(name):
    metrics = run(small_dpo(steps=15, sft_weight=0.0, **LOSSES[name]), 15)
    assert metrics[0]["optim/loss"] == pytest.approx(1.0)  # of a margin of 0 and beta = 0.5, both are 1
    assert metrics[-1]["optim/loss"] < 0.5 and metrics[-1]["preference/accuracy"] > 0.7


def test_a_loss_without_a_reference_never_computes_one():
    policy, _ = small_policy()
    config = DPOConfig(steps=20, pairs_per_step=5, beta=2.0, optimizer=OptimizerConfig(learning_rate=1e-2))
    loss = partial(simpo_loss, beta=2.0, margin=0.5)
    algorithm = DPO(policy, small_pairs(), config, Accelerator(cpu=True), reference=None, loss=loss, score=averaged)
    metrics = run(algorithm, 20)
    assert metrics[-1]["optim/loss"] < 0.5 * metrics[0]["optim/loss"]
    assert metrics[0]["preference/chosen_reward"] < -1  # of the policy's own log-probability


def test_the_score_of_an_answer_ignores_what_its_mask_leaves_out():
    logprobs = torch.tensor([[-9.0, -1.0, -3.0, torch.nan], [-1.0, -1.0, -1.0, -1.0]])
    mask = torch.tensor([[False, True, True, False], [False] * 4])
    assert_close(summed(logprobs, mask), torch.tensor([-4.0, 0.0]))
    assert_close(averaged(logprobs, mask), torch.tensor([-2.0, 0.0]))


def test_the_reference_point_of_kto_is_of_each_prompt_with_the_next_answer_and_one_for_the_step():
    points = [metrics["kl/reference_point"] for metrics in run(small_kto(steps=20), 20)]
    before = next(step for step, point in enumerate(points) if point > 0)
    algorithm = small_kto(steps=20, micro=16)
    run(algorithm, before)
    rows = rows_at(before * 7, 7, len(algorithm.data), seed=0)
    ids = algorithm.data.examples.ids
    longest = max(len(ids[row]) for row in rows)
    ratios = []
    with torch.no_grad():
        for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
            crossed = torch.tensor([(ids[row][:2] + ids[other][2:])[:longest]])
            mask = (torch.arange(crossed.shape[1]) >= 2)[None]
            policy = algorithm.trainer.unwrapped(crossed, mask).logprobs
            ratios.append(float((policy - algorithm.reference(crossed, mask)).sum()))
        sequences = algorithm.data.examples.select(rows)
        liked = torch.tensor([algorithm.data.labels[row] for row in rows])
        policy = algorithm.trainer.unwrapped(sequences.input_ids, sequences.action_mask).logprobs
        own = (policy - algorithm.reference(sequences.input_ids, sequences.action_mask)).sum(dim=1)
    point = sum(ratios) / 7
    loss = kto_loss(own, liked, point, beta=0.5, desirable_weight=1.5).mean()
    step = run(algorithm, 1)[0]
    assert step["kl/reference_point"] == pytest.approx(point, rel=1e-4)
    assert step["optim/loss"] == pytest.approx(float(loss), rel=1e-5)


def test_a_mismatched_answer_is_no_longer_than_the_longest_row():
    examples = Examples(
        [[1, 2, 3, 4, 5], [1, 6], [7, 8, 9]], [[False] * 4 + [True], [False, True], [False, True, True]]
    )
    crossed = mismatched(examples, [0, 1, 2])
    assert crossed.ids == [[1, 2, 3, 4, 6], [1, 8, 9], [7, 5]]
    assert crossed.action_masks == [[False] * 4 + [True], [False, True, True], [False, True]]
    assert mismatched(examples, [0, 2]).ids == [[1, 2, 3, 4, 8], [7, 5]]


@pytest.mark.parametrize("make", MAKERS)
def test_every_metric_is_described(make):
    assert not [name for metrics in run(make(), 2) for name in metrics if described(name) is None]


@pytest.mark.parametrize(
    "config, settings, message",
    [
        (DPOConfig, {"beta": 0.0}, "beta must be above 0"),
        (DPOConfig, {"label_smoothing": 0.5}, "label_smoothing must be at least 0 and below 0.5.*swap chosen"),
        (DPOConfig, {"sft_weight": -1.0}, "sft_weight must not be negative"),
        (DPOConfig, {"pairs_per_step": 0}, "must be at least 1"),
        (KTOConfig, {"examples_per_step": 1}, "examples_per_step must be at least 2"),
        (KTOConfig, {"beta": -0.1}, "beta must be above 0"),
        (KTOConfig, {"desirable_weight": -1.0}, "must not be negative"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_with_the_way_out(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_what_cannot_be_trained_is_refused_with_the_way_out():
    policy, _ = small_policy()
    with pytest.raises(ValueError, match=r"pass reference=reference_of\(policy\), or a loss"):
        DPO(policy, small_pairs(), DPOConfig(), Accelerator(cpu=True), reference=None)
    with pytest.raises(ValueError, match="there are no pairs to learn from"):
        DPO(policy, Pairs(Examples([], []), Examples([], [])), DPOConfig(), Accelerator(cpu=True), reference=None)
    with pytest.raises(ValueError, match=r"a value a pair, \[5\], got \[\]"):
        run(small_dpo(loss=lambda *four: dpo_margins(*four).mean()), 1)


def test_a_reference_point_that_is_nan_stops_the_run_and_is_not_taken_for_0():
    algorithm = small_kto()
    known, reference = {tuple(ids) for ids in algorithm.data.examples.ids}, algorithm.reference

    def broken(input_ids, action_mask):
        """NaN for what is no answer of the data: an answer under another's prompt."""
        said = reference(input_ids, action_mask)
        ends = action_mask.shape[1] - action_mask.int().flip(1).argmax(dim=1)
        strange = [tuple(ids[:end].tolist()) not in known for ids, end in zip(input_ids, ends, strict=True)]
        return torch.where(torch.tensor(strange)[:, None] & action_mask, torch.nan, said)

    algorithm.reference = broken
    before = parameters(algorithm)
    with pytest.raises(NonFiniteError, match=r"^step 1: the reference point is nan"):
        run(algorithm, 1)
    assert all(torch.equal(value, before[name]) for name, value in parameters(algorithm).items())
