"""Word problems and the numbers game: what counts as right, and two steps of each recipe on a model folder."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections import Counter
from pathlib import Path

import pytest

from align.data import read_prompts
from align.rewards import score
from align.rows import DataError
from align.verifiable import numeric_answer
from recipes import numbers_game, word_problems
from recipes.numbers_game import expressed, on_target
from tests.forks import Forks
from tests.recipes.conftest import Align, metrics_of

QUICK = ("--max-new-tokens", 6, "--prompts-per-step", 2, "--group-size", 2, "--steps", 2)

# ---- word problems

SOLVED = {"question": "Two and two?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4", "level": 1}


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_word_problem_becomes_a_prompt_and_a_number_and_keeps_its_other_columns(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", SOLVED, {**SOLVED, "answer": "#### -1,234.5 "})
    rows = read_prompts(word_problems.rows(f"gsm8k:{file}", split="train"))
    assert rows.prompts == ["Two and two?"] * 2
    assert rows.columns == {"answer": ["4", "-1,234.5"], "level": [1, 1]}
    assert rows.origins == [f"{file}:1", f"{file}:2"]
    assert numeric_answer()(["It is -1234.5, so\n#### -1234.50"], answer=["-1,234.5"]) == [1.0]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"question": "Q", "answer": "4"}, "answer: does not end in `#### 42`, but in '4'"),
        ({"question": "Q", "answer": "#### four"}, "answer: does not end in `#### 42`"),
        ({"question": "Q", "answer": 4}, "answer: missing, or no string"),
        ({"questions": "Q", "answer": "#### 4"}, "question: missing, or no string; did you mean 'questions'"),
    ],
)
def test_a_row_of_another_form_is_named_by_its_line(tmp_path: Path, row: dict, what: str):
    file = write(tmp_path / "a.jsonl", SOLVED, row)
    with pytest.raises(DataError, match=f"^{re.escape(str(file))}:2: {what}"):
        word_problems.rows(f"gsm8k:{file}", split="train")


@pytest.mark.parametrize(
    ("text", "right"),
    [("so\n#### 42", 1), ("#### $1,000", 1), ("#### 42\n", 1), ("#### 42 apples", 0), ("42", 0), ("#### 1\nor 2", 0)],
)
def test_the_last_line_is_as_it_was_asked_for_or_not(text: str, right: int):
    assert word_problems.marked([text]) == [float(right)]


def test_a_completion_of_spaces_costs_no_time():
    start = time.perf_counter()
    assert word_problems.marked(["#### 1" + " " * 200_000 + "x"]) == [0.0]
    assert time.perf_counter() - start < 1.0


# ---- the numbers game


def test_games_are_the_same_for_a_seed_and_those_held_out_are_never_trained():
    games = {split: numbers_game.rows("countdown:size=300&numbers=3", split=split) for split in ("train", "test")}
    assert games["train"] == numbers_game.rows("countdown:numbers=3&size=300", split="train")
    assert games["train"] != numbers_game.rows("countdown:numbers=3&size=300&seed=1", split="train")
    known = [{(*sorted(game["numbers"]), game["target"]) for game in games[split]} for split in games]
    assert len(known[0]) == len(known[1]) == 300 and not known[0] & known[1]
    for game in games["train"]:
        assert len(game["numbers"]) == 3 and all(1 <= number <= 20 for number in game["numbers"])
        assert 1 <= game["target"] <= 100
        assert f"Reach {game['target']} with the numbers {', '.join(map(str, game['numbers']))}." in game["prompt"]


def test_every_game_can_be_won():
    from itertools import permutations, product

    for game in numbers_game.rows("countdown:size=20&numbers=3", split="train"):
        tried = (
            form.format(*mixed)
            for a, b, c in permutations(game["numbers"])
            for first, second in product("+-*/", repeat=2)
            for mixed in [(a, first, b, second, c)]
            for form in ("<answer>({} {} {}) {} {}</answer>", "<answer>{} {} ({} {} {})</answer>")
        )
        assert any(on_target([text], [game["numbers"]], [game["target"]]) == [1.0] for text in tried), game


@pytest.mark.parametrize(
    ("answer", "right", "form"),
    [
        ("(2 + 3) * 4", 1, 1),
        ("4*(3+2) = 20", 1, 1),
        ("(2 + 3) \u00d7 4", 1, 1),
        ("2*3*4", 0, 1),  # another value
        ("4 * 5", 0, 1),  # another number
        ("4 * 3 + 2 * 4", 0, 1),  # a number twice
        ("5 * 4 / 1", 0, 1),
        ("20", 0, 1),
        ("2 / (3 - 3)", 0, 0),
        ("2 ** 3 + 4", 0, 0),
        ("23 - 4 + 1.0", 0, 0),
        ("-2 + 22", 0, 0),
        ("__import__('os')", 0, 0),
        ("(2 + 3) * 4)", 0, 0),
        ("", 0, 0),
        ("(" * 100 + "2" + ")" * 100, 0, 0),
        ("9" * 100_000, 0, 0),
    ],
)
def test_an_answer_is_right_if_it_uses_every_number_once_and_reaches_the_target(answer: str, right: int, form: int):
    text = f"<think><answer>1</answer></think> So <answer>{answer}</answer>"
    start = time.perf_counter()
    assert on_target([text], [[2, 3, 4]], [20]) == [float(right)]
    assert expressed([text]) == [float(form)]
    assert time.perf_counter() - start < 0.5


def test_a_fraction_on_the_way_is_exact_and_an_answer_needs_its_tags():
    assert on_target(["<answer>8 / (3 - 8 / 3)</answer>"], [[3, 3, 8, 8]], [24]) == [1.0]
    for text in ("8 / (3 - 8 / 3)", "<answer>8 / (3 - 8 / 3)"):
        assert on_target([text], [[3, 3, 8, 8]], [24]) == [0.0]
    assert Counter([3, 3, 8, 8]) == Counter([8, 3, 8, 3])


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("sizes=3", "no option 'sizes': .*did you mean 'size'"),
        ("size=many", "size must be a whole number, got 'many'"),
        ("numbers=9", "numbers must lie between 2 and 6, got 9"),
        ("size=60&numbers=2&largest=2", "there are not so many games: lower size"),
    ],
)
def test_options_of_games_that_make_no_sense_are_refused(options: str, what: str):
    with pytest.raises(DataError, match=f"^countdown:{options}: {what}"):
        numbers_game.rows(f"countdown:{options}", split="train")


def test_the_columns_of_a_game_serve_its_rewards():
    rows = read_prompts(numbers_game.rows("countdown:size=4", split="train"))
    assert score([on_target, expressed], rows.prompts, ["<answer>1</answer>"] * 4, rows.columns).total == [1.0] * 4


# ---- two steps of each


def taught(align: Align, recipe: str, *arguments: object, code: int = 0) -> str:
    Forks.start(align, f"recipes.{recipe}:main", arguments=list(map(str, arguments)))
    assert align.wait() == code, align.said
    return align.said


def test_the_recipe_of_word_problems_trains_adapters_and_measures_on_the_test_split(
    align: Align, place: Path, tmp_path: Path
):
    folder = tmp_path / "sums"
    folder.mkdir()
    rows = [{"question": f"{a}+{a}=", "answer": f"{a} and {a}\n#### {2 * a}"} for a in range(6)]
    write(folder / "train.jsonl", *rows[:4])
    write(folder / "test.jsonl", *rows[4:])
    arguments = ("--model", "model", "--data", folder, *QUICK, "--directory", tmp_path / "run")
    told = taught(align, "gsm8k", *arguments)
    assert "learning from gsm8k:" in told and ": 4 prompts" in told and ": 2 prompts" in told
    before, *_, last = metrics_of(tmp_path / "run")
    assert {"eval/reward/numeric_answer", "eval/reward/marked"} <= before.keys() & last.keys()
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").exists()
    (measured,) = re.findall(r"Measure it: align (eval .*)", told)
    assert "numeric_answer" in align(*shlex.split(measured), "--max-new-tokens", 4).replace(" ", "_")
    assert "few.jsonl:1: question: missing" in taught(
        align, "gsm8k", *arguments[:2], "--data", "few.jsonl", *QUICK, code=2
    )


def test_the_recipe_of_the_numbers_game_generates_its_games_and_resumes(align: Align, tmp_path: Path):
    data = ("--data", "countdown:size=6", "--eval-data", "countdown:size=3")
    arguments = ("--model", "model", *data, *QUICK, "--directory", tmp_path / "run")
    told = taught(align, "countdown", *arguments)
    assert "learning from countdown:size=6: 6 prompts" in told
    before, *_, last = metrics_of(tmp_path / "run")
    assert {"eval/reward/on_target", "eval/reward/expressed"} <= before.keys() & last.keys()
    assert "python -m recipes.countdown" in json.loads((tmp_path / "run" / "environment.json").read_text())["command"]
    refused = taught(align, "countdown", "--resume", *arguments, "--seed", 3, code=2)
    assert "grpo.seed: 0 -> 3" in refused


# ---- mixtures


def test_a_mixture_is_learned_from_by_weight_and_its_faults_name_the_file(align: Align, place: Path, tmp_path: Path):
    write(place / "ones.jsonl", *[{"prompt": "1+1=", "answer": "2"}] * 10)
    data = "mix:ones.jsonl=0.25,few.jsonl=0.75"
    arguments = ("grpo", "--model", "model", "--reward", "exact_answer", *QUICK, "--directory", tmp_path / "run")
    told = align(*arguments, "--data", data)
    assert f"learning from {data}: 30 prompts" in told and f"--data {data}" in told
    write(place / "wrong.jsonl", {"prompt": "1+1=", "answer": "2"}, {"prompt": 5, "answer": "2"})
    assert "wrong.jsonl:2: prompt: expected a string" in align(*arguments, "--data", f"{data},wrong.jsonl=1", code=2)
    for part, what in (("few.jsonl", "'few.jsonl' has no weight"), ("few.jsonl=0", "must be above 0, got 0")):
        assert what in align(*arguments, "--data", f"mix:ones.jsonl=1,{part}", code=2)
