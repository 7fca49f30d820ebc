"""What `align` says: help at once, errors in one line with the way out, what a run and a model are worth."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tyro

from align.config import SamplingConfig, SFTConfig
from recipes import options
from recipes.common import RunOptions, errors_in_one_line
from recipes.foreign import hints
from recipes.inputs import check_folder
from recipes.options import (
    CLIP_BOUNDS,
    EvalOptions,
    GRPOOptions,
    HeldOutOptions,
    ModelOptions,
    PromptOptions,
    RewardOptions,
    grpo_defaults,
)
from recipes.prompted import measuring
from tests.recipes.conftest import Align, environment

HEAVY = ("torch", "transformers", "accelerate", "datasets", "peft", "numpy", "gymnasium")
SECONDS = 1.5
GRPO = ("grpo", "--model", "model", "--data", "prompts.jsonl", "--reward", "exact_answer", "--max-new-tokens", 4)
SHORT = (*GRPO, "--prompts-per-step", 2, "--group-size", 2)


def python(code: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", code]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environment(**more), cwd=cwd)


@pytest.mark.parametrize(
    "arguments",
    [[], ["grpo"], ["ppo"], ["sft"], ["eval"], ["doctor"], ["classic"], ["classic", "dqn"], ["classic", "eval"]],
    ids=" ".join,
)
def test_help_answers_at_once_and_loads_nothing_heavy(arguments: list[str]):
    code = (
        f"import sys\nfrom recipes.cli import main\ntry:\n    main({[*arguments, '--help']})\nexcept SystemExit: pass\n"
        f"print('loaded', [name for name in {HEAVY} if name in sys.modules])"
    )
    started = time.monotonic()
    told = python(code)
    assert time.monotonic() - started < 4 * SECONDS  # generous, for a machine that does other things too
    assert told.stdout.endswith("loaded []\n") and "usage: align" in told.stdout, told.stderr


def test_help_groups_options_and_shows_defaults_those_of_the_loss_among_them(align: Align):
    told = align("grpo", "--loss", "gspo", "--help")
    assert "model options" in told and "grpo.optimizer options" in told
    assert re.search(r"--learning-rate FLOAT\s.*?\(default: 1e-06\)", told, re.DOTALL)
    assert re.search(r"--clip-low FLOAT\s.*?\(default: 0.0003\)", told, re.DOTALL)


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("gpro",), "did you mean 'grpo'"),
        ((*GRPO, "--learning-rte", 1), "--learning-rate"),
        ((*GRPO, "--group-size", 1), "Raise group_size"),
        (("grpo", "--model", "model", "--data", "prompts.jsonl"), "--reward exact_answer"),
        ((*GRPO, "--reward", "exact_anser"), "did you mean 'exact_answer'"),
        ((*GRPO, "--reward", "rules.py:leters"), "did you mean 'letters'"),
        ((*GRPO, "--reward", "broken.py:f"), "broken.py: cannot be loaded (SyntaxError"),
        ((*GRPO, "--reward", "broken:f"), "broken: cannot be loaded (SyntaxError"),
        ((*GRPO, "--reward", "keyless:f=0.5"), "keyless: cannot be loaded (ValueError: no key): mend it"),
        ((*GRPO, "--reward", "rules.py:NAME=0.5"), "a reward must be a function, got 'rules'"),
        ((*GRPO, "--reward", "rules.py:letters=much"), "expected a number"),
        ((*GRPO, "--data", "pairs.jsonl"), "pairs.jsonl: reward 'exact_answer' asks for 'answer'"),
        ((*GRPO, "--data", "prompt.jsonl"), "did you mean 'prompts.jsonl'"),
        ((*GRPO, "--model", "./modle"), "did you mean 'model'"),
        ((*GRPO, "--model", "here/model"), "here/model"),
        ((*GRPO, "--max-new-tokens", 1000), "lower --max-new-tokens"),
        ((*GRPO, "--max-prompt-tokens", 2), "prompts.jsonl:1: prompt: "),
        ((*GRPO, "--model", "lora", "--lora-rank", 4), "leave out --lora-rank"),
        (("doctor", "model"), "no run is here"),
        (("report",), "expects the directory of a run"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_a_mistake_ends_in_words_with_the_way_out(align: Align, place: Path, arguments, advice):
    (place / "broken.py").write_text("def f(:\n")
    (place / "keyless.py").write_text("raise ValueError('no key')\n")
    if "lora" in arguments and not (place / "lora").exists():
        align(*SHORT, "--steps", 1, "--lora-rank", 2, "--directory", "lora-run")
        (place / "lora-run" / "final").rename(place / "lora")
    assert advice in align(*arguments, code=2)


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ((*GRPO, "--num-generations", 4), "error: unrecognized: --num-generations; here: --group-size\n"),
        (("grpo", "--output-dir", "x"), "--output-dir; here: --directory"),
        ((*GRPO, "--max_completion_length=9"), "--max-completion-length; here: --max-new-tokens"),
        (
            (*GRPO, "--lr", 1, "--beta", 0.1),
            "--lr; here: --learning-rate\nerror: unrecognized: --beta; here: --kl-coef",
        ),
        (("sft", "--per-device-train-batch-size", 8), "here: --examples-per-step"),
        (("dpo", "--per-device-train-batch-size", 8), "here: --pairs-per-step"),
        (("kto", "--max-steps", 8), "here: --steps"),
        (("ppo", "--num-ppo-epochs", 8), "here: --epochs"),
        (("sft", "--bf16"), "here: nothing: arithmetic is bfloat16 where a GPU has it"),
        (("classic", "ppo", "--env", "CartPole-v1", "--total-timesteps", 100), "here: --env-steps"),
        (("classic", "dqn", "--env", "CartPole-v1", "--steps", 100), "here: --env-steps"),
        (("classic", "reinforce", "--env", "CartPole-v1", "--steps", 100), "here: --updates"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_an_option_by_its_name_elsewhere_is_told_what_it_is_here(align: Align, arguments, advice):
    assert advice in align(*arguments, code=2)


def test_the_directory_of_a_run_and_a_folder_without_a_tokenizer_are_told_from_a_model(
    align: Align, place: Path, tmp_path: Path
):
    run, bare = tmp_path / "run", tmp_path / "bare"
    align(*SHORT, "--steps", 1, "--directory", run)
    told = align(*GRPO, "--model", run, code=2)
    assert f"error: --model {run}: is the directory of a run: its model is in {run / 'final'}\n" in told
    assert f"its model is in {run / 'final'}" in align(*GRPO, "--reward", f"model:{run}=0.5", code=2)
    shutil.rmtree(run / "final")
    assert f"align export {run} does" in align(*GRPO, "--model", run, code=2)
    shutil.copytree(place / "model", bare, ignore=shutil.ignore_patterns("*token*", "chat*"))
    assert f"{bare}: has no tokenizer: put it there with tokenizer.save_pretrained" in align(
        *GRPO, "--model", bare, code=2
    )


def test_two_rewards_of_one_name_are_called_by_where_they_come_from(align: Align, place: Path, tmp_path: Path):
    for name in ("a", "b"):
        shutil.copytree(place / "scorer", place / "scorers" / name / "final")
        (place / f"rules_{name}.py").write_text("def brief(completions, **columns): return [1.0] * len(completions)")
    rewards = ("model:scorers/a/final", "model:scorers/b/final=0.5", "rules_a.py:brief", "rules_b.py:brief")
    align("eval", "--model", "model", "--data", "few.jsonl", "--max-new-tokens", 2, "--reward", *rewards,
          "exact_answer", "--output", tmp_path / "out.jsonl")  # fmt: skip
    parts = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["parts"]
    assert parts.keys() == {"model-a", "model-b", "brief-rules_a", "brief-rules_b", "exact_answer"}


def test_an_unknown_reward_is_told_those_that_a_name_can_give(align: Align):
    told = align(*GRPO, "--reward", "nothing_like_it", code=2)
    assert "exact_answer" in told and "isolated: before one of the two" in told
    assert not any(name in told for name in ("judge", "regex_format", "soft_overlong"))


def test_where_an_error_came_from_is_offered_for_those_of_other_libraries_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("warnings.formatwarning", lambda *_: "")

    def told(mistake: Callable[[], object]) -> str:
        with pytest.raises(SystemExit), errors_in_one_line():
            mistake()
        return capsys.readouterr().err

    assert told(lambda: SFTConfig(steps=0)) == "error: steps must be at least 1, got 0\n"
    assert told(lambda: check_folder("./nowhere")) == "error: --model ./nowhere: no such folder\n"
    assert "(ALIGN_TRACEBACK=1 shows where)" in told(lambda: json.loads("{"))

    def of_a_cause_that_was_never_raised():
        raise ValueError("broken") from OSError("full")

    assert told(of_a_cause_that_was_never_raised) == "error: broken\n(ALIGN_TRACEBACK=1 shows where)\n"


def test_an_option_that_is_one_here_too_is_taken_as_such():
    assert hints(options.DPOOptions, ["--beta", "0.1", "--steps=3", "--quiet"]) == []
    assert hints(options.GRPOOptions, ["--reward", "beta", "--model", "--data"]) == []


def test_bad_data_is_named_by_file_row_and_column_before_any_model_is_looked_for(align: Align, place: Path):
    rows = ['{"prompt": "1+1=", "answer": "2"}', '{"prompt": 5, "answer": "2"}', '{"prompt": "x"}', "{"]
    (place / "bad.jsonl").write_text("\n".join(rows))
    for option in ("--data", "--eval-data"):
        told = align(*GRPO, option, "bad.jsonl", "--model", "./nowhere", code=2)
        assert "bad.jsonl:4: column 2: invalid JSON" in told and "nowhere" not in told
    (place / "bad.jsonl").write_text("\n".join(rows[:3]))
    told = align(*GRPO, "--data", "bad.jsonl", "--model", "./nowhere", code=2)
    assert "bad.jsonl:2: prompt: expected a string" in told and "bad.jsonl:3: answer: missing" in told
    assert "nowhere" not in told
    told = align("sft", "--data", "bad.jsonl", "--model", "./nowhere", code=2)
    assert "bad.jsonl" in told and "nowhere" not in told


def test_what_the_data_say_in_an_error_cannot_touch_the_terminal(align: Align, place: Path):
    (place / "hostile.jsonl").write_text(json.dumps({"prompt": "1+1=", "\x1b[2Jresult": "2"}))
    told = align(*GRPO, "--data", "hostile.jsonl", code=2)
    assert r"there are prompts, completions, completion_ids, \x1b[2Jresult" in told and "\x1b" not in told


def test_prompts_that_are_too_long_can_be_dropped_and_are_counted(align: Align, place: Path, tmp_path: Path):
    rows = [{"prompt": text, "answer": "2"} for text in ("1+1=", "2", "what is one and one?")]
    (place / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    limits = ("--data", "long.jsonl", "--max-prompt-tokens", 8, "--too-long", "drop")
    told = align(*SHORT, *limits, "--steps", 1, "--directory", tmp_path / "run")
    assert "long.jsonl: 2 prompts of 2 to 5 tokens; 1 that were too long are left out" in told


def test_a_directory_is_neither_overwritten_nor_resumed_with_other_options_or_data(
    align: Align, place: Path, tmp_path: Path
):
    (place / "own.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}')
    arguments = (*SHORT, "--data", "own.jsonl", "--steps", 1, "--directory", tmp_path / "run")
    align(*arguments)
    assert "holds a finished run: keep it (--resume), or name another directory; to train its model" in align(
        *arguments, code=2
    )
    told = align(*arguments, "--resume", "--temperature", 2, code=2)
    assert "grpo.sampling.temperature: 1.0 -> 2.0" in told
    (place / "own.jsonl").write_text('{"prompt": "1+2=", "answer": "3"}')
    assert "fingerprint.data" in align(*arguments, "--resume", code=2)


def test_what_is_resumed_is_the_newest_run_of_the_command_and_of_no_other(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("ppo-20250101-000000", "ppo-20250102-120000", "ppo-CartPole-v1-20250103-000000", "ppo-long"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert RunOptions(resume=True).resolve("ppo") == Path("runs/ppo-20250102-120000")
    assert RunOptions(resume=True).resolve("ppo-CartPole-v1") == Path("runs/ppo-CartPole-v1-20250103-000000")
    with pytest.raises(ValueError, match="no run of grpo"):
        RunOptions(resume=True).resolve("grpo")


def test_of_an_option_that_is_given_twice_the_last_decides_on_the_defaults_too():
    arguments = ["--loss", "dapo", "--loss=gspo", "--model", "m", "--data", "d", "--reward", "r"]
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    options = tyro.cli(GRPOOptions, args=arguments, default=grpo_defaults(arguments), config=config)
    assert options.objective.loss == "gspo"
    assert (options.grpo.clip_low, options.grpo.clip_high) == CLIP_BOUNDS["gspo"]


def test_what_the_model_would_do_to_sampling_is_said_and_not_followed(align: Align, place: Path, tmp_path: Path):
    shutil.copytree(place / "model", place / "habits")
    settings = place / "habits" / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "do_sample": True, "top_k": 1, "top_p": 0.5}))
    for name in ("model", "habits"):
        told = align(*SHORT, "--model", name, "--steps", 2, "--directory", tmp_path / name)
        assert ("generation config: top_k 1, top_p 0.5" in told) == (name == "habits")
    one, other = [(tmp_path / name / "completions.jsonl").read_text() for name in ("model", "habits")]
    assert one == other


def test_eval_prints_means_with_errors_and_writes_completions(align: Align, place: Path):
    rewards = ("--reward", "exact_answer", "--reward", "rules.py:letters")
    data = ("--data", "few.jsonl", "--samples", 3, "--max-new-tokens", 6)
    told = align("eval", "--model", "model", *data, *rewards, "--output", "out.jsonl")
    lines = [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()]
    assert len(lines) == 60 and lines[0]["prompt"] == lines[2]["prompt"]
    by_prompt = [sum(line["parts"]["letters"] for line in lines[i : i + 3]) / 3 for i in range(0, 60, 3)]
    mean = sum(by_prompt) / 20
    error = (sum((value - mean) ** 2 for value in by_prompt) / 19 / 20) ** 0.5
    assert re.search(rf"letters\s+│\s+{mean:.4g}\s+│\s+{error:.4g}\s", told), told
    assert "over 20 prompts, 3 completions each" in told


@pytest.mark.parametrize("held_out", [HeldOutOptions(), HeldOutOptions("games"), HeldOutOptions("sums", "held out")])
def test_a_run_ends_with_the_command_that_measures_its_model_as_it_was_trained(held_out: HeldOutOptions):
    data = PromptOptions("games", max_prompt_tokens=40, too_long="drop", chat=True, system="Be brief.")
    reward = RewardOptions((("exact_answer", "my rules.py:brief=0.2"), ("letters",)), on_reward_error="skip")
    trained = GRPOOptions(ModelOptions("m", trust_remote_code=True), data, reward, held_out=held_out)
    sampling = SamplingConfig(max_new_tokens=64, temperature=0.7, top_p=0.9, top_k=20)
    words = shlex.split(measuring(trained, sampling, Path("run/final")))
    assert words[:2] == ["align", "eval"]
    measured = tyro.cli(EvalOptions, args=words[2:], config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff))
    if held_out.eval_data:
        data = replace(data, data=held_out.eval_data, split=held_out.eval_split)
    flat = RewardOptions((("exact_answer", "my rules.py:brief=0.2", "letters"),), on_reward_error="skip")
    assert measured == EvalOptions("run/final", data, flat, trust_remote_code=True, sampling=sampling)
    plain = GRPOOptions(ModelOptions("m"), PromptOptions("games"), RewardOptions((("letters",),)))
    assert measuring(plain, SamplingConfig(), Path("final")) == "align eval --model final --data games --reward letters"


@pytest.mark.parametrize("output", ["missing/out.jsonl", "model"])
def test_eval_refuses_an_output_that_cannot_be_written_before_anything_is_measured(align: Align, output: str):
    told = align("eval", "--model", "./nowhere", "--data", "no.jsonl", "--reward", "no", "--output", output, code=2)
    assert told.startswith(f"error: --output {output}: cannot be written: name a file in a folder that is there\n")


def test_report_doctor_and_env_tell_of_a_run_and_of_the_machine(align: Align, tmp_path: Path):
    run = tmp_path / "run"
    align(*SHORT, "--steps", 25, "--directory", run, "--quiet")
    (run / "report.html").unlink()
    assert align("report", run).strip() == str(run / "report.html") and (run / "report.html").exists()
    told = align("doctor", run)
    assert "got the same reward" in told and "raise group_size" in told and "findings over 25 steps" in told
    told = align("env")
    assert "align-rl" in told and "transformers" in told and "cpus" in told and str(run) not in told


def test_another_package_named_align_is_noticed_and_named(tmp_path: Path):
    (tmp_path / "align").mkdir()
    (tmp_path / "align" / "__init__.py").write_text("")
    path = f"{tmp_path}:{environment()['PYTHONPATH']}"
    told = python("from recipes.cli import main; main(['grpo'])", tmp_path, PYTHONPATH=path)
    assert told.returncode == 2 and told.stderr.count("\n") == 1
    assert str(tmp_path) in told.stderr and "pip uninstall align" in told.stderr


def test_examples_beyond_the_models_window_are_refused_with_the_option_that_leaves_them_out(align: Align, place: Path):
    rows = [{"prompt": "1+1=", "completion": "2" * length} for length in (1, 300)]
    (place / "long_pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sft = ("sft", "--model", "model", "--data", "long_pairs.jsonl", "--steps", 1, "--examples-per-step", 1)
    told = align(*sft, "--directory", "sft-long", code=2)
    assert "the longest text has 306 tokens, but the model was made for 256: leave long ones out with" in told
    told = align(*sft, "--max-tokens", 256, "--too-long", "drop", "--directory", "sft-cut")
    assert "1 examples of 7 tokens; 1 that were too long are left out" in told
