"""Importance weights: the formula, the gradient that they restore, and what GRPO and PPO make of them."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from align import importance
from align.config import ImportanceConfig, OptimizerConfig, SamplingConfig
from align.grpo import grpo_loss
from align.importance import importance_of, importance_weights
from align.logprobs import token_logprobs as logprobs_of_model
from align.metrics import described
from align.ppo import PPO
from align.surrogates import cispo_loss, sequence_ratio_loss
from align.truncation import truncated
from classic_rl.masked import standardize
from tests.small_runs import small_grpo, small_ppo
from tests.toy_policy import MASK, STATES, TOKENS, gradient, probabilities, random_logits, rewards, token_logprobs

POLICY = torch.tensor([[0.2, 0.9, 0.5, 0.3], [0.6, 0.3, 0.8, 0.1]]).log()
SAMPLER = torch.tensor([[0.4, 0.1, 0.5, 0.3], [0.1, 0.6, 0.2, 0.5]]).log()
ACTIONS = torch.tensor([[False, True, True, True], [True, True, True, False]])
"""Ratios of the actions: 9, 1, 1, with the product 9; and 6, 1/2, 4, with the product 12."""

MODES = {
    "token-truncate": [[0, 5, 1, 1], [5, 0.75, 4, 0]],
    "token-mask": [[0, 0, 1, 1], [0, 0, 4, 0]],
    "sequence-truncate": [[0, 5, 5, 5], [5, 5, 5, 0]],
    "sequence-mask": [[0, 0, 0, 0], [0, 0, 0, 0]],
}
OUTSIDE = {"token": [[0, 1, 0, 0], [1, 1, 0, 0]], "sequence": [[0, 1, 1, 1], [1, 1, 1, 0]]}


@pytest.mark.parametrize("mode", MODES)
def test_ratios_of_tokens_or_sequences_are_bounded_or_left_out(mode):
    got = importance_weights(POLICY, SAMPLER, ACTIONS, mode=mode, low=0.75, high=5.0)
    assert_close(got.weights, torch.tensor(MODES[mode], dtype=torch.float32))
    assert got.outside.int().tolist() == OUTSIDE[mode.split("-")[0]]
    within = importance_weights(POLICY, SAMPLER, ACTIONS, mode=mode, low=0.01, high=100.0)
    ratios = torch.tensor([[0, 9, 1, 1], [6, 0.5, 4, 0]])
    products = torch.tensor([[0.0, 9, 9, 9], [12, 12, 12, 0]])
    assert_close(within.weights, ratios if mode.startswith("token") else products)
    assert not within.outside.any()


@pytest.mark.parametrize("mode", MODES)
def test_what_does_not_count_reaches_no_weight_and_no_weight_has_a_gradient(mode):
    policy = POLICY.masked_fill(~ACTIONS, torch.nan).requires_grad_()
    sampler = SAMPLER.masked_fill(~ACTIONS, -torch.inf).requires_grad_()
    got = importance_weights(policy, sampler, ACTIONS, mode=mode, high=5.0)
    assert got.weights.isfinite().all() and not got.weights.requires_grad
    assert torch.equal(got.weights, importance_weights(POLICY, SAMPLER, ACTIONS, mode=mode, high=5.0).weights)


def test_where_the_sampler_is_the_policy_every_weight_is_1_without_rounding():
    for mode in MODES:
        got = importance_weights(POLICY, POLICY.clone(), ACTIONS, mode=mode, low=1.0, high=1.0)
        assert torch.equal(got.weights, ACTIONS.float()) and not got.outside.any()


def test_a_ratio_beyond_all_numbers_is_bounded_or_left_out_and_never_nan():
    policy, sampler, mask = torch.zeros(1, 2), torch.full((1, 2), -1e4), torch.ones(1, 2, dtype=torch.bool)
    assert importance_weights(policy, sampler, mask).weights.tolist() == [[2, 2]]
    assert importance_weights(policy, sampler, mask, mode="sequence-mask").weights.tolist() == [[0, 0]]


@pytest.mark.parametrize("mode", ["token-trunc", "tokens-mask", "truncate", None])
def test_a_mode_that_is_not_there_is_refused_and_never_taken_for_another(mode):
    with pytest.raises(ValueError, match=r"^mode must be one of token-truncate, .*, got"):
        importance_weights(POLICY, SAMPLER, ACTIONS, mode=mode)


def test_tensors_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"logprobs \[2, 4\], sampler_logprobs \[2, 3\]"):
        importance_weights(POLICY, SAMPLER[:, :3], ACTIONS)


@pytest.mark.parametrize("surrogate", [grpo_loss, sequence_ratio_loss, cispo_loss])
def test_weighed_by_sequences_what_another_policy_sampled_has_the_expected_gradient_of_the_policy(surrogate):
    """Every completion, by its probability under the sampler; the ratio to the policy when drawn is 1."""
    logits, other = random_logits(0), random_logits(1).detach()
    logprobs, sampled = token_logprobs(logits), token_logprobs(other)
    weights = importance_weights(logprobs, sampled, MASK, mode="sequence-truncate", high=1e9).weights
    loss = surrogate(logprobs, logprobs.detach(), rewards(), MASK)
    expected = gradient((probabilities(logits) * rewards()).sum(), logits)
    got = gradient(-(probabilities(other)[:, None] * weights * loss).sum(), logits)
    assert_close(got, expected)
    unweighed = gradient(-(probabilities(other)[:, None] * loss).sum(), logits)
    assert (unweighed - expected).abs().max() > 0.05


def test_under_top_k_a_token_weighs_the_probability_that_was_kept_and_no_bound_is_met():
    logits = random_logits(3).detach()
    cut = truncated(logits, top_k=2).double()
    kept = torch.where(cut.isfinite(), logits.softmax(-1), 0.0).sum(-1)[STATES]
    drawn = MASK & cut.isfinite()[STATES, TOKENS]
    got = importance_weights(token_logprobs(logits), cut.log_softmax(-1)[STATES, TOKENS], drawn)
    assert_close(got.weights, torch.where(drawn, kept, 0.0), atol=1e-6, rtol=1e-6)
    assert not got.outside.any()


def test_under_top_k_weighed_tokens_have_the_terms_of_the_policy_gradient_of_the_words_that_are_kept():
    """One state: sum over kept words of pi(a) * A(a) * grad log pi(a), whatever the others would have earned."""
    logits = torch.tensor([[0.3, -0.4, 1.1, 0.2]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    cut = truncated(logits.detach(), top_k=2).double().log_softmax(-1)[0]
    words = cut.isfinite().nonzero()[:, 0]
    logprobs = logits.log_softmax(-1)[0, words][:, None]
    mask = torch.ones_like(logprobs, dtype=torch.bool)
    weights = importance_weights(logprobs, cut[words][:, None], mask).weights
    loss = weights * grpo_loss(logprobs, logprobs.detach(), advantages[words], mask)
    got = gradient(-(cut[words].exp()[:, None] * loss).sum(), logits)
    pi = logits.softmax(-1)[0]
    assert_close(got, gradient((pi[words] * advantages[words]).sum(), logits), atol=1e-6, rtol=1e-6)


# --- the settings ----------------------------------------------------------------------------------------------------


def test_without_truncation_or_a_named_mode_there_is_nothing_to_weigh():
    assert importance_of(ImportanceConfig(), SamplingConfig()) is None
    for sampling in (SamplingConfig(top_p=0.9), SamplingConfig(top_k=5)):
        weigh = importance_of(ImportanceConfig(), sampling)
        assert weigh is not None
        assert_close(weigh(POLICY, SAMPLER, ACTIONS), importance_weights(POLICY, SAMPLER, ACTIONS))


def test_the_mode_and_the_bounds_are_those_of_the_settings():
    config = ImportanceConfig(importance="token-mask", importance_low=0.75, importance_high=5.0)
    weigh = importance_of(config, SamplingConfig())
    assert weigh is not None
    assert_close(weigh(POLICY, SAMPLER, ACTIONS).weights, torch.tensor(MODES["token-mask"], dtype=torch.float32))


@pytest.mark.parametrize(("name", "number"), [("importance_low", 1.1), ("importance_high", 0.9)])
def test_bounds_that_leave_out_a_ratio_of_1_are_refused(name, number):
    with pytest.raises(ValueError, match=f"{name} must"):
        ImportanceConfig(**{name: number})


# --- the loops -------------------------------------------------------------------------------------------------------

FEW = SamplingConfig(max_new_tokens=6, top_p=0.8)


def run(algorithm, steps: int) -> list[dict[str, float]]:
    metrics = algorithm.steps()
    return [next(metrics) for _ in range(steps)]


def timeless(metrics):
    return [{name: value for name, value in m.items() if name not in TIMES} for m in metrics]


TIMES = ("time/step", "time/sample", "tokens/per_second")


@pytest.mark.parametrize("make", [small_grpo, small_ppo])
def test_by_default_no_weight_is_computed_and_none_reported(make, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("a weight was computed")

    monkeypatch.setattr(importance, "importance_weights", never)
    algorithm = make()
    metrics = run(algorithm, 2)
    assert algorithm.importance is None
    assert not any("importance" in name for m in metrics for name in m)
    assert make is small_ppo or algorithm.rollouts.notes == {}


@pytest.mark.parametrize("make", [small_grpo, small_ppo])
def test_a_truncated_run_learns_weighed_and_says_how_much_was_kept(make):
    algorithm = make(sampling=FEW)
    before = algorithm.trainer.state()["parameters"]
    policy = algorithm.trainer.unwrapped.model
    metrics = run(algorithm, 1)[0]
    assert all(described(name) for name in metrics)
    assert 0.8 <= metrics["policy/importance_weight"] < 0.99 and metrics["policy/importance_cut"] == 0
    assert metrics["policy/sampler_gap"] == pytest.approx(-metrics["policy/importance_weight"] + 1, abs=0.05)
    after = algorithm.trainer.state()["parameters"]
    assert any((after[name] != before[name]).any() for name in before) and policy is algorithm.sampler.model


def test_the_mean_weight_is_that_of_the_policy_that_sampled():
    algorithm = small_grpo(sampling=FEW, kl=True)  # with a reference no row is left out
    policy = small_grpo(kl=True).trainer.unwrapped.model  # the same weights, before the step
    metrics = run(algorithm, 1)[0]
    s, rollouts = algorithm.rollouts.sequences, algorithm.rollouts
    full = logprobs_of_model(policy, s.input_ids, None, s.action_mask).logprobs.detach()
    expected = importance_weights(full, rollouts.logprobs, s.action_mask).weights[s.action_mask].mean()
    assert metrics["policy/importance_weight"] == pytest.approx(float(expected), abs=1e-5)
    assert_close(rollouts.notes["policy_logprobs"], full, atol=1e-5, rtol=0)


def test_later_updates_are_clipped_against_the_policy_that_sampled_and_not_against_the_truncated_distribution():
    still = OptimizerConfig(learning_rate=1e-12)
    metrics = run(small_grpo(sampling=FEW, updates_per_rollout=2, clip_low=1e-3, clip_high=1e-3, optimizer=still), 2)
    assert metrics[1]["policy/clip_fraction"] == 0
    assert metrics[0]["policy/sampler_gap"] > 0.01, "what was sampled lies within the bounds: the test says nothing"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [small_grpo, small_ppo])
def test_how_a_weighed_batch_is_cut_never_changes_what_is_learned(make, mode):
    changes = {"sampling": FEW, "double": True, "importance": ImportanceConfig(importance=mode)}
    metrics, gradients = [], []
    for algorithm in (make(**changes), make(**changes, micro=24)):
        policy, seen = algorithm.trainer.unwrapped, {}
        algorithm.trainer.optimizer.step = lambda p=policy, s=seen: s.update(
            {name: each.grad.clone() for name, each in p.named_parameters()}
        )
        metrics += run(algorithm, 1)
        gradients.append(seen)
    assert metrics[0]["policy/importance_weight"] == pytest.approx(metrics[1]["policy/importance_weight"])
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients[0].values())
    # Where rows share their prompts, the model's float32 normalisation rounds differently.
    assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("make", "updates"), [(small_grpo, {"updates_per_rollout": 3}), (small_ppo, {})])
def test_a_weighed_run_resumes_exactly_between_the_updates_of_a_rollout(make, updates):
    changes = {"sampling": FEW, **updates}
    expected = timeless(run(make(**changes), 6))
    for stop in (1, 2, 4):
        broken, resumed = make(**changes), make(**changes)
        run(broken, stop)
        resumed.load_state(broken.state())
        assert timeless(run(resumed, 6 - stop)) == expected[stop:]


def test_in_ppo_the_weights_are_of_the_advantages_and_the_critic_learns_unweighed():
    algorithm = small_ppo(sampling=FEW, kl=False, prompts_per_step=16)
    plain: PPO = small_ppo(sampling=FEW, kl=False, prompts_per_step=16)
    plain.importance = None
    assert "policy/importance_weight" not in run(plain, 1)[0] and run(algorithm, 1)
    weighed, unweighed = algorithm.rollouts.notes, plain.rollouts.notes
    mask = unweighed["action_mask"]
    weights = importance_weights(unweighed["old_logprobs"], plain.rollouts.logprobs, mask).weights
    assert_close(weighed["advantages"], unweighed["advantages"] * weights)
    assert_close(unweighed["advantages"], standardize(unweighed["returns"] - unweighed["values"], mask))
    assert_close(weighed["returns"], unweighed["returns"])


def test_a_token_that_is_left_out_has_no_gradient_but_counts_in_the_denominator():
    kept, left_out = small_grpo(), small_grpo()
    left_out.importance = lambda *args: importance_weights(*args, mode="token-mask", low=0.0, high=1e-9)
    first, second = run(kept, 1)[0], run(left_out, 1)[0]
    assert second["optim/grad_norm"] == 0 and second["policy/importance_cut"] == 1
    assert second["tokens/trained"] == first["tokens/trained"]


def test_a_step_that_learns_from_no_token_has_no_mean_weight():
    metrics = run(small_grpo(sampling=FEW, reward=lambda prompts, completions, letter: [1.0] * len(completions)), 1)[0]
    assert metrics["tokens/trained"] == 0 and "policy/importance_weight" not in metrics


def test_a_weight_of_a_half_everywhere_halves_the_gradient():
    plain, half = small_grpo(kl=True, double=True), small_grpo(kl=True, double=True)
    half.importance = lambda logprobs, sampled, mask: importance_weights(logprobs, logprobs + 2**0.5, mask)._replace(
        weights=mask / 2
    )
    assert run(half, 1)[0]["optim/grad_norm"] == pytest.approx(run(plain, 1)[0]["optim/grad_norm"] / 2)
