"""The critic: a head on the policy's trunk or a model of its own, what it values, trains and leaves behind."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from align.critic import ActorCritic, ValueHead
from align.logprobs import Policy, token_logprobs
from align.models import load_value_head, save_value_head
from align.reward_head import score_ids
from tests.models import ARCHITECTURES, tiny_model
from tests.small_runs import small_policy, small_ppo


def run(algorithm, steps: int) -> list[dict[str, float]]:
    metrics = algorithm.steps()
    return [next(metrics) for _ in range(steps)]


def parameters(algorithm) -> dict[str, torch.Tensor]:
    return algorithm.trainer.state()["parameters"]


# The value head


def test_a_new_critic_values_everything_at_0_and_says_what_the_policy_says():
    policy, _ = small_policy(kind=ActorCritic)
    ids = torch.randint(3, 50, (3, 9))
    mask = torch.arange(9) >= torch.tensor([[2], [4], [8]])
    said = policy(ids, mask)
    assert_close(said.logprobs, token_logprobs(policy.model, ids, None, mask).logprobs, rtol=0, atol=0)
    assert said.entropy is None and torch.equal(said.values, torch.zeros(3, 9))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_value_is_of_the_state_before_its_token_and_laid_out_there(kind):
    policy = ActorCritic(tiny_model(kind).eval())
    torch.nn.init.normal_(policy.value_head.weight)
    ids = torch.randint(3, 50, (1, 8))
    mask = torch.tensor([[False, False, False, True, True, True, False, False]])
    values = policy(ids, mask).values
    assert (values[~mask] == 0).all() and (values[mask] != 0).all()
    changed = ids.clone()
    changed[0, 4:] = ids[0, 4:] % 40 + 4  # the state before token 4 knows tokens 0 to 3
    after = policy(changed, mask).values
    assert_close(after[0, :5], values[0, :5], rtol=1e-4, atol=1e-5)
    assert (after[0, 5] - values[0, 5]).abs() > 1e-4


def test_the_value_loss_reaches_the_head_and_the_trunk():
    policy, _ = small_policy(kind=ActorCritic)
    torch.nn.init.normal_(policy.value_head.weight)
    policy(torch.randint(3, 50, (2, 6)), torch.ones(2, 6, dtype=torch.bool)).values.sum().backward()
    assert policy.value_head.weight.grad.norm() > 0
    assert policy.model.model.embed_tokens.weight.grad.norm() > 0


def test_the_head_computes_in_float32_under_autocast():
    head = ValueHead(4)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(torch.ones(2, 4, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_value_head_is_saved_beside_its_model_and_a_strange_one_is_refused(tmp_path):
    policy, other = small_policy(kind=ActorCritic)[0], small_policy(kind=ActorCritic)[0]
    assert not load_value_head(other, tmp_path)
    torch.nn.init.normal_(policy.value_head.weight)
    save_value_head(policy, tmp_path)
    assert load_value_head(other, tmp_path)
    assert_close(other.value_head.state_dict(), policy.value_head.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="of another model"):
        load_value_head(ActorCritic(tiny_model(hidden_size=64)), tmp_path)


@pytest.mark.parametrize("lora", [False, True])
def test_policy_reference_and_value_head_share_one_trunk_with_adapters(lora):
    algorithm = small_ppo(lora=lora)
    run(algorithm, 1)
    names = [name for name, p in algorithm.trainer.unwrapped.named_parameters() if p.requires_grad]
    assert sum("value_head" in name for name in names) == 2
    assert all(("lora" in name) == lora for name in names if "value_head" not in name)


# A value model


def test_the_value_of_a_state_is_what_the_value_model_says_of_the_text_so_far():
    algorithm = small_ppo(value_model=True)
    policy = algorithm.trainer.unwrapped
    ids = torch.randint(3, 40, (3, 9))
    mask = torch.arange(9) >= torch.tensor([[0], [4], [8]])
    said = policy(ids, mask)
    assert_close(said.logprobs, token_logprobs(policy.model, ids, None, mask).logprobs, rtol=0, atol=0)
    for row, t in (mask & (torch.arange(9) > 0)).nonzero().tolist():
        (score,) = score_ids(policy.value_model, [ids[row, :t].tolist()])
        assert_close(said.values[row, t], torch.tensor(score), rtol=1e-4, atol=1e-5)
    assert (said.values[~mask] == 0).all() and said.values[0, 0] == 0, "nothing stands before the first token"


@pytest.mark.parametrize("lora", [False, True])
def test_a_value_model_is_trained_whole_and_apart_from_the_policy(lora):
    algorithm = small_ppo(value_model=True, lora=lora)
    policy = algorithm.trainer.unwrapped
    before = parameters(algorithm)
    run(algorithm, 2)
    moved = {name for name, value in parameters(algorithm).items() if not torch.equal(value, before[name])}
    own = {name for name, _ in policy.named_parameters() if name.startswith("value_model.")}
    assert own <= moved and all(("lora" in name) == lora for name in moved - own)
    policy.zero_grad()
    policy(torch.randint(3, 40, (2, 6)), torch.ones(2, 6, dtype=torch.bool)).values.sum().backward()
    got = {name for name, p in policy.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert got and got <= own


def test_the_reference_keeps_no_copy_of_the_critic():
    reference = small_ppo(value_model=True).reference
    assert type(reference.policy) is Policy and not any("value" in name for name, _ in reference.policy.named_modules())
