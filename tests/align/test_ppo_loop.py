"""The PPO loop: what is seen once, what is learned from, what is reported, and what a resumed run does."""

from __future__ import annotations

from itertools import chain, pairwise

import pytest
import torch
from torch.testing import assert_close

from align.config import SamplingConfig
from align.critic import Targets, see
from align.metrics import described
from align.ppo import PPO, completion_advantages
from align.training import NonFiniteError
from tests.small_runs import share_of_letter, small_ppo


def run(algorithm, steps: int) -> list[dict[str, float]]:
    metrics = algorithm.steps()
    return [next(metrics) for _ in range(steps)]


def parameters(algorithm) -> dict[str, torch.Tensor]:
    return algorithm.trainer.state()["parameters"]


def targets_of(algorithm) -> Targets:
    return Targets(**algorithm.rollouts.notes)


def timeless(metrics: list[dict[str, float]]) -> list[dict[str, float]]:
    clocks = ("time/", "tokens/per_second")
    return [{name: value for name, value in m.items() if not name.startswith(clocks)} for m in metrics]


EVERYTHING = {
    "token_rewards": {"kl_target": 0.5, "normalise_scores": True, "score_clip": 2.0, "missing_eos_penalty": 0.1},
    "entropy_coef": 0.01,
}


# What a step does


@pytest.mark.parametrize("lora", [False, True])
def test_a_fresh_policy_has_ratio_1_kl_0_and_clip_fraction_0(lora):
    first = run(small_ppo(lora=lora), 1)[0]
    assert first["policy/clip_fraction"] == 0 and first["policy/approx_kl"] == 0
    assert first["kl/reference"] == first["kl/completion"] == pytest.approx(0, abs=1e-5)
    assert first["policy/sampler_gap"] < 1e-5
    assert first["returns/objective"] == pytest.approx(first["reward/mean"], abs=1e-5)
    assert first["value/explained_variance"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("lora", [False, True])
def test_later_updates_of_a_rollout_move_away_from_the_policy_that_sampled(lora):
    metrics = run(small_ppo(lora=lora, steps=8, clip_low=1e-4, clip_high=1e-4), 8)
    assert [m["policy/approx_kl"] == 0 for m in metrics] == [True, False, False, False] * 2
    assert all(m["policy/clip_fraction"] > 0 for m in metrics[1:4])
    assert ["reward/mean" in m for m in metrics] == [True, False, False, False] * 2
    assert metrics[4]["kl/completion"] > 1e-4


def test_every_metric_is_documented():
    algorithm = small_ppo(**EVERYTHING)
    assert not [name for m in run(algorithm, 5) for name in m if described(name) is None]


def test_reward_rises():
    algorithm = small_ppo(steps=80, prompts_per_step=24, token_rewards={"kl_coef": 0.002})
    rewards = [m["reward/mean"] for m in run(algorithm, 80) if "reward/mean" in m]
    assert sum(rewards[-5:]) > 2 * sum(rewards[:5])


def test_the_critic_learns_what_to_expect_of_a_prompt():
    def by_prompt(prompts, completions, letter):
        return [float(name in "abc") for name in letter]  # whatever is answered

    algorithm = small_ppo(steps=60, prompts_per_step=12, reward=by_prompt, kl=False, critic={"value_clip": None})
    explained = [m["value/explained_variance"] for m in run(algorithm, 60) if "reward/mean" in m]
    assert explained[0] == pytest.approx(0, abs=1e-6) and sum(explained[-3:]) / 3 > 0.8


def test_each_epoch_goes_through_every_completion_once_in_an_order_of_its_own():
    algorithm = small_ppo(epochs=2, minibatches=4, steps=8)
    seen = []
    algorithm.trainer.step = lambda sequences, loss_of, step: (
        seen.append([row.tolist() for row in sequences.input_ids[:, :4]])
        or {"loss": 0.0, "grad_norm": 0.0, "learning_rate": 0.0}
    )
    run(algorithm, 8)
    first, second = seen[:4], seen[4:]
    assert [len(rows) for rows in seen] == [4] * 8
    assert sorted(chain(*first)) == sorted(chain(*second)) and first != second


def test_advantages_are_whitened_over_the_real_actions_of_the_step():
    algorithm = small_ppo(prompts_per_step=16)
    run(algorithm, 1)
    targets = targets_of(algorithm)
    assert_close(targets.advantages[targets.action_mask].mean(), torch.tensor(0.0), rtol=0, atol=1e-6)
    assert_close(targets.advantages[targets.action_mask].std(), torch.tensor(1.0), rtol=1e-5, atol=0)
    for each in targets:
        assert (each[~targets.action_mask] == 0).all()


def test_the_last_update_of_a_rollout_is_the_one_that_showed_too_large_a_kl():
    metrics = run(small_ppo(epochs=10, steps=20, kl_limit=0.02), 20)
    for now, after in pairwise(metrics):
        if now["policy/approx_kl"] > 0.02:
            assert "reward/mean" in after
    lengths = [row for row, m in enumerate(metrics) if "reward/mean" in m]
    assert 2 <= len(lengths) < 20 and any(m["policy/approx_kl"] > 0.02 for m in metrics)


def test_the_reference_stays_where_the_policy_began_and_a_kl_coef_holds_the_policy_near_it():
    near = run(small_ppo(steps=40, token_rewards={"kl_coef": 1.0}), 40)[36]["kl/completion"]
    far = run(small_ppo(steps=40, token_rewards={"kl_coef": 0.001}), 40)[36]["kl/completion"]
    assert 0 < near < 0.5 * far


def test_an_adaptive_weight_follows_the_measured_kl():
    metrics = run(small_ppo(steps=40, token_rewards={"kl_target": 0.01}), 40)
    coefs = [(m["kl/coef"], m["kl/completion"]) for m in metrics if "kl/coef" in m]
    for (coef, measured), (after, _) in pairwise(coefs):
        assert (after > coef) == (measured > 0.01)


def test_no_reference_is_needed_without_a_weight_and_one_is_with_it():
    plain = small_ppo(kl=False)
    assert "kl/reference" not in run(plain, 1)[0]
    with pytest.raises(ValueError, match="reference_of"):
        PPO(
            plain.trainer.unwrapped, plain.sampler, plain.prompts, [share_of_letter], small_ppo().config,
            plain.accelerator,
        )  # fmt: skip


# What completions are paid


def ones(prompts, completions, letter):
    return [1.0] * len(completions)


def experience_of(truncated: str, values: float = 5.0, **changes):
    algorithm = small_ppo(
        max_new_tokens=4, kl=False, reward=ones, prompts_per_step=64, token_rewards={"truncated": truncated, **changes}
    )
    with torch.no_grad():  # ends often, and a critic that says 5 everywhere
        algorithm.trainer.unwrapped.value_head.bias.fill_(values)
    rollouts = algorithm._sample()
    assert 0 < (~rollouts.terminated).sum() < len(rollouts)
    return rollouts, Targets(**algorithm._look_at(rollouts)[0].notes)


def last_returns(targets: Targets, rows: torch.Tensor) -> torch.Tensor:
    lengths = targets.action_mask.sum(dim=1)
    first = targets.action_mask.int().argmax(dim=1)
    return targets.returns[torch.arange(len(rows)), first + lengths - 1][rows]


def test_a_truncated_completion_is_scored_or_bootstrapped_and_never_both():
    rollouts, targets = experience_of("ended")
    assert (last_returns(targets, ~rollouts.terminated) == 1.0).all()
    rollouts, targets = experience_of("bootstrapped")
    assert_close(
        last_returns(targets, ~rollouts.terminated), torch.full_like(rollouts.rewards, 5.0)[~rollouts.terminated]
    )
    assert (last_returns(targets, rollouts.terminated) == 1.0).all()


def test_the_bootstrap_is_the_value_of_the_state_after_the_last_token():
    algorithm = small_ppo(max_new_tokens=3, micro=100, token_rewards={"truncated": "bootstrapped"})
    torch.nn.init.normal_(algorithm.trainer.unwrapped.value_head.weight)
    rollouts = algorithm._sample()
    seen, plain = (
        see(
            algorithm.trainer.unwrapped,
            None,
            rollouts.sequences,
            algorithm.accelerator,
            cut=algorithm.trainer.cut,
            look_ahead=ahead,
        )
        for ahead in (True, False)
    )
    assert_close(seen[:3], plain[:3])
    row = int((~rollouts.terminated).nonzero()[0, 0])
    ids = rollouts.sequences.input_ids[row, : rollouts.sequences.lengths[row]]
    longer = torch.cat([ids, torch.tensor([7])])[None]
    values = algorithm.trainer.unwrapped(longer, torch.ones_like(longer, dtype=torch.bool)).values
    assert_close(seen.final_values[row], values[0, -1].detach())


def test_truncated_completions_can_be_left_out_with_their_denominator():
    rollouts, targets = experience_of("left-out")
    assert torch.equal(targets.action_mask.any(dim=1), rollouts.terminated)


def test_a_missing_eos_costs_its_penalty_and_a_present_one_nothing():
    rollouts, targets = experience_of("ended", missing_eos_penalty=0.75)
    assert (last_returns(targets, ~rollouts.terminated) == 0.25).all()
    assert (last_returns(targets, rollouts.terminated) == 1.0).all()


def test_a_missing_score_leaves_its_completion_out():
    def missing(prompts, completions, letter):
        return [None if row % 4 == 0 else 1.0 for row in range(len(completions))]

    algorithm = small_ppo(reward=missing, **EVERYTHING)
    metrics = run(algorithm, 4)
    learned = targets_of(algorithm).action_mask.any(dim=1)
    assert learned.tolist() == [row % 4 != 0 for row in range(16)]
    assert metrics[0]["reward/mean"] == 1.0 and algorithm.scores.count == 12
    assert sum(m["tokens/trained"] for m in metrics[:2]) == targets_of(algorithm).action_mask.sum()


def test_scores_are_shifted_and_scaled_by_all_scores_so_far_and_clipped():
    algorithm = small_ppo(token_rewards={"normalise_scores": True, "score_clip": 0.5})
    rollouts = algorithm._sample()
    scores = algorithm._scores(rollouts)
    expected = (rollouts.rewards - rollouts.rewards.mean()) / rollouts.rewards.std()
    assert_close(scores, expected.clamp(-0.5, 0.5), rtol=1e-4, atol=1e-5)
    algorithm._scores(rollouts)
    assert algorithm.scores.count == 32 and algorithm.scores.mean == pytest.approx(float(rollouts.rewards.mean()))


def test_equal_scores_normalise_to_0():
    algorithm = small_ppo(reward=ones, token_rewards={"normalise_scores": True})
    assert (algorithm._scores(algorithm._sample()) == 0).all()


def test_a_sampler_that_keeps_stale_weights_is_caught():
    algorithm = small_ppo()
    algorithm.sampler.load_weights = lambda policy, version: None
    run(algorithm, 4)
    with pytest.raises(RuntimeError, match="load_weights did not take effect"):
        run(algorithm, 1)


@pytest.mark.parametrize("part", ["value_head.weight", "model.model.embed_tokens.weight"])
def test_nan_stops_before_the_update(part):
    algorithm = small_ppo()
    run(algorithm, 1)
    before = parameters(algorithm)
    dict(algorithm.trainer.unwrapped.named_parameters())[part].register_hook(lambda grad: grad * torch.nan)
    with pytest.raises(NonFiniteError, match="weights are as before"):
        run(algorithm, 1)
    assert_close(parameters(algorithm), before, rtol=0, atol=0)


# How it is cut, and where it stops


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("value_model", [False, True])
def test_how_a_step_is_cut_into_micro_batches_never_changes_its_gradient(lora, value_model):
    gradients = []
    for micro in (10_000, 16):
        algorithm = small_ppo(double=True, lora=lora, micro=micro, value_model=value_model, **EVERYTHING)
        torch.manual_seed(0)
        if not value_model:
            torch.nn.init.normal_(algorithm.trainer.unwrapped.value_head.weight, std=0.1)
        seen: list[dict[str, torch.Tensor]] = []
        step = algorithm.trainer.optimizer.step

        def note(algorithm=algorithm, seen=seen, step=step):
            named = algorithm.trainer.unwrapped.named_parameters()
            seen.append({name: p.grad.clone() for name, p in named if p.requires_grad})
            step()

        algorithm.trainer.optimizer.step = note
        run(algorithm, 4)
        gradients.append(seen)
    for whole, cut in zip(*gradients, strict=True):
        assert max(g.abs().max() for g in whole.values()) > 1e-3
        scale = max(float(g.abs().max()) for g in whole.values())
        assert_close(cut, whole, rtol=1e-6, atol=1e-8 * scale)


@pytest.mark.parametrize("kind", [{}, {"lora": True}, {"lora": True, "value_model": True}], ids=str)
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one_at_every_position_inside_a_rollout(kind, stop):
    unbroken = small_ppo(**kind, **EVERYTHING)
    expected = run(unbroken, 6)
    first = small_ppo(**kind, **EVERYTHING)
    run(first, stop)
    state = first.state()
    run(first, 1)  # what happens after the state was taken must not reach it
    second = small_ppo(**kind, **EVERYTHING)
    second.load_state(state)
    rest = run(second, 6 - stop)
    assert_close(parameters(second), parameters(unbroken), rtol=0, atol=0)
    assert timeless(rest) == timeless(expected[stop:])
    assert (second.kl_coef, second.scores) == (unbroken.kl_coef, unbroken.scores)


def test_an_early_stop_resumes_exactly_too():
    changes = {"epochs": 10, "kl_limit": 0.02, "steps": 12}
    unbroken = small_ppo(**changes)
    expected = run(unbroken, 12)
    for stop in range(1, 12):
        broken, resumed = small_ppo(**changes), small_ppo(**changes)
        run(broken, stop)
        resumed.load_state(broken.state())
        assert timeless(run(resumed, 12 - stop)) == timeless(expected[stop:])


def test_the_advantages_of_the_loop_are_those_of_the_function():
    algorithm = small_ppo(prompts_per_step=16, kl=False)
    torch.nn.init.normal_(algorithm.trainer.unwrapped.value_head.weight, std=0.3)
    run(algorithm, 1)
    targets, rollouts = targets_of(algorithm), algorithm.rollouts
    rewards = torch.zeros_like(targets.values)
    rewards[torch.arange(len(rollouts)), rollouts.sequences.lengths - 1] = rollouts.rewards
    advantages = completion_advantages(rewards, targets.values, targets.action_mask, gamma=1.0, lam=0.95)
    counted = advantages[targets.action_mask]
    assert_close(targets.advantages[targets.action_mask], (counted - counted.mean()) / counted.std())
    assert_close(targets.returns, advantages + targets.values)


def test_what_is_trained_is_what_is_sampled_one_temperature_and_no_dropout():
    algorithm = small_ppo()
    attention = algorithm.sampler.model.model.layers[0].self_attn
    attention.attention_dropout = 0.5

    def again() -> PPO:
        return PPO(
            algorithm.trainer.unwrapped, algorithm.sampler, algorithm.prompts, [share_of_letter], algorithm.config,
            algorithm.accelerator, reference=algorithm.reference,
        )  # fmt: skip

    again()
    assert attention.attention_dropout == 0
    algorithm.sampler.config = SamplingConfig(max_new_tokens=6, temperature=0.5)
    with pytest.raises(ValueError, match="give all three the same"):
        again()
