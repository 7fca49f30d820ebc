"""The GRPO loop: what is sampled, what is forwarded, what is reported."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.testing import assert_close

from align.aggregate import per_fixed_length, per_sequence
from align.config import SamplingConfig
from align.grpo import GRPO, centre_by_group
from align.metrics import described
from align.rewards import Reward
from align.surrogates import cispo_loss, sequence_ratio_loss
from tests.small_runs import ROWS, share_of_letter, small_grpo


def run(algorithm, steps: int) -> list[dict[str, float]]:
    metrics = algorithm.steps()
    return [next(metrics) for _ in range(steps)]


def sometimes(prompts, completions, letter):
    """Tell nothing of most prompts: their completions all get one reward."""
    return [
        float(len(text) % 2) if prompt[0] in "ab" else 1.0 for prompt, text in zip(prompts, completions, strict=True)
    ]


def parameters(algorithm):
    return algorithm.trainer.state()["parameters"]


def test_reward_rises():
    algorithm = small_grpo(steps=40, prompts_per_step=6, group_size=8)
    rewards = [m["reward/mean"] for m in run(algorithm, 40)]
    assert sum(rewards[-5:]) > 2 * sum(rewards[:5])


def test_the_first_update_of_a_rollout_has_ratio_1_and_the_sampler_agrees_with_the_trainer():
    metrics = run(small_grpo(updates_per_rollout=2, optimizer=small_grpo().config.optimizer), 4)
    assert [m["policy/clip_fraction"] for m in metrics][::2] == [0.0, 0.0]
    assert all(m["policy/sampler_gap"] < 1e-5 for m in metrics[::2])
    assert all("reward/mean" not in m for m in metrics[1::2])


def test_every_step_counts_the_completions_at_which_a_reward_failed():
    def failing(completions):
        return [math.nan, *[1.0] * (len(completions) - 1)]

    algorithm = small_grpo()
    algorithm.rewards, algorithm.on_error = [Reward(failing), *algorithm.rewards], "skip"
    with pytest.warns(UserWarning, match="reward 'failing' failed on sample 0"):
        steps = run(algorithm, 2)
    assert [m["reward/faults"] for m in steps] == [1 / len(algorithm.examples())] * 2
    assert described("reward/faults") != described("reward/failing")
    assert "reward/faults" not in run(small_grpo(), 1)[0]


def test_later_updates_of_a_rollout_are_clipped_against_the_sampling_policy():
    metrics = run(small_grpo(updates_per_rollout=4, clip_low=1e-4, clip_high=1e-4), 4)
    assert all(m["policy/clip_fraction"] > 0 for m in metrics[1:])


def test_what_a_sequence_level_ratio_clips_are_whole_sequences_and_what_cispo_clips_is_nothing():
    fractions = {}
    for surrogate in (partial(sequence_ratio_loss, clip_low=1e-3, clip_high=1e-3), cispo_loss):
        algorithm = small_grpo(updates_per_rollout=3)
        algorithm.surrogate = surrogate
        fractions[surrogate] = [m["policy/clip_fraction"] for m in run(algorithm, 3)]
    gspo, cispo = fractions.values()
    assert gspo[0] == 0 and gspo[1] > 0.1
    assert cispo == [0, 0, 0]


def test_leaving_out_rows_without_signal_changes_nothing_but_the_work():
    silent_forwarded = small_grpo(reward=sometimes)
    # an average reference that costs nothing: the KL's weight is 0 in the loss, but every row is forwarded
    silent_forwarded.reference = lambda input_ids, mask: torch.zeros(input_ids.shape)
    left_out = small_grpo(reward=sometimes)
    everything, fewer = run(silent_forwarded, 3), run(left_out, 3)
    assert sum(m["tokens/trained"] for m in fewer) < 0.8 * sum(m["tokens/trained"] for m in everything)
    assert_close(parameters(left_out), parameters(silent_forwarded), rtol=1e-5, atol=1e-6)


def test_a_step_without_any_signal_moves_nothing_and_does_not_fail():
    algorithm = small_grpo(reward=lambda prompts, completions, **columns: [1.0] * len(completions))
    before = parameters(algorithm)
    metrics = run(algorithm, 1)[0]
    assert metrics["group/silent"] == 1 and metrics["tokens/trained"] == 0 and metrics["optim/grad_norm"] == 0
    assert_close(parameters(algorithm), before, rtol=0, atol=0)


def test_redraws_replace_silent_groups_by_fresh_prompts():
    plain, redrawn = small_grpo(reward=sometimes), small_grpo(reward=sometimes, max_redraws=3)
    without, with_redraws = run(plain, 1)[0], run(redrawn, 1)[0]
    assert with_redraws["group/silent"] < without["group/silent"]
    assert redrawn.rollouts is not None
    numbers = redrawn.rollouts.numbers
    assert len(numbers) == len(set(numbers)) == 4 and max(numbers) >= 4
    assert redrawn.drawn > 4


def test_redrawn_prompts_are_not_drawn_again_by_the_next_step():
    algorithm = small_grpo(reward=sometimes, max_redraws=1)
    run(algorithm, 1)
    drawn = algorithm.drawn
    run(algorithm, 1)
    assert algorithm.position == drawn


def test_every_prompt_comes_once_an_epoch_with_its_own_columns():
    seen = []

    def note(prompts, completions, letter):
        seen.extend(zip(prompts, letter, strict=True))
        return share_of_letter(prompts, completions, letter)

    run(small_grpo(reward=note, prompts_per_step=3), 2)
    assert all(prompt[0] == letter for prompt, letter in seen)
    assert sorted({prompt for prompt, _ in seen}) == sorted(row["prompt"] for row in ROWS)
    assert len(seen) == 4 * len(ROWS)


def test_truncated_completions_can_be_left_out_of_the_loss_and_its_denominator():
    kept = run(small_grpo(max_new_tokens=3), 1)[0]
    masked = run(small_grpo(max_new_tokens=3, mask_truncated=True), 1)[0]
    assert kept["completion/truncated"] > 0.5
    assert masked["tokens/trained"] < kept["tokens/trained"]


def test_a_missing_reward_leaves_its_completion_out_of_the_update():
    def missing(prompts, completions, letter):
        return [None if row % 4 == 0 else float(row % 4) for row in range(len(completions))]

    algorithm = small_grpo(reward=missing)
    metrics = run(algorithm, 1)[0]
    examples = algorithm.examples()
    assert all(example["advantage"] == 0 for example in examples[::4])
    assert metrics["reward/mean"] == pytest.approx(2.0)


@pytest.mark.parametrize("average", [per_sequence, per_fixed_length(6)])
@pytest.mark.parametrize("surrogate", [sequence_ratio_loss, cispo_loss])
def test_the_family_is_composed_from_functions(average, surrogate):
    plain = small_grpo()
    algorithm = GRPO(
        plain.trainer.unwrapped, plain.sampler, plain.prompts, [share_of_letter], plain.config, plain.accelerator,
        surrogate=surrogate, advantages=centre_by_group, average=average,
    )  # fmt: skip
    before = parameters(algorithm)
    metrics = run(algorithm, 2)
    assert all(m["optim/grad_norm"] > 0 for m in metrics)
    assert any((value != before[name]).any() for name, value in parameters(algorithm).items())


def test_a_kl_needs_a_reference_and_a_reference_a_kl():
    plain = small_grpo()
    for config, reference in ((small_grpo(kl=True).config, None), (plain.config, lambda ids, mask: ids)):
        with pytest.raises(ValueError, match="reference_of"):
            GRPO(
                plain.trainer.unwrapped, plain.sampler, plain.prompts, [share_of_letter], config, plain.accelerator,
                reference=reference,
            )  # fmt: skip


@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_stays_where_the_policy_began(lora):
    metrics = run(small_grpo(kl=True, lora=lora, steps=10), 10)
    kl = [m["kl/reference"] for m in metrics]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[-1] > 1e-3


def test_a_sampler_that_keeps_stale_weights_is_caught():
    algorithm = small_grpo()
    algorithm.sampler.load_weights = lambda policy, version: None
    run(algorithm, 1)
    with pytest.raises(RuntimeError, match="load_weights did not take effect"):
        run(algorithm, 1)


def test_a_reward_that_asks_for_a_missing_column_is_refused_at_construction():
    with pytest.raises(ValueError, match=r"'lettre'.*letter"):
        small_grpo(reward=lambda prompts, completions, lettre: [0.0])


def test_faults_of_a_reward_are_said_when_they_are_not_errors():
    def broken(prompts, completions, letter):
        return [float("nan")] * len(completions)

    algorithm = small_grpo(reward=broken)
    algorithm.on_error = "zero"
    with pytest.warns(UserWarning, match="reward 'broken' failed on sample"):
        run(algorithm, 1)


@pytest.fixture
def fresh_accelerator():
    """Forget the precision of Accelerate's one state, before and after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_in_bfloat16_sampler_trainer_and_reference_share_their_arithmetic_and_the_weights_stay_float32(
    fresh_accelerator,
):
    algorithm = small_grpo(kl=True, mixed_precision="bf16")
    assert algorithm.trainer.unwrapped.shortcuts().cache  # found out once, in float32
    seen = []
    algorithm.sampler.model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    metrics = run(algorithm, 2)
    assert set(seen) == {torch.bfloat16}
    assert all(m["policy/sampler_gap"] < 0.01 for m in metrics)
    assert metrics[0]["kl/reference"] == pytest.approx(0, abs=1e-4)
    assert {p.dtype for p in algorithm.trainer.unwrapped.parameters()} == {torch.float32}
    assert all(m["optim/grad_norm"] > 0 for m in metrics)


def test_three_temperatures_that_differ_are_refused():
    algorithm = small_grpo()
    algorithm.sampler.config = SamplingConfig(max_new_tokens=6, temperature=0.5)
    with pytest.raises(ValueError, match="give all three the same"):
        GRPO(
            algorithm.trainer.unwrapped, algorithm.sampler, algorithm.prompts, [share_of_letter], algorithm.config,
            algorithm.accelerator,
        )  # fmt: skip


def test_a_model_that_comes_with_dropout_is_trained_without():
    algorithm = small_grpo()
    model = algorithm.sampler.model
    model.model.layers[0].self_attn.attention_dropout = 0.5
    GRPO(
        algorithm.trainer.unwrapped, algorithm.sampler, algorithm.prompts, [share_of_letter], algorithm.config,
        algorithm.accelerator,
    )  # fmt: skip
    assert model.model.layers[0].self_attn.attention_dropout == 0


def test_a_reward_that_applies_to_nothing_has_no_mean():
    def never(prompts, completions, letter):
        return [None] * len(completions)

    metrics = run(small_grpo(reward=never), 1)[0]
    assert math.isnan(metrics["reward/mean"]) and "reward/never" not in metrics


def test_weights_that_are_nan_stop_the_run_at_its_first_sample():
    algorithm = small_grpo()
    with torch.no_grad():
        next(algorithm.sampler.model.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinite log-probabilities"):
        run(algorithm, 1)


def test_as_many_processes_as_before_take_up_the_groups_that_each_had():
    algorithm = small_grpo(updates_per_rollout=2, prompts_per_step=6)
    run(algorithm, 1)
    state = algorithm.state()
    numbers = state["rollouts"]["numbers"]
    state["shares"] = [numbers[::-1]]
    algorithm.load_state(state)
    assert algorithm.rollouts.numbers == numbers[::-1]
    state["shares"] = [numbers[:1], numbers[1:]]  # of another number of processes: dealt out anew
    algorithm.load_state(state)
    assert algorithm.rollouts.numbers == numbers
