"""Reward models as functions: the score at the last token, padding that no text ends with, saving, rewards."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from align.batch import Sequences
from align.models import add_lora
from align.pairs import read_pairs, tokenize_pairs
from align.reward_head import (
    RewardModel,
    at_last,
    check_reward_model,
    load_reward_model,
    model_reward,
    reward_model_of,
    save_reward_model,
    score_ids,
    separate_padding,
)
from align.reward_names import resolve
from align.rewards import RewardError
from tests.models import tiny_model
from tests.tiny import CHAT, END, EOS, tiny_tokenizer

IDS = [[7, 9, 11, 13, 15, 17, 2], [8, 9], [12], [9, 20, 21, 2, 2]]


def chat(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]


def small_reward_model(kind: str = "llama", **tokens):
    tokenizer = tiny_tokenizer(**tokens)
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = reward_model_of(tiny_model(kind, vocab_size=len(tokenizer), **ids), seed=0)
    separate_padding(model, tokenizer)
    return model, tokenizer


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gemma2", "gpt2", "gpt_neox", "opt"])
def test_the_score_is_read_at_the_last_real_token_whatever_the_padding_holds(kind):
    model = reward_model_of(tiny_model(kind), seed=0)
    with torch.no_grad():  # rows without padding, of which the class reads the last token
        alone = [float(model(input_ids=torch.tensor([row])).logits) for row in IDS]
    assert_close(score_ids(RewardModel(model), IDS), alone, rtol=1e-4, atol=1e-5)
    sequences = at_last(Sequences.from_lists(IDS, [[True] * len(row) for row in IDS]))
    for padding in (0, 2, 33):
        filled = torch.where(sequences.attention_mask, sequences.input_ids, padding)
        scores = RewardModel(model)(filled, sequences.action_mask).logprobs
        assert_close(scores.sum(dim=1).tolist(), alone, rtol=1e-4, atol=1e-5)
        assert (scores[~sequences.action_mask] == 0).all()
    assert max(alone) - min(alone) > 0.1


def test_how_texts_are_batched_never_changes_a_score():
    model = RewardModel(reward_model_of(tiny_model(), seed=0))
    assert_close(score_ids(model, IDS), score_ids(model, IDS, tokens_per_batch=8), rtol=1e-5, atol=1e-6)
    assert score_ids(model, []) == []


def test_a_new_head_depends_on_its_seed_alone():
    heads = [reward_model_of(tiny_model(), seed=seed).get_parameter("score.weight") for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("pad", ["<pad>", EOS, END, None], ids=["own pad", "pad is EOS", "pad ends turns", "no pad"])
def test_transformers_reads_the_same_scores_from_what_was_saved(tmp_path, pad, lora, padding_side):
    model, tokenizer = small_reward_model(pad=pad)
    if lora:
        model = add_lora(model, rank=4)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    rows = [
        {"prompt": chat("ab"), "chosen": chat("", "cdefgh")[1:], "rejected": chat("", "x")[1:]},
        {"prompt": chat("longer words"), "chosen": chat("", "yes")[1:], "rejected": chat("", "no, never")[1:]},
    ]
    pairs = tokenize_pairs(read_pairs(rows), tokenizer)
    words = [{"prompt": "ab", "chosen": "cd", "rejected": "efgh"}]
    strings = tokenize_pairs(read_pairs(words), tokenizer)
    ids = [*pairs.chosen.ids, *pairs.rejected.ids, *strings.chosen.ids, *strings.rejected.ids]
    scores = score_ids(RewardModel(model), ids)
    save_reward_model(model, tokenizer, tmp_path / "saved", card="")

    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    its = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert its.padding_side == "right" and loaded.config.num_labels == 1
    batch = its.pad({"input_ids": ids}, padding_side=padding_side, return_tensors="pt")
    with torch.no_grad():
        theirs = loaded(**batch).logits[:, 0]
    assert_close(theirs.tolist(), scores, rtol=1e-5, atol=1e-5)
    again = load_reward_model(tmp_path / "saved")
    assert_close(score_ids(RewardModel(again), ids), scores, rtol=1e-5, atol=1e-5)


def test_a_padding_token_that_no_text_ends_with_is_kept():
    model, tokenizer = small_reward_model()
    assert tokenizer.pad_token == "<pad>" and model.config.vocab_size == len(tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_a_text_that_ends_with_padding_is_refused():
    model, tokenizer = small_reward_model()
    with pytest.raises(ValueError, match="call separate_padding"):
        score_ids(RewardModel(model), [[7, 8, tokenizer.pad_token_id]])


TEXTS = {
    "strings": ("what?", "this"),
    "a conversation": (chat("hello"), chat("", "world")[1:]),
    "several turns": (chat("a", "b", "c"), chat("", "world")[1:]),
    "an empty answer": (chat("hello"), chat("", "")[1:]),
    "an empty string": ("what?", ""),
}


@pytest.mark.parametrize("template", [CHAT, "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
                                      "{% if add_generation_prompt %}[assistant]{% endif %}"])  # fmt: skip
def test_what_is_scored_is_the_ids_that_were_trained(template, monkeypatch):
    model, tokenizer = small_reward_model(chat_template=template)
    for name, (prompt, answer) in TEXTS.items():
        other = "other" if isinstance(prompt, str) else chat("", "other")[1:]
        seen = []
        monkeypatch.setattr(
            "align.reward_head.score_ids", lambda model, ids, s=seen, **_: s.extend(ids) or [0.0] * len(ids)
        )
        model_reward(model, tokenizer)(prompts=[prompt, prompt], completions=[answer, other])
        empty = "empty" in name
        row = {"prompt": prompt, "chosen": other, "rejected": "x" if empty and answer == "" else answer}
        if empty:  # data refuse it; the policy may say it
            assert seen[0][-1] == seen[1][-1] and len(seen[0]) == len(seen[1]) - len("other")
            continue
        pairs = tokenize_pairs(read_pairs([row]), tokenizer)
        assert [seen[0], seen[1]] == [pairs.rejected.ids[0], pairs.chosen.ids[0]]


def test_a_reward_model_is_a_reward_function_with_its_own_template():
    model, tokenizer = small_reward_model()
    reward = model_reward(model, tokenizer)
    scores = reward(prompts=["ab", "cd"], completions=["x", "longer"])
    assert len(scores) == 2 and len(set(scores)) == 2
    as_chat = model_reward(model, tokenizer, chat=True)(prompts=["ab"], completions=["x"])
    as_messages = reward(prompts=[chat("ab")], completions=[chat("", "x")[1:]])
    assert as_chat == as_messages != scores[:1]
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="need a chat template"):
        reward(prompts=[chat("ab")], completions=[chat("", "x")[1:]])


def test_a_text_longer_than_the_model_was_made_for_is_refused():
    model, _ = small_reward_model()
    with pytest.raises(ValueError, match="lower max_new_tokens"):
        score_ids(RewardModel(model), [[7] * 300])


def test_a_model_type_without_a_class_to_save_it_as_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'granite'.*take a model of another type"):
        reward_model_of(tiny_model("granite"), seed=0)


def test_a_causal_lm_gets_a_new_head_only_if_one_is_asked_for(tmp_path):
    tiny_model().save_pretrained(tmp_path / "causal")
    with pytest.raises(ValueError, match="no reward model but a causal LM"):
        load_reward_model(tmp_path / "causal")
    assert load_reward_model(tmp_path / "causal", seed=0).config.num_labels == 1
    with pytest.raises(ValueError, match="no such folder"):
        load_reward_model(tmp_path / "nothing", seed=0)


def test_adapters_of_a_causal_lm_are_merged_under_the_new_head(tmp_path):
    tiny_model().save_pretrained(tmp_path / "causal")
    model: Any = add_lora(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "causal"), rank=2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "adapters")
    scores = [
        score_ids(RewardModel(load_reward_model(tmp_path / name, seed=0)), IDS) for name in ("causal", "adapters")
    ]
    assert max(abs(one - other) for one, other in zip(*scores, strict=True)) > 1e-2
    assert all(p.requires_grad for p in load_reward_model(tmp_path / "adapters", seed=0).parameters())


@pytest.mark.parametrize("pad", ["<pad>", EOS, None], ids=["own pad", "pad is EOS", "no pad"])
@pytest.mark.parametrize("base", ["causal LM", "reward model"])
def test_adapters_of_a_reward_model_score_as_they_did_in_training(tmp_path, base, pad):
    tokenizer = tiny_tokenizer(pad=pad)
    causal_lm = tiny_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=None)
    head = reward_model_of(causal_lm, seed=3)
    (causal_lm if base == "causal LM" else head).save_pretrained(tmp_path / "base")
    separate_padding(head, tokenizer)
    head.name_or_path = str(tmp_path / "base")
    torch.manual_seed(0)
    model: Any = add_lora(head, rank=2)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("lora_B" in name or "score" in name):
            torch.nn.init.normal_(parameter, std=0.3)
    ids = [[*row, tokenizer.eos_token_id] for row in IDS]
    scores = score_ids(RewardModel(model), ids)
    model.save_pretrained(tmp_path / "adapters")
    tokenizer.save_pretrained(tmp_path / "adapters")

    check_reward_model(tmp_path / "adapters")
    before = torch.random.get_rng_state()
    loaded = load_reward_model(tmp_path / "adapters")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_close(score_ids(RewardModel(loaded), ids), scores, rtol=1e-4, atol=1e-5)
    assert max(scores) - min(scores) > 0.1 and all(p.requires_grad for p in loaded.parameters())
    reward = resolve(f"model:{tmp_path / 'adapters'}")
    (score,) = reward.function(prompts=["ab"], completions=["cd"])
    (expected,) = model_reward(model, tokenizer)(prompts=["ab"], completions=["cd"])
    assert score == pytest.approx(expected, rel=1e-4, abs=1e-5)


def without(path, *names: str) -> None:
    """Take weights out of a file of weights."""
    weights = load_file(path)
    assert [name for name in weights if name.endswith(names)]
    save_file({name: weight for name, weight in weights.items() if not name.endswith(names)}, path, {"format": "pt"})


def test_what_has_no_trained_head_is_no_reward_and_is_refused_when_it_is_named(tmp_path, monkeypatch):
    model, _ = small_reward_model()
    tiny_model().save_pretrained(tmp_path / "causal")
    model.save_pretrained(tmp_path / "headless")
    without(tmp_path / "headless" / "model.safetensors", "score.weight")
    for name, kind in {"policy": "causal", "adapters": "causal"}.items():
        base: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / kind)
        add_lora(base if name == "policy" else reward_model_of(base, seed=0), rank=2).save_pretrained(tmp_path / name)
    without(tmp_path / "adapters" / "adapter_model.safetensors", "score.weight")
    lost: Any = add_lora(model, rank=2)
    lost.save_pretrained(tmp_path / "lost")
    said = json.loads((tmp_path / "lost" / "adapter_config.json").read_text())
    said["base_model_name_or_path"] = str(tmp_path / "gone")
    (tmp_path / "lost" / "adapter_config.json").write_text(json.dumps(said))
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_: pytest.fail("a model was made"))
    for name, words in {
        "causal": "is no reward model but a causal LM: train one on it with `align reward`",
        "policy": "is no reward model but a causal LM: train one on it with `align reward`",
        "headless": "has no weights of a head `score`, .*`align reward`",
        "adapters": "holds adapters without a head, .*would score at random.*`align reward`",
        "lost": "base '.*gone' is not there",
    }.items():
        with pytest.raises(ValueError, match=rf"^{tmp_path / name}: .*{words}"):
            load_reward_model(tmp_path / name)
        with pytest.raises(RewardError, match=rf"^model:{tmp_path / name}: .*{words}"):
            resolve(f"model:{tmp_path / name}")


@pytest.mark.parametrize("pad", ["<pad>", EOS, END, "<unk>", None])
def test_the_saved_padding_token_is_none_that_a_text_can_end_with(tmp_path, pad):
    tokenizer = tiny_tokenizer(pad=pad)
    causal_lm = tiny_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    causal_lm.generation_config = transformers.GenerationConfig(eos_token_id=[tokenizer.eos_token_id, 17])
    ends = {tokenizer.eos_token_id, 17, tokenizer.convert_tokens_to_ids(END)}
    ends |= set(tokenizer("any text!", add_special_tokens=False)["input_ids"])
    model = reward_model_of(causal_lm, seed=0)
    separate_padding(model, tokenizer)
    save_reward_model(model, tokenizer, tmp_path / "saved", card="")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "saved")
    its = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert config.pad_token_id == its.pad_token_id is not None
    assert config.pad_token_id not in ends and config.pad_token_id < config.vocab_size


def test_adapters_and_folders_of_a_type_without_a_class_are_refused_by_name(tmp_path):
    tiny_model("granite").save_pretrained(tmp_path / "granite")
    with pytest.raises(ValueError, match=r"'granite'.*take a model of another type"):
        load_reward_model(tmp_path / "granite", seed=0)
    add_lora(reward_model_of(tiny_model(), seed=0), rank=2).save_pretrained(tmp_path / "adapters")
    said = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    said["base_model_name_or_path"] = str(tmp_path / "granite")
    (tmp_path / "adapters" / "adapter_config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"'granite'.*take a model of another type"):
        check_reward_model(tmp_path / "adapters")


def test_a_classifier_of_several_labels_or_of_another_kind_is_refused(tmp_path):
    config = tiny_model().config
    config.num_labels = 3
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "three")
    with pytest.raises(ValueError, match="3 labels"):
        load_reward_model(tmp_path / "three")
    sizes: Any = dict(
        vocab_size=61, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1
    )
    bert = transformers.BertConfig(**sizes)
    transformers.AutoModelForSequenceClassification.from_config(bert).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="no weights of a head `score`, which reads the last token"):
        load_reward_model(tmp_path / "bert")
