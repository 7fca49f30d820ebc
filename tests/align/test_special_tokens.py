"""BOS, EOS and padding as they come: one for another, missing, several, twice; and answers of nothing but EOS."""

from __future__ import annotations

import json

import pytest
import torch
from accelerate import Accelerator
from torch.testing import assert_close

from align.config import GRPOConfig, OptimizerConfig, SamplingConfig, SFTConfig
from align.data import DataError, eos_token_ids, read_examples, read_prompts, tokenize_examples, tokenize_prompts
from align.grpo import GRPO
from align.logprobs import Policy
from align.models import load_model
from align.rewards import Reward
from align.sampler import Sampler
from align.sft import SFT
from tests.models import tiny_model
from tests.small_runs import ROWS
from tests.tiny import BOS, CHAT, EOS, PAD, tiny_tokenizer

USER = {"role": "user", "content": "2+2?"}
ANSWER = {"role": "assistant", "content": "4"}
THOUGHT = {"role": "assistant", "content": "<think>two twos</think>4"}


def model_for(tokenizer, **changes):
    """The same weights whatever is padding, whose embedding would begin with 0."""
    sizes = {"vocab_size": len(tokenizer), "initializer_range": 0.1, "eos_token_id": tokenizer.eos_token_id, **changes}
    model = tiny_model(pad_token_id=tokenizer.pad_token_id, **sizes)
    model.load_state_dict(tiny_model(pad_token_id=None, **sizes).state_dict())
    model.get_input_embeddings().padding_idx = None  # as load_model leaves it
    return model


def even(completion_ids, **columns):
    """Look at ids, since what is a special token by name is cut from texts."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def grpo(tokenizer, model, *, reward=even, prompts=ROWS) -> GRPO:
    config = GRPOConfig(
        steps=2, prompts_per_step=4, group_size=4, sampling=SamplingConfig(max_new_tokens=6),
        optimizer=OptimizerConfig(learning_rate=1e-2),
    )  # fmt: skip
    sampler = Sampler(model, tokenizer, config.sampling, eos_token_ids=eos_token_ids(model, tokenizer))
    rows = tokenize_prompts(read_prompts(prompts), tokenizer)
    return GRPO(Policy(model), sampler, rows, [Reward(reward)], config, Accelerator(cpu=True))


def sft(tokenizer, model) -> SFT:
    rows = read_examples([{"prompt": row["prompt"], "completion": row["letter"] * n} for n, row in enumerate(ROWS, 1)])
    config = SFTConfig(steps=2, examples_per_step=4, optimizer=OptimizerConfig(learning_rate=1e-2))
    return SFT(Policy(model), tokenize_examples(rows, tokenizer), config, Accelerator(cpu=True))


def steps(algorithm) -> list[dict[str, float]]:
    return list(algorithm.steps())


@pytest.mark.parametrize("make", [sft, grpo])
@pytest.mark.parametrize("pad", [EOS, None])
def test_padding_that_is_eos_or_missing_changes_nothing(make, pad):
    usual, other = tiny_tokenizer(pad=PAD), tiny_tokenizer(pad=pad)
    assert other.pad_token_id == (other.eos_token_id if pad else None)
    assert usual.get_vocab() == other.get_vocab()
    trained = []
    for tokenizer in (usual, other):
        algorithm = make(tokenizer, model_for(tokenizer))
        assert all(m["optim/grad_norm"] > 0 for m in steps(algorithm))
        trained.append(algorithm.trainer.state()["parameters"])
    assert_close(trained[0], trained[1], rtol=0, atol=0)


def test_eos_is_trained_where_it_is_padding_too():
    tokenizer = tiny_tokenizer(pad=EOS)
    examples = sft(tokenizer, model_for(tokenizer)).data
    sequences = examples.select(range(len(examples)))
    ends = sequences.input_ids.gather(1, sequences.lengths[:, None] - 1)[:, 0]
    assert (ends == tokenizer.eos_token_id).all()
    assert sequences.action_mask.gather(1, sequences.lengths[:, None] - 1).all()
    assert not (sequences.action_mask & ~sequences.attention_mask).any()


def test_eos_within_a_conversation_is_learned_where_it_is_padding_too(tmp_path):
    tokenizer = tiny_tokenizer(pad=EOS)
    model_for(tokenizer, tie_word_embeddings=False).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    ids = torch.tensor([[5, tokenizer.eos_token_id, 6, 7]])
    Policy(model)(ids, torch.ones_like(ids).bool()).logprobs.sum().backward()
    gradient = model.get_input_embeddings().weight.grad
    assert (gradient[[5, tokenizer.eos_token_id, 6]].abs().amax(1) > 0).all()
    assert json.loads((tmp_path / "config.json").read_text())["pad_token_id"] == tokenizer.eos_token_id


def test_every_eos_of_a_list_in_the_generation_config_ends_an_answer():
    tokenizer = tiny_tokenizer(chat_template=None)
    model = model_for(tokenizer)
    ends = tokenizer.convert_tokens_to_ids(["a", "b"])
    model.generation_config.eos_token_id = ends
    rollouts = grpo(tokenizer, model).sampler.sample(
        tokenize_prompts(read_prompts(ROWS), tokenizer), group_size=32, seed=0, step=0
    )
    last = {
        int(ids[mask][-1])
        for ids, mask, ended in zip(
            rollouts.sequences.input_ids, rollouts.sequences.action_mask, rollouts.terminated, strict=True
        )
        if ended
    }
    assert last == {*ends, tokenizer.eos_token_id}


@pytest.mark.parametrize("text", ["ab", BOS + "ab"])
def test_bos_comes_once_whether_the_text_has_it_or_the_tokenizer_adds_it(text):
    tokenizer = tiny_tokenizer(add_bos=True)
    (prompt,) = tokenize_prompts(read_prompts([{"prompt": text}]), tokenizer).ids
    assert tokenizer.decode(prompt) == "<bos>ab"
    for row in ({"prompt": text, "completion": "c"}, {"text": text + "c"}):
        (ids,) = tokenize_examples(read_examples([row]), tokenizer).ids
        assert tokenizer.decode(ids) == "<bos>abc<eos>"


@pytest.mark.parametrize("add_bos", [True, False])
def test_bos_of_a_chat_comes_from_the_template_alone(add_bos):
    tokenizer = tiny_tokenizer(add_bos=add_bos)
    (prompt,) = tokenize_prompts(read_prompts([{"messages": [USER]}]), tokenizer).ids
    (ids,) = tokenize_examples(read_examples([{"messages": [USER, ANSWER]}]), tokenizer).ids
    assert prompt[0] == tokenizer.bos_token_id and ids[: len(prompt)] == prompt
    assert ids.count(tokenizer.bos_token_id) == 1
    without = tiny_tokenizer(CHAT.removeprefix("{{ bos_token }}"), add_bos=add_bos)
    (prompt,) = tokenize_prompts(read_prompts([{"messages": [USER]}]), without).ids
    assert without.bos_token_id not in prompt


def test_answers_that_are_empty_are_judged_and_trained():
    tokenizer = tiny_tokenizer()
    model = model_for(tokenizer, tie_word_embeddings=False)
    head = torch.nn.Linear(32, len(tokenizer))  # with a bias for EOS, by which half of the answers are nothing else
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()
        head.bias[tokenizer.eos_token_id] = 4.5
    model.lm_head = head
    seen = []

    def note(prompts, completions, letter):
        seen.extend(completions)
        return [float(text == "") for text in completions]

    algorithm = grpo(tokenizer, model, reward=note)
    metrics = steps(algorithm)
    assert "" in seen and any(seen)
    assert all(m["tokens/trained"] > 0 and m["optim/grad_norm"] > 0 for m in metrics)


THINKS_OR_NOT = (
    "{{ bos_token }}{% for message in messages %}<start>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and loop.last and '</think>' not in message['content'] %}"
    "<think>\n\n</think>\n\n{% endif %}{{ message['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""A template by which an answer without a thought has an empty one, that the prompt may hold already."""

OPENS_A_THOUGHT = (
    "{{ bos_token }}{% for message in messages %}<start>{{ message['role'] }}\n"
    "{{ message['content'].split('</think>')[-1] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant\n<think>\n{% endif %}"
)
"""A template whose prompt opens a thought, of which what is rendered afterwards knows nothing."""


@pytest.mark.parametrize(
    "kwargs, trained", [({}, "<think>\n\n</think>\n\n4<end>"), ({"enable_thinking": False}, "4<end>")]
)
def test_an_empty_thought_is_trained_unless_the_prompt_holds_it(kwargs, trained):
    tokenizer = tiny_tokenizer(THINKS_OR_NOT)
    more = {"chat_template_kwargs": kwargs} if kwargs else {}
    (prompt,) = tokenize_prompts(read_prompts([{"messages": [USER], **more}]), tokenizer).ids
    examples = tokenize_examples(read_examples([{"messages": [USER, ANSWER], **more}]), tokenizer)
    assert examples.ids[0][: len(prompt)] == prompt
    assert tokenizer.decode(examples.ids[0][len(prompt) :]) == trained
    assert examples.action_masks[0] == [False] * len(prompt) + [True] * (len(examples.ids[0]) - len(prompt))


def test_a_conversation_whose_rendering_does_not_begin_with_its_prompt_is_refused_and_its_prompt_is_not():
    tokenizer = tiny_tokenizer(OPENS_A_THOUGHT)
    (prompt,) = tokenize_prompts(read_prompts([{"messages": [USER, THOUGHT, USER]}]), tokenizer).ids
    assert tokenizer.decode(prompt).endswith("assistant\n4<end>\n<start>user\n2+2?<end>\n<start>assistant\n<think>\n")
    with pytest.raises(DataError, match=r"^rows:1: messages: turn 2: .*own generation prompt.*completion as strings"):
        tokenize_examples(read_examples([{"messages": [USER, THOUGHT]}]), tokenizer)
    text = tokenizer.apply_chat_template([USER], add_generation_prompt=True, tokenize=False)
    row = {"prompt": text, "completion": "two twos</think>4<end>"}  # the way out that the message names
    (ids,) = tokenize_examples(read_examples([row]), tokenizer).ids
    assert (
        ids[: len(tokenizer(text, add_special_tokens=False).input_ids)]
        == tokenizer(text, add_special_tokens=False).input_ids
    )
    assert tokenizer.decode(ids).endswith("<think>\ntwo twos</think>4<end><eos>")
