"""A reference kept in a file: it says what the model says, and never what another model or other data would say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.testing import assert_close

from align.data import Examples
from align.kto import asked_of_reference
from align.logprobs import Policy
from align.models import add_lora, reference_of
from align.pairs import read_pairs, tokenize_pairs
from align.reference_cache import CachedReference, CacheError, cached_reference, fingerprint
from tests.models import tiny_model
from tests.small_runs import small_dpo, small_feedback, small_kto, small_pairs, small_policy
from tests.tiny import CHAT, tiny_tokenizer

PAIRS = small_pairs()
ALL = [PAIRS.chosen, PAIRS.rejected]
MAKERS = [small_dpo, small_kto]


def cache(path: Path, policy: Any = None, examples: Any = ALL, **more: Any) -> CachedReference:
    return cached_reference(path, policy or small_policy()[0], examples, Accelerator(cpu=True), **more)


def run(algorithm: Any, steps: int = 6) -> Any:
    metrics = [metrics for _, metrics in zip(range(steps), algorithm.steps(), strict=False)]
    timeless = [{name: value for name, value in m.items() if not name.startswith("time/")} for m in metrics]
    return timeless, algorithm.trainer.state()["parameters"]


@pytest.mark.parametrize("budget", [1, 30, 10_000])
def test_it_says_of_each_token_what_the_model_says_however_rows_are_batched_padded_and_ordered(tmp_path, budget):
    policy, _ = small_policy()
    reference, cached = reference_of(policy), cache(tmp_path / "new" / "folder", policy, tokens_per_batch=budget)
    for rows in ([0], [10, 3, 3, 7], range(11)):
        batch = PAIRS.select(rows)
        expected = reference(batch.input_ids, batch.action_mask)
        assert_close(cached(batch.input_ids, batch.action_mask), expected, rtol=0, atol=2e-6)
    assert (cached(batch.input_ids, batch.action_mask)[~batch.action_mask] == 0).all()
    wider = torch.nn.functional.pad(batch.input_ids, (0, 5)), torch.nn.functional.pad(batch.action_mask, (0, 5))
    assert torch.equal(cached(*wider)[:, :-5], cached(batch.input_ids, batch.action_mask))
    nothing = torch.zeros_like(batch.action_mask)
    assert not cached(batch.input_ids, nothing).any()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("make", MAKERS)
def test_a_run_from_a_cache_is_the_run_with_a_model_and_one_that_reads_it_repeats_it_bit_for_bit(tmp_path, make, lora):
    # In float64: in float32 the two round otherwise, since the cache batches other rows together.
    metrics, parameters = run(make(lora=lora, double=True))
    (wrote, its_parameters), (read, other) = (
        run(make(lora=lora, double=True, cache=tmp_path / "cache")) for _ in range(2)
    )
    assert_close(its_parameters, parameters, rtol=1e-9, atol=1e-11)
    for step, (cached, modelled) in enumerate(zip(wrote, metrics, strict=True)):
        if step == 0 and "preference/accuracy" in modelled:  # every pair is a tie, which rounding breaks
            modelled["preference/accuracy"] = cached["preference/accuracy"]
        assert cached == pytest.approx(modelled, rel=1e-6, abs=1e-8)
    assert wrote == read and all(torch.equal(its_parameters[name], other[name]) for name in other)


@pytest.mark.parametrize("make", MAKERS)
def test_a_resumed_run_from_a_cache_is_bitwise_the_uninterrupted_one(tmp_path, make):
    expected, parameters = run(make(cache=tmp_path / "cache"))
    first = make(cache=tmp_path / "cache")
    run(first, 2)
    second = make(cache=tmp_path / "cache")
    second.load_state(first.state())
    rest, others = run(second, 4)
    assert rest == expected[2:] and all(torch.equal(parameters[name], others[name]) for name in parameters)


@pytest.mark.parametrize("make", MAKERS)
def test_an_evaluation_from_a_cache_is_that_with_a_model(tmp_path, make):
    algorithms = [make(double=True), make(double=True, cache=tmp_path / "cache")]
    for algorithm in algorithms:
        run(algorithm, 3)
    one, other = (algorithm.evaluate(algorithm.data) for algorithm in algorithms)
    assert one == pytest.approx(other, rel=1e-6)


def test_what_is_read_is_what_was_written_and_no_model_is_asked_or_kept(tmp_path, monkeypatch):
    policy, _ = small_policy()
    wrote = cache(tmp_path / "cache", policy)
    monkeypatch.setattr(Policy, "forward", lambda *_: pytest.fail("the model was asked"))
    read = cache(tmp_path / "cache", policy)
    assert read.places == wrote.places and torch.equal(read.logprobs, wrote.logprobs)
    assert not read.logprobs.requires_grad and set(vars(read)) == {"path", "logprobs", "places"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache"]


def test_the_order_of_the_data_may_change_and_fewer_answers_are_fine(tmp_path):
    twice = Examples(PAIRS.chosen.ids + PAIRS.chosen.ids[:1], PAIRS.chosen.action_masks + PAIRS.chosen.action_masks[:1])
    wrote = cache(tmp_path / "cache", examples=[PAIRS.rejected, twice])
    assert len(wrote.places) == 22
    read = cache(tmp_path / "cache", examples=[Examples(PAIRS.chosen.ids[::-1], PAIRS.chosen.action_masks[::-1])])
    assert torch.equal(read.logprobs, wrote.logprobs)


def test_other_data_are_refused_when_the_cache_is_opened_and_when_it_is_asked(tmp_path):
    cached = cache(tmp_path / "cache")
    longer = small_pairs(13)
    with pytest.raises(CacheError, match=r"cache: is of other data: it lacks 4 of 26 answers.*remove the file or name"):
        cache(tmp_path / "cache", examples=[longer.chosen, longer.rejected])
    batch = longer.select([12])
    with pytest.raises(CacheError, match="lacks 2 of 2 answers"):
        cached(batch.input_ids, batch.action_mask)
    shifted = Examples(PAIRS.chosen.ids, [[False, *mask[:-1]] for mask in PAIRS.chosen.action_masks])
    with pytest.raises(CacheError, match="is of other data"):
        cache(tmp_path / "cache", examples=[shifted])


def test_another_chat_template_or_limit_is_refused_since_it_makes_other_tokens(tmp_path):
    rows = read_pairs([{"prompt": [{"role": "user", "content": "hi"}],
                        "chosen": [{"role": "assistant", "content": "yes, gladly"}],
                        "rejected": [{"role": "assistant", "content": "no, thanks"}]}])  # fmt: skip

    def sides(template: str = CHAT, **limits: Any) -> list[Examples]:
        pairs = tokenize_pairs(rows, tiny_tokenizer(template), **limits)
        return [pairs.chosen, pairs.rejected]

    policy = Policy(tiny_model(vocab_size=len(tiny_tokenizer())))
    cache(tmp_path / "cache", policy, sides())
    assert len(cache(tmp_path / "cache", policy, sides()).places) == 2
    for others in (sides(CHAT.replace("\n", " ")), sides(max_tokens=29, too_long="truncate")):
        with pytest.raises(CacheError, match=r"lacks 2 of 2 answers.*the chat template, a limit of tokens"):
            cache(tmp_path / "cache", policy, others)


def moved(policy: Any, name: str) -> Any:
    parameter = next(p for n, p in policy.named_parameters() if name in n)
    with torch.no_grad():
        parameter.view(-1)[-1] += 1e-3
    return policy


def with_setting(policy: Any, **changes: Any) -> Any:
    policy.model.config.update(changes)
    return policy


STALE = {
    "a weight that moved": (lambda: moved(small_policy()[0], "q_proj"), "other weights"),
    "adapters that learned": (lambda: moved(small_policy(lora=True)[0], "lora_B"), "other weights"),
    "another model of these weights": (lambda: with_setting(small_policy()[0], rms_norm_eps=1e-3), "other weights"),
    "another precision of the weights": (lambda: small_policy(double=True)[0], "other weights"),
    "another temperature": (
        lambda: Policy(small_policy()[0].model, temperature=0.5),
        r"another temperature than this run starts with \(1.0, and here it is 0.5\)",
    ),
}


@pytest.mark.parametrize("make, what", STALE.values(), ids=STALE)
def test_a_cache_of_another_reference_is_refused_with_what_differs_and_the_way_out(tmp_path, make, what):
    cache(tmp_path / "cache")
    with pytest.raises(CacheError, match=rf"cache: was made with {what}.*: take them back, or remove the file or name"):
        cache(tmp_path / "cache", make())


def test_a_cache_of_another_arithmetic_is_refused(tmp_path):
    cache(tmp_path / "cache")
    accelerator: Any = SimpleNamespace(
        mixed_precision="bf16", is_main_process=True, device="cpu", reduce=lambda tensor, how: tensor
    )
    with pytest.raises(CacheError, match=r"another arithmetic than this run starts with \(no, and here it is bf16\)"):
        cached_reference(tmp_path / "cache", small_policy()[0], ALL, accelerator)


def test_fresh_adapters_of_any_rank_and_seed_have_the_reference_of_the_model_without():
    plain = fingerprint(small_policy()[0])
    models = [small_policy()[0].model for _ in range(3)]
    torch.manual_seed(7)
    fresh = [add_lora(models[0], rank=2), add_lora(models[1], rank=8)]
    assert {fingerprint(Policy(model)) for model in fresh} == {plain}
    learned = []
    for alpha in (16, 32):
        torch.manual_seed(7)
        learned.append(fingerprint(moved(Policy(add_lora(small_policy()[0].model, rank=2, alpha=alpha)), "lora_B")))
    assert len({plain, *learned}) == 3, "the scale of adapters that change something is part of the reference"


def test_a_damaged_file_is_named_and_a_file_of_another_kind_is_left_as_it_is(tmp_path):
    cache(tmp_path / "cache")
    whole = (tmp_path / "cache").read_bytes()
    for at in (len(whole) - 1, len(whole) - 400):
        (tmp_path / "cache").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CacheError, match=r"cache: is damaged, its content.*remove it or name another file"):
            cache(tmp_path / "cache")
    for content in (whole[: len(whole) // 2], whole[:5], b"", b"other words"):
        (tmp_path / "cache").write_bytes(content)
        with pytest.raises(CacheError, match=r"cache: is damaged, or no reference cache"):
            cache(tmp_path / "cache")
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(CacheError, match="is no reference cache of this version: name another file"):
        cache(tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == before
    with pytest.raises(CacheError, match="is damaged, or no reference cache"):
        cache(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"reference: cannot be written .*name another file"):
        cache(tmp_path / "file" / "reference")


def test_a_reference_that_is_not_finite_is_refused(tmp_path):
    class Certain(Policy):
        def forward(self, input_ids, action_mask):
            said = super().forward(input_ids, action_mask)
            return said._replace(logprobs=torch.where(input_ids == 2, -torch.inf, said.logprobs))

    with pytest.raises(CacheError, match="not finite"):
        cache(tmp_path / "cache", Certain(small_policy()[0].model))
    assert not (tmp_path / "cache").exists()


def test_kto_asks_about_its_answers_and_about_each_steps_answers_under_other_prompts():
    algorithm, feedback = small_kto(), small_feedback(4)
    asked = list(asked_of_reference(algorithm.data, algorithm.config, feedback))
    assert [len(part) for part in asked] == [18, *[7] * 6, 6, 6]
    assert asked[0] is algorithm.data.examples and asked[-2] is feedback.examples
