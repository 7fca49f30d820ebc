"""The log-probabilities of a policy against a plain softmax over the model's own logits."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.testing import assert_close

from align import logprobs
from align.batch import Sequences
from align.logprobs import Policy, token_logprobs
from align.models import disable_dropout
from tests.models import EVERY, STATE_SPACE, WITHOUT_CACHE, stirred_model, tiny_model


def batch(seed: int = 0) -> Sequences:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, 61, (n,), generator=generator).tolist() for n in (13, 5, 20, 9)]
    masks = [[False] * (len(row) // 2) + [True] * (len(row) - len(row) // 2) for row in rows]
    return Sequences.from_lists(rows, masks)


def softmax_by_hand(model, sequences: Sequences, temperature: float = 1.0):
    """One unpadded row at a time through the whole model."""
    logprobs = torch.zeros(sequences.input_ids.shape)
    entropy = torch.zeros(sequences.input_ids.shape)
    for row, length in enumerate(sequences.lengths.tolist()):
        ids = sequences.input_ids[row : row + 1, :length]
        logp = (model(ids).logits[0] / temperature).log_softmax(-1)
        for t in sequences.action_mask[row].nonzero()[:, 0].tolist():
            logprobs[row, t] = logp[t - 1, ids[0, t]]
            entropy[row, t] = -(logp[t - 1].exp() * logp[t - 1]).sum()
    return logprobs, entropy


@pytest.mark.parametrize("kind", EVERY)
def test_logprobs_and_entropy_are_those_of_a_plain_softmax_over_each_row_alone(kind):
    model, sequences = stirred_model(kind), batch()
    model.eval()
    expected = softmax_by_hand(model, sequences, temperature=0.7)
    got = token_logprobs(
        model, sequences.input_ids, sequences.attention_mask, sequences.action_mask, temperature=0.7, entropy=True
    )
    assert_close(got.logprobs, expected[0], atol=1e-5, rtol=1e-5)
    assert_close(got.entropy, expected[1], atol=1e-5, rtol=1e-5)
    without_mask = token_logprobs(model, sequences.input_ids, None, sequences.action_mask, temperature=0.7)
    assert_close(without_mask.logprobs, expected[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2", "opt", *STATE_SPACE, *WITHOUT_CACHE])
def test_padding_on_the_left_changes_nothing_not_even_beyond_a_sliding_window_or_in_a_state(kind):
    model, sequences = stirred_model(kind).eval(), batch()
    right = token_logprobs(model, sequences.input_ids, sequences.attention_mask, sequences.action_mask).logprobs
    shifts = (sequences.input_ids.shape[1] - sequences.lengths).tolist()

    def leftwards(x):
        return torch.stack([row.roll(shift) for row, shift in zip(x, shifts, strict=True)])

    left = token_logprobs(
        model, leftwards(sequences.input_ids), leftwards(sequences.attention_mask), leftwards(sequences.action_mask)
    ).logprobs
    assert_close(left, leftwards(right), atol=1e-5, rtol=1e-5)


def test_what_stands_in_the_padding_never_reaches_a_value_or_a_gradient():
    model, sequences = tiny_model(), batch()

    def result(fill: int):
        ids = torch.where(sequences.attention_mask, sequences.input_ids, fill)
        model.zero_grad()
        out = token_logprobs(model, ids, None, sequences.action_mask).logprobs
        out.sum().backward()
        return out.detach(), model.lm_head.weight.grad.clone()

    for one, other in zip(result(0), result(2), strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("entropy", [False, True])
def test_chunks_of_the_head_change_neither_values_nor_gradients(monkeypatch, entropy):
    model, sequences = tiny_model().double(), batch()

    def result():
        model.zero_grad()
        out = token_logprobs(model, sequences.input_ids, None, sequences.action_mask, entropy=entropy)
        loss = (out.logprobs * torch.linspace(-1, 1, 20)).sum() + (out.entropy.pow(2).sum() if entropy else 0.0)
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in model.parameters()]

    whole = result()
    monkeypatch.setattr(logprobs, "HEAD_BYTES", 61 * 4 * 5 * 3)
    cut = result()
    assert_close(whole, cut)


@pytest.mark.parametrize("chunks", [False, True])
@pytest.mark.parametrize("by", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi", "cohere", "gemma2", "granite", "lora"])
def test_gradients_are_those_of_a_plain_softmax_whatever_the_head(kind, by, chunks, monkeypatch):
    """Tied weights (gpt2), a bias (phi), a scale (cohere, granite), a soft cap (gemma2), adapters on the head."""
    from peft import LoraConfig, get_peft_model

    model, sequences = stirred_model("llama" if kind == "lora" else kind).double(), batch()
    disable_dropout(model)
    if kind == "lora":
        targets = {"target_modules": ["lm_head", "q_proj"], "init_lora_weights": False}
        model = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **targets)).double()
    weights = torch.linspace(-1, 1, sequences.input_ids.numel(), dtype=torch.float64).view(sequences.input_ids.shape)

    def gradients(logprobs, entropy):
        model.zero_grad()
        (by[0] * (weights * logprobs).sum() + by[1] * (weights * entropy.square()).sum()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    logp = (model(sequences.input_ids).logits[:, :-1] / 0.7).log_softmax(-1)
    mask, zero = sequences.action_mask[:, 1:], torch.zeros(len(logp), 1, dtype=torch.float64)
    chosen = torch.where(mask, logp.gather(-1, sequences.input_ids[:, 1:, None])[..., 0], 0.0)
    entropy = torch.where(mask, -(logp.exp() * logp).sum(-1), 0.0)
    plain = gradients(*(torch.cat([zero, each], dim=1) for each in (chosen, entropy)))
    if chunks:
        monkeypatch.setattr(logprobs, "HEAD_BYTES", 61 * 4 * 3 * 5)
    said = token_logprobs(model, sequences.input_ids, None, sequences.action_mask, temperature=0.7, entropy=True)
    got = gradients(said.logprobs, said.entropy)
    assert got.keys() == plain.keys()
    assert max(float(gradient.abs().max()) for gradient in plain.values()) > 1e-3
    # some architectures normalise in float32, whatever the weights are
    assert_close(got, plain, rtol=1e-4, atol=1e-5)


def test_entropies_that_nobody_learns_from_change_no_gradient_and_do_not_go_backward():
    model, sequences = tiny_model().double(), batch()
    gradients = []
    for entropy in (False, True):
        model.zero_grad()
        said = token_logprobs(model, sequences.input_ids, None, sequences.action_mask, entropy=entropy)
        said.logprobs.sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert_close(*gradients, rtol=0, atol=0)


def test_words_that_a_model_rules_out_have_no_entropy_and_no_gradient():
    model, sequences = tiny_model().double(), batch()
    ruled_out = next(word for word in range(61) if not (sequences.input_ids == word).any())
    model.lm_head.register_forward_hook(
        lambda module, args, out: out.index_fill(-1, torch.tensor([ruled_out]), -torch.inf)
    )
    said = token_logprobs(model, sequences.input_ids, None, sequences.action_mask, entropy=True)
    logp = model(sequences.input_ids).logits[:, :-1].log_softmax(-1)
    expected = torch.special.entr(logp.exp()).sum(-1)[sequences.action_mask[:, 1:]]
    assert_close(said.entropy[sequences.action_mask], expected)
    (said.logprobs.sum() + said.entropy.sum()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_logits_of_the_batch_are_never_held_at_once(monkeypatch):
    model, sequences = tiny_model(), batch()
    heights = []
    model.lm_head.register_forward_hook(lambda module, args, out: heights.append(out.shape[:-1].numel()))
    token_logprobs(model, sequences.input_ids, None, sequences.action_mask)
    heights.clear()
    monkeypatch.setattr(logprobs, "HEAD_BYTES", 61 * 4 * 2 * 4)
    token_logprobs(model, sequences.input_ids, None, sequences.action_mask).logprobs.sum().backward()
    assert max(heights) == 4
    assert sum(heights) == 2 * int(sequences.action_mask.sum())  # once forward, once recomputed backward; no prompt


def test_a_head_that_cannot_run_alone_is_noticed_and_gives_the_same_numbers():
    model, sequences = tiny_model().eval(), batch()
    expected, _ = softmax_by_hand(model, sequences)
    plain = model.forward
    kind = type("Odd", (type(model),), {"forward": lambda self, *a, **k: _tripled(plain, *a, **k)})
    kind.forward.__signature__ = __import__("inspect").signature(plain)
    odd = tiny_model().eval()
    plain = odd.forward
    odd.__class__ = kind
    with pytest.warns(UserWarning, match="lower tokens_per_micro_batch"):
        got = token_logprobs(odd, sequences.input_ids, None, sequences.action_mask).logprobs
    by_hand, _ = softmax_by_hand(odd, sequences)
    assert_close(got, by_hand, atol=1e-5, rtol=1e-5)
    assert (got - expected).abs().max() > 0.1


def _tripled(forward, *args, **kwargs):
    out = forward(*args, **kwargs)
    out.logits = out.logits * 3
    return out


def test_the_first_token_and_everything_that_is_no_action_are_exactly_0():
    model, sequences = tiny_model(), batch()
    everything = torch.ones_like(sequences.action_mask)
    out = token_logprobs(model, sequences.input_ids, sequences.attention_mask, everything).logprobs
    assert (out[:, 0] == 0).all()
    assert (out[~sequences.attention_mask] == 0).all()
    assert (out[:, 1:][sequences.attention_mask[:, 1:]] < 0).all()


def test_a_batch_without_any_action_still_runs_backward():
    model, sequences = tiny_model(), batch()
    out = token_logprobs(model, sequences.input_ids, None, torch.zeros_like(sequences.action_mask)).logprobs
    out.sum().backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())


def test_shapes_that_would_broadcast_are_refused():
    model, sequences = tiny_model(), batch()
    with pytest.raises(ValueError, match="action_mask must have the shape of input_ids"):
        token_logprobs(model, sequences.input_ids, None, sequences.action_mask[:1])
    with pytest.raises(ValueError, match="temperature must be above 0"):
        token_logprobs(model, sequences.input_ids, None, sequences.action_mask, temperature=0.0)


def test_dropout_is_off_everywhere_while_modules_stay_in_train_mode():
    model = tiny_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5).train()
    sequences = batch()
    disable_dropout(model)
    policy = Policy(model)
    first, second = (policy(sequences.input_ids, sequences.action_mask).logprobs for _ in range(2))
    assert_close(first, second, rtol=0, atol=0)
    assert model.training


@pytest.mark.parametrize(
    "kind, chances",
    [
        ("llama", {"attention_dropout": 0.5}),
        ("falcon", {"attention_dropout": 0.5, "hidden_dropout": 0.5}),  # read from the config
        ("mixtral", {"router_jitter_noise": 0.5}),
    ],
)
def test_what_makes_a_forward_random_beside_layers_of_dropout_is_off_too(kind, chances):
    model = tiny_model(kind, **chances).train()
    sequences = batch()
    disable_dropout(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (
            token_logprobs(model, sequences.input_ids, None, sequences.action_mask).logprobs for _ in range(2)
        )
    assert_close(first, second, rtol=0, atol=0)


def test_a_model_whose_experts_are_drawn_at_random_is_refused():
    import transformers

    sizes = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    config = transformers.PhimoeConfig(**sizes, num_key_value_heads=2, num_local_experts=4)
    with pytest.raises(ValueError, match="draws its experts at random"):
        disable_dropout(transformers.AutoModelForCausalLM.from_config(config))


def test_adapters_that_add_virtual_tokens_are_refused_by_name():
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    sequences = batch()
    with pytest.raises(ValueError, match="use LoRA"):
        token_logprobs(model, sequences.input_ids, None, sequences.action_mask)
