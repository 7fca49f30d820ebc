"""Reward-model training: its loss, the cut of a step, exact resume, and that it learns; calibration."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import transformers
from accelerate import Accelerator
from torch.testing import assert_close

from align.config import OptimizerConfig, RewardModelConfig
from align.metrics import described
from align.pairs import read_pairs, tokenize_pairs
from align.reward_head import RewardModel, save_reward_model, score_ids
from align.reward_model import RewardTraining, calibration_error, reward_model_loss
from align.rows import DataError
from tests.small_runs import small_reward_model, small_reward_pairs
from tests.tiny import tiny_tokenizer


def run(algorithm, steps: int) -> list[dict[str, float]]:
    metrics = algorithm.steps()
    taken = [next(metrics) for _ in range(steps)]
    return [{name: value for name, value in m.items() if not name.startswith("time/")} for m in taken]


def test_the_loss_is_bradley_terry_with_a_margin_and_a_pull_to_a_mean_of_0():
    chosen, rejected = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0])
    expected = [
        -math.log(1 / (1 + math.exp(-(c - r - m)))) + 0.1 * (c + r) ** 2
        for c, r, m in ((2.0, 0.5, 1.0), (-1.0, 1.0, 0.0))
    ]
    loss = reward_model_loss(chosen, rejected, margin=torch.tensor([1.0, 0.0]), centring=0.1)
    assert_close(loss, torch.tensor(expected))


def test_a_step_is_the_mean_loss_of_its_pairs_with_their_own_margins():
    algorithm = small_reward_model(pairs_per_step=11, micro=16)
    pairs, config = algorithm.data, algorithm.config
    model = algorithm.trainer.unwrapped
    chosen, rejected = (torch.tensor(score_ids(model, side.ids)) for side in (pairs.chosen, pairs.rejected))
    margin = torch.tensor(pairs.margins)
    (metrics,) = run(algorithm, 1)
    losses = reward_model_loss(chosen, rejected, margin=margin, centring=config.centring)
    assert metrics["optim/loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    assert metrics["preference/accuracy"] == pytest.approx(float((chosen > rejected).double().mean()))
    assert metrics["preference/margin"] == pytest.approx(float((chosen - rejected).mean()), rel=1e-4)
    assert metrics["reward_model/mean"] == pytest.approx(float((chosen + rejected).mean()) / 2, rel=1e-4)
    assert all(described(name) for name in metrics)


@pytest.mark.parametrize("lora", [False, True])
def test_how_a_step_is_cut_into_micro_batches_never_changes_its_gradient(lora):
    gradients = []
    for micro in (10_000, 16, 1):
        algorithm = small_reward_model(lora=lora, double=True, micro=micro)
        algorithm.trainer.unwrapped.double()
        seen = {}
        algorithm.trainer.optimizer.step = lambda a=algorithm, s=seen: s.update(
            {n: p.grad.clone() for n, p in a.trainer.unwrapped.named_parameters() if p.requires_grad}
        )
        run(algorithm, 1)
        gradients.append(seen)
    assert any(g.abs().max() > 1e-3 for g in gradients[0].values())
    for other in gradients[1:]:
        assert_close(gradients[0], other, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(lora, stop):
    whole, first, second = (small_reward_model(lora=lora) for _ in range(3))
    expected = run(whole, 6)
    begun = run(first, stop)
    second.load_state(first.state())
    assert begun + run(second, 6 - stop) == expected
    one, other = (algorithm.trainer.state() for algorithm in (whole, second))
    assert one["parameters"].keys() == other["parameters"].keys()
    assert all(torch.equal(value, other["parameters"][name]) for name, value in one["parameters"].items())


@pytest.mark.parametrize("lora", [False, True])
def test_it_learns_which_answers_are_preferred_and_saves_what_it_learned(lora, tmp_path):
    algorithm = small_reward_model(lora=lora, steps=25, pairs_per_step=11)
    before = algorithm.evaluate(algorithm.data)
    run(algorithm, 25)
    after = algorithm.evaluate(algorithm.data)
    assert after["preference/accuracy"] == 1.0 and after["loss"] < before["loss"] / 2
    assert set(after) == set(before) and all(described(f"eval/{name}") for name in after)
    assert described("reward_model/calibration_error")

    model = algorithm.trainer.unwrapped
    ids = algorithm.data.chosen.ids + algorithm.data.rejected.ids
    save_reward_model(model.model, tiny_tokenizer(), tmp_path / "saved", card="")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert_close(score_ids(RewardModel(loaded), ids), score_ids(model, ids), rtol=1e-4, atol=1e-5)


def test_lora_trains_its_adapters_and_the_head_alone():
    names = list(small_reward_model(lora=True).trainer.state()["parameters"])
    assert all("lora_" in name or ".score." in name for name in names)
    assert any(".score." in name for name in names) and any("lora_A" in name for name in names)


def test_centring_brings_the_scores_to_a_mean_of_0():
    means = []
    for centring in (0.0, 0.3):
        algorithm = small_reward_model(steps=20, pairs_per_step=11, centring=centring)
        with torch.no_grad():  # far from 0 at first
            algorithm.trainer.unwrapped.model.score.weight += 0.5 * torch.sign(
                algorithm.trainer.unwrapped.model.score.weight
            )
        run(algorithm, 20)
        means.append(abs(algorithm.evaluate(algorithm.data)["reward_model/mean"]))
    assert means[1] < 0.3 and means[1] < means[0]


def test_an_evaluation_is_that_of_its_pairs_however_they_are_batched():
    whole, cut = small_reward_model(), small_reward_model(micro=16)
    assert_close(whole.evaluate(whole.data), cut.evaluate(whole.data), rtol=1e-5, atol=1e-6)
    margins = whole.margins(whole.data)
    assert whole.evaluate(whole.data)["preference/margin"] == pytest.approx(float(margins.mean()))


def test_calibration_compares_confidence_with_how_often_it_is_right():
    draw = torch.Generator().manual_seed(0)
    margins = torch.randn(20_000, generator=draw).abs() * 2
    signs = torch.where(torch.rand(20_000, generator=draw) < torch.sigmoid(margins), 1.0, -1.0)
    assert calibration_error(margins * signs) < 0.02  # right exactly as often as it says
    assert calibration_error(3 * margins * signs) > 0.1  # too sure
    assert calibration_error(torch.full((10,), 40.0)) < 1e-9
    assert calibration_error(torch.full((10,), -40.0)) == pytest.approx(1.0)
    assert calibration_error(torch.zeros(10)) == 0  # ties are half right, and a coin's toss is what was said


def test_margins_come_from_a_column_and_follow_their_pairs(tmp_path):
    rows = [
        {"prompt": "a", "chosen": "b" * size, "rejected": "c", "sure": str(size / 2)}
        for size in (1, 9, 3)  # the second is too long
    ]
    pairs = tokenize_pairs(read_pairs(rows, margin="sure"), tiny_tokenizer(), max_tokens=6, too_long="drop")
    assert pairs.margins == [0.5, 1.5] and pairs.dropped == 1
    assert tokenize_pairs(read_pairs(rows), tiny_tokenizer()).margins is None
    with pytest.raises(DataError, match="sure: expected a finite number"):
        read_pairs([{**rows[0], "sure": "very"}], margin="sure")
    with pytest.raises(DataError, match="unsure"):
        read_pairs(rows, margin="unsure")


def test_pairs_that_end_with_padding_are_refused_before_anything_is_trained():
    algorithm = small_reward_model()
    model = algorithm.trainer.unwrapped
    model.model.config.pad_token_id = 2
    with pytest.raises(ValueError, match="call separate_padding"):
        RewardTraining(model, small_reward_pairs(), algorithm.config, Accelerator(cpu=True))
    nothing = replace(small_reward_pairs(), chosen=replace(algorithm.data.chosen, ids=[], action_masks=[]))
    with pytest.raises(ValueError, match="no pairs"):
        RewardTraining(model, nothing, algorithm.config, Accelerator(cpu=True))


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="centring must not be negative"):
        RewardModelConfig(centring=-1.0)
    with pytest.raises(ValueError, match="at least 1"):
        RewardModelConfig(pairs_per_step=0, optimizer=OptimizerConfig())
