"""Rewards and data written for TRL run unchanged: its signatures, its forms of data, and the columns beside them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from align.data import read_examples, read_prompts, tokenize_examples, tokenize_prompts
from align.pairs import read_feedback, read_pairs, tokenize_feedback, tokenize_pairs
from align.rewards import Reward, RewardError, as_completions, check_rewards, score
from align.rows import DataError
from tests.tiny import CHAT, tiny_tokenizer

USER = {"role": "user", "content": "What is 2+2?"}
RIGHT = {"role": "assistant", "content": "4"}
WRONG = {"role": "assistant", "content": "5"}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
CALLED = [
    USER,
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "name": "add", "content": "4"},
    RIGHT,
]
WITH_TOOLS = (
    "{% if tools %}tools: {% for tool in tools %}{{ tool['function'] | tojson }}{% endfor %}{% endif %}"
    "{% if mood is defined %}mood: {{ mood }}\n{% endif %}" + CHAT
)
"""A template that shows the tools it is given, and one argument more."""

# ---- rewards: the signatures of trl.rewards, and those of its documentation


def accuracy(
    completions: list[list[dict[str, str]]],
    solution: list[str],
    log_extra: Callable[[str, list], None] | None = None,
    **kwargs,
) -> list[float | None]:
    contents = [completion[0]["content"] for completion in completions]
    right = [None if gold == "" else float(text == gold) for text, gold in zip(contents, solution, strict=True)]
    if log_extra is not None:
        log_extra("solution", list(solution))
    return right


def reasoning_accuracy(
    completions: list[list[dict[str, str]]],
    solution: list[str],
    reasoning_delimiters: list[str] | None = None,
    log_extra: Callable[[str, list], None] | None = None,
    **kwargs,
) -> list[float | None]:
    assert reasoning_delimiters is None, "no column of the data has this name"
    return accuracy(completions, solution)


def think_format(completions: list[list[dict[str, str]]], **kwargs) -> list[float]:
    return [float(completion[0]["content"].startswith("<think>")) for completion in completions]


class Punishment:
    __name__ = "soft_overlong_punishment_reward"

    def __init__(self, longest: int):
        self.longest = longest

    def __call__(self, completion_ids: list[list[int]], **kwargs) -> list[float]:
        return [-1.0 if len(ids) > self.longest else 0.0 for ids in completion_ids]


async def asynchronous(prompts, completions, completion_ids, **kwargs):
    await asyncio.sleep(0)
    return [float(len(ids)) for ids in completion_ids]


def with_state(completions, trainer_state=None, log_metric=None, **kwargs):
    assert trainer_state is None and log_metric is None
    return [1.0] * len(completions)


def every_argument(**kwargs):
    assert sorted(kwargs) == ["completion_ids", "completions", "prompts", "solution", "task"]
    return [float(task == "math") if task else None for task in kwargs["task"]]


PROMPTS: list[Any] = [[USER], [USER], [USER]]
COMPLETIONS = as_completions(["4", "<think></think>5", "4"], PROMPTS)
COLUMNS: dict[str, list[Any]] = {
    "solution": ["4", "4", ""],
    "task": ["math", "code", None],
    "completion_ids": [[1], [1, 2, 3], [1]],
}


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (accuracy, [1.0, 0.0, None]),
        (reasoning_accuracy, [1.0, 0.0, None]),
        (think_format, [0.0, 1.0, 0.0]),
        (Punishment(2), [0.0, -1.0, 0.0]),
        (asynchronous, [1.0, 3.0, 1.0]),
        (with_state, [1.0, 1.0, 1.0]),
        (every_argument, [1.0, 0.0, None]),
    ],
)
def test_a_reward_of_trls_signature_runs_unchanged_on_conversations(reward: Any, expected: list[float | None]):
    (values,) = score([reward], PROMPTS, COMPLETIONS, COLUMNS).parts.values()
    assert [None if value != value else value for value in values] == expected


def test_rewards_of_trl_keep_their_names_and_are_added_up_where_they_apply():
    scores = score([accuracy, Reward(think_format, weight=0.5), Punishment(2)], PROMPTS, COMPLETIONS, COLUMNS)
    assert list(scores.parts) == ["accuracy", "think_format", "soft_overlong_punishment_reward"]
    assert scores.total == [1.0, -0.5, 0.0]


@pytest.mark.parametrize("name", ["trainer_state", "log_extra", "log_metric", "environments"])
def test_a_reward_that_cannot_do_without_the_trainer_of_trl_is_refused_by_name(name: str):
    scope: dict[str, Any] = {}
    exec(f"def needy(completions, {name}, **kwargs): return [1.0] * len(completions)", scope)
    with pytest.raises(RewardError, match=f"reward 'needy' asks for '{name}', which the data do not have"):
        check_rewards([scope["needy"]], ["solution"])


# ---- data: the forms of TRL's documentation, standard and conversational

FORMS: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "language modeling": (read_examples, {"text": "The sky is blue."}),
    "language modeling, conversational": (read_examples, {"messages": [USER, RIGHT]}),
    "calls of tools": (read_examples, {"messages": CALLED}),
    "prompt-only": (read_prompts, {"prompt": "The sky is"}),
    "prompt-only, conversational": (read_prompts, {"prompt": [USER]}),
    "prompt-completion": (read_examples, {"prompt": "The sky is", "completion": " blue."}),
    "prompt-completion, conversational": (read_examples, {"prompt": [USER], "completion": [RIGHT]}),
    "preference": (read_pairs, {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}),
    "preference, conversational": (read_pairs, {"prompt": [USER], "chosen": [RIGHT], "rejected": [WRONG]}),
    "implicit": (read_pairs, {"chosen": "The sky is blue.", "rejected": "The sky is green."}),
    "implicit, conversational": (read_pairs, {"chosen": [USER, RIGHT], "rejected": [USER, WRONG]}),
    "a preferred call": (
        read_pairs,
        {
            "prompt": [USER],
            "chosen": [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
            "rejected": [WRONG],
        },
    ),
    "unpaired": (read_feedback, {"prompt": "The sky is", "completion": " blue.", "label": True}),
    "unpaired, conversational": (read_feedback, {"prompt": [USER], "completion": [RIGHT], "label": False}),
}
EXTRA: dict[str, dict[str, Any]] = {
    "alone": {},
    "with other columns": {"id": 7, "source": "web", "score": None, "difficulty": [0.5]},
    "with what the template takes": {"tools": [ADD], "chat_template_kwargs": {"mood": "calm"}},
}


@pytest.mark.parametrize("extra", EXTRA)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_is_read_from_rows_and_from_datasets_alike(form: str, extra: str):
    import datasets

    read, row = FORMS[form]
    rows = [row | EXTRA[extra]] * 2
    from_rows, from_dataset = vars(read(rows)), vars(read(datasets.Dataset.from_list(rows)))
    assert {**from_rows, "origins": []} == {**from_dataset, "origins": []}
    assert len(from_rows["origins"]) == 2


def test_tools_and_arguments_of_the_template_are_rendered_in_every_form():
    tokenizer = tiny_tokenizer(WITH_TOOLS)
    more = {"tools": [ADD], "chat_template_kwargs": {"mood": "calm"}}
    asked = [{"prompt": [USER], **more}]
    answered = [{"prompt": [USER], "completion": [RIGHT], "label": True, **more}]
    compared = [{"prompt": [USER], "chosen": [RIGHT], "rejected": [WRONG], **more}]
    texts = [
        tokenize_prompts(read_prompts(asked), tokenizer).ids[0],
        tokenize_examples(read_examples(answered), tokenizer).ids[0],
        tokenize_feedback(read_feedback(answered), tokenizer).examples.ids[0],
        tokenize_pairs(read_pairs(compared), tokenizer).chosen.ids[0],
        tokenize_pairs(read_pairs(compared), tokenizer).rejected.ids[0],
    ]
    head = f"tools: {json.dumps(ADD['function'])}mood: calm\n"
    for ids in texts:
        assert tokenizer.decode(ids).startswith(head)
    assert read_prompts(asked).columns["tools"] == [[ADD]], "rewards see the column too"


def test_tools_may_be_written_as_json_and_lose_the_nulls_that_a_table_adds():
    add: dict[str, Any] = {**ADD, "strict": None}
    for tools in ([add], json.dumps([ADD]), json.dumps([add])):
        assert read_examples([{"messages": CALLED, "tools": tools}]).templates == [{"tools": [ADD]}]
    for none in (None, [], "[]"):
        assert read_examples([{"messages": [USER, RIGHT], "tools": none}]).templates == [{}]


def test_a_turn_that_only_calls_a_tool_has_no_words_and_is_trained():
    tokenizer = tiny_tokenizer(
        CHAT.replace("['content'] }}", "['content'] }}{{ message.tool_calls | tojson if message.tool_calls }}")
    )
    rows = read_examples([{"messages": CALLED}])
    assert rows.completions[0][1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    examples = tokenize_examples(rows, tokenizer)
    trained = [i for i, on in zip(examples.ids[0], examples.action_masks[0], strict=True) if on]
    assert tokenizer.decode(trained) == json.dumps([CALL]) + "<end>4<end>"


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"tools": "hammer"}, "tools: a string that is no JSON: write a list of descriptions of tools"),
        ({"tools": {"a": 1}}, "tools: expected a list of descriptions of tools, got an object: rename the column"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs: expected an object of arguments .*, got a list"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs: tokenize: is not the data's to say"),
    ],
)
def test_what_the_template_cannot_take_is_named_before_a_model_loads(columns: dict[str, Any], what: str):
    for read, row in (
        FORMS["prompt-only, conversational"],
        FORMS["preference"],
        FORMS["unpaired"],
        FORMS["calls of tools"],
    ):
        with pytest.raises(DataError, match=f"^rows:1: {what}"):
            read([row | columns])
