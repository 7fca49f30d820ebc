"""Tasks of reasoning-gym: the same ones for a seed, judged by their own rules in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from align.data import read_prompts
from align.procedural import score_answers, task_rows
from align.reward_names import resolve
from align.rewards import RewardError, as_completions, score
from align.rows import DataError

pytest.importorskip("reasoning_gym", reason="needs the extra [gym]")

SUMS = "reasoning_gym:chain_sum?size=5&min_terms=2&max_terms=2"


def test_a_task_gives_as_many_rows_as_asked_and_the_same_ones_in_every_process():
    rows = task_rows(SUMS)
    assert len(rows) == 5 and len({row["prompt"] for row in rows}) > 1
    assert rows == task_rows("reasoning_gym:chain_sum?max_terms=2&min_terms=2&seed=0&size=5")
    script = f"import json; from align.procedural import task_rows; print(json.dumps(task_rows({SUMS!r})))"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    said = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(said.stdout.splitlines()[-1]) == rows


def test_a_seed_and_a_split_give_others_and_a_given_seed_holds_for_every_split():
    train, test = task_rows(SUMS), task_rows(SUMS, split="test")
    assert train != test == task_rows(f"{SUMS}&seed=1")
    assert task_rows(f"{SUMS}&seed=3") == task_rows(f"{SUMS}&seed=3", split="test")


def test_options_shape_the_task():
    (row,) = task_rows("reasoning_gym:chain_sum?size=1&min_terms=6&max_terms=6&min_digits=1&max_digits=1")
    assert row["prompt"].count("+") + row["prompt"].count("-") >= 5


def test_the_reward_is_the_tasks_own_score_of_the_answer():
    rows = task_rows(SUMS)
    prompts = read_prompts(rows)
    right = [f"<think>{row['prompt']}</think>\n{row['answer']}" for row in rows]
    tagged = [f"So <answer> {row['answer']} </answer>, I hope." for row in rows]
    wrong = [f"<answer>{int(row['answer']) + 1}</answer>" for row in rows]
    reward = resolve("reasoning_gym")
    assert reward.name == "reasoning_gym"
    for completions, expected in ((right, 1.0), (tagged, 1.0)):
        assert score([reward], prompts.prompts, completions, prompts.columns).total == [expected] * 5
    assert all(value < 1 for value in score([reward], prompts.prompts, wrong, prompts.columns).total)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts.prompts]
    assert score([reward], chats, as_completions(right, chats), prompts.columns).total == [1.0] * 5


def test_a_task_with_many_right_answers_takes_any_of_them():
    rows = task_rows("reasoning_gym:countdown?size=20&min_numbers=2&max_numbers=2")
    row = next(row for row in rows if " + " in row["answer"])
    turned = " + ".join(reversed(row["answer"].split(" + ")))
    assert turned != row["answer"]
    columns = {name: [row[name]] for name in ("gym_task", "gym_index")}
    prompt = row["prompt"]
    assert score_answers([prompt], [row["answer"]], **columns) == score_answers([prompt], [turned], **columns) == [1.0]
    assert score_answers([prompt], ["1"], **columns)[0] < 0.5  # pyright: ignore[reportOptionalOperand]


def test_another_question_than_was_asked_is_a_fault_and_no_score():
    (row,) = task_rows("reasoning_gym:chain_sum?size=1")
    columns = {name: [row[name]] for name in ("gym_task", "gym_index")}
    with pytest.raises(RewardError, match="generates another question 0 than the data have: export PYTHONHASHSEED=0"):
        score([score_answers], ["2 + 2 ="], ["4"], columns)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("chain_sums", r"reasoning-gym has no task 'chain_sums'; did you mean 'chain_sum'\?"),
        ("chain_sum?min_term=2", r"chain_sum has no option 'min_term': it has .*; did you mean 'min_terms'\?"),
        ("chain_sum?min_terms=5&max_terms=2", "the task refuses its options: max_terms must be >= min_terms"),
        ("chain_sum?size=-1", "the task refuses its options"),
        ("chain_sum?min_terms=two", "the task refuses its options"),
    ],
)
def test_what_reasoning_gym_does_not_have_is_refused_by_name(source: str, what: str):
    with pytest.raises(DataError, match=f"^reasoning_gym:chain_sum.*: {what}"):
        task_rows(f"reasoning_gym:{source}")
