"""`align sft` and `align grpo` on a user's own model: they learn, resume exactly, and save what others load."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.recipes.conftest import Align, environment, metrics_of

QUICK = ("--max-new-tokens", 6, "--prompts-per-step", 4, "--group-size", 4, "--learning-rate", 1e-3)
GRPO = (
    "grpo",
    "--model",
    "model",
    "--data",
    "prompts.jsonl",
    "--reward",
    "exact_answer",
    "rules.py:letters=0.5",
    *QUICK,
)


PPO = ("ppo", *GRPO[1:])


def test_what_grpo_saves_is_loaded_by_pipeline_and_peft(align: Align, tmp_path: Path):
    from peft import AutoPeftModelForCausalLM
    from transformers import pipeline

    align(*GRPO, "--steps", 1, "--directory", tmp_path / "full")
    align(*GRPO, "--steps", 1, "--directory", tmp_path / "lora", "--lora-rank", 4)
    whole = pipeline("text-generation", model=str(tmp_path / "full" / "final"))
    (told,) = whole([{"role": "user", "content": "1+1="}], max_new_tokens=4)
    assert told["generated_text"][-1]["role"] == "assistant"
    adapted = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "lora" / "final")  # from any working directory
    assert adapted.generate(input_ids=torch.tensor([[5, 6]]), max_new_tokens=2).shape[0] == 1


@pytest.mark.parametrize("command", [GRPO, PPO], ids=["grpo", "ppo"])
def test_under_top_p_what_is_learned_is_weighed_and_the_bounds_are_options(align: Align, tmp_path: Path, command):
    align(*command, "--steps", 2, "--top-p", 0.9, "--directory", tmp_path / "cut")
    weights = [m["policy/importance_weight"] for m in metrics_of(tmp_path / "cut") if "policy/importance_weight" in m]
    assert weights and all(0.9 <= weight < 1 for weight in weights)
    named = ("--importance", "sequence-mask", "--importance-low", 0.99, "--importance-high", 1.01)
    align(*command, "--steps", 2, "--top-k", 5, *named, "--directory", tmp_path / "masked")
    assert metrics_of(tmp_path / "masked")[0]["policy/importance_cut"] > 0.5
    align(*command, "--steps", 1, "--directory", tmp_path / "plain")
    assert not any("importance" in name for m in metrics_of(tmp_path / "plain") for name in m)
    assert "top_p must lie in (0, 1], got 0.0" in align(*command, "--top-p", 0, code=2)


@pytest.mark.parametrize("lora", [(), ("--lora-rank", 4)], ids=["all weights", "lora"])
def test_ppo_saves_a_value_head_beside_the_model_from_which_a_further_run_goes_on(align: Align, tmp_path: Path, lora):
    align(*PPO, *lora, "--steps", 8, "--directory", tmp_path / "first")
    final = tmp_path / "first" / "final"
    head = load_file(final / "value_head.safetensors")
    assert head["weight"].abs().max() > 0
    align("ppo", "--model", final, *PPO[3:], "--steps", 1, "--learning-rate", 1e-12, "--directory", tmp_path / "second")
    for name, value in load_file(tmp_path / "second" / "final" / "value_head.safetensors").items():
        assert torch.allclose(value, head[name], atol=1e-9)
    align("eval", "--model", final, "--data", "few.jsonl", "--reward", "exact_answer", "--max-new-tokens", 4)


def test_a_value_model_starts_from_a_reward_model_and_is_saved_as_one(align: Align, place: Path, tmp_path: Path):
    from transformers import AutoModelForSequenceClassification

    first, second = tmp_path / "first", tmp_path / "second"
    align(*PPO, "--value-model", "scorer", "--steps", 4, "--directory", first)
    value_model = first / "final" / "value_model"
    trained = AutoModelForSequenceClassification.from_pretrained(value_model).state_dict()
    start = load_file(place / "scorer" / "model.safetensors")
    assert all((trained[name] != start[name]).any() for name in ("score.weight", "model.layers.0.mlp.up_proj.weight"))
    again = ("--model", first / "final", "--value-model", value_model)
    align("ppo", *again, *PPO[3:], "--steps", 1, "--learning-rate", 1e-12, "--directory", second)
    for name, value in load_file(second / "final" / "value_model" / "model.safetensors").items():
        assert torch.allclose(value, trained[name], atol=1e-9), name
    assert not (second / "final" / "value_head.safetensors").exists()
    align(
        "eval",
        "--model",
        second / "final",
        "--data",
        "few.jsonl",
        "--reward",
        f"model:{value_model}",
        "--max-new-tokens",
        4,
    )


def test_a_value_model_that_reads_other_tokens_or_is_none_is_refused(align: Align, place: Path, tmp_path: Path):
    from tokenizers import Tokenizer

    def refused(value_model: str) -> str:
        return align(*PPO, "--value-model", value_model, "--directory", tmp_path / "refused", code=2)

    other = tmp_path / "other"
    shutil.copytree(place / "scorer", other)
    tokenizer = json.loads(Tokenizer.from_file(str(other / "tokenizer.json")).to_str())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "reads other tokens than the policy writes" in refused(str(other))
    assert "train one on it with `align reward`" in refused("model")
    assert "--value-model ./nowhere: no such folder" in refused("./nowhere")


@pytest.mark.parametrize("data", ["pairs", "chats"])
def test_sft_learns_and_grpo_goes_on_from_its_model(align: Align, place: Path, tmp_path: Path, data: str):
    arguments = ("--model", "model", "--data", f"{data}.jsonl", "--eval-data", f"{data}.jsonl", "--learning-rate", 1e-2)
    told = align("sft", *arguments, "--steps", 20, "--directory", tmp_path / "sft")
    losses = [line["eval/loss"] for line in metrics_of(tmp_path / "sft") if "eval/loss" in line]
    assert losses[-1] < losses[0] / 2
    final = tmp_path / "sft" / "final"
    assert f"align grpo --model {final}" in told
    chat = ["--chat"] if data == "chats" else []
    told = align("grpo", "--model", final, *GRPO[3:], *chat, "--steps", 1, "--directory", tmp_path / "grpo")
    assert ("note: the prompts are plain text" in told) == (data == "pairs")
    assert f"align eval --model {tmp_path / 'grpo' / 'final'}" in told


@pytest.mark.parametrize(
    ("command", "data", "size"),
    [("sft", "pairs", "examples"), ("dpo", "preferred", "pairs"), ("kto", "liked", "examples"),
     ("reward", "preferred", "pairs")],
)  # fmt: skip
def test_epochs_say_the_steps_and_every_run_says_how_often_it_goes_through_its_data(
    align: Align, place: Path, tmp_path: Path, command: str, data: str, size: str
):
    rows = len((place / f"{data}.jsonl").read_text().splitlines())
    words = (command, "--model", "model", "--data", f"{data}.jsonl", f"--{size}-per-step", 10, "--epochs", 0.5)
    told = align(*words, "--directory", tmp_path / "run")
    assert f"; {rows // 20} steps of 10: 0.5 passes\n" in told
    assert metrics_of(tmp_path / "run")[-1]["step"] == rows // 20
    assert json.loads((tmp_path / "run" / "config.json").read_text())[command]["steps"] is None
    align(*words, "--directory", tmp_path / "run", "--resume")
    assert "give one of them" in align(*words, "--steps", 2, "--directory", tmp_path / "both", code=2)
    assert "epochs must be above 0" in align(*words, "--epochs", 0, "--directory", tmp_path / "none", code=2)


def test_runs_on_prompts_say_how_many_rollouts_go_through_them(align: Align, tmp_path: Path):
    told = align(*GRPO, "--steps", 2, "--updates-per-rollout", 2, "--directory", tmp_path / "grpo")
    assert "prompts.jsonl: 200 prompts of 5 tokens; 1 rollouts of 4: 0.02 passes" in told
    told = align(*GRPO, "--steps", 1, "--prompts-per-step", 200, "--group-size", 2, "--directory", tmp_path / "once")
    assert "; 1 steps of 200: 1 pass\n" in told


@pytest.mark.parametrize(
    "command",
    [("sft", "--model", "model", "--data", "pairs.jsonl"), ("sft", "--model", "model", "--data", "pairs.jsonl",
     "--lora-rank", 4), ("reward", "--model", "model", "--data", "preferences.jsonl"), PPO],
    ids=["sft", "lora", "reward", "ppo"],
)  # fmt: skip
def test_gradient_checkpointing_is_said_and_changes_no_more_than_rounding(align: Align, tmp_path: Path, command):
    align(*command, "--steps", 2, "--directory", tmp_path / "plain")
    told = align(*command, "--steps", 2, "--gradient-checkpointing", "--directory", tmp_path / "less")
    assert "gradient checkpointing is on" in told or command[0] == "reward"
    for one, other in zip(metrics_of(tmp_path / "plain"), metrics_of(tmp_path / "less"), strict=True):
        assert other["optim/loss"] == pytest.approx(one["optim/loss"], rel=1e-4, abs=1e-5)
        assert other["optim/grad_norm"] == pytest.approx(one["optim/grad_norm"], rel=1e-3)


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr-grpo", "gspo", "cispo"])
def test_every_loss_takes_two_updates_of_a_rollout(align: Align, tmp_path: Path, loss: str):
    run = tmp_path / loss
    align(*GRPO, "--loss", loss, "--steps", 2, "--updates-per-rollout", 2, "--directory", run, "--quiet")
    assert all(line["optim/grad_norm"] > 0 for line in metrics_of(run))


def test_a_loss_brings_the_clip_bounds_of_its_paper_and_given_ones_hold(align: Align, tmp_path: Path):
    align(*GRPO, "--loss=gspo", "--clip-high", 1e-3, "--steps", 1, "--directory", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())["grpo"]
    assert (config["clip_low"], config["clip_high"]) == (3e-4, 1e-3)
    assert "leave out --clip-low" in align(*GRPO, "--loss", "cispo", "--clip-low", 0.2, code=2)


def test_the_kl_to_the_start_is_measured_with_and_without_adapters(align: Align, tmp_path: Path):
    for name, more in {"full": (), "lora": ("--lora-rank", 4)}.items():
        align(*GRPO, *more, "--kl-coef", 0.1, "--steps", 2, "--directory", tmp_path / name)
        first, second = [line["kl/reference"] for line in metrics_of(tmp_path / name)]
        assert first == pytest.approx(0, abs=1e-6) and second > 1e-9


def test_sigterm_saves_says_how_to_go_on_and_exits_with_143(align: Align, tmp_path: Path):
    run = tmp_path / "run"
    pid = align.start(*GRPO, "--steps", 1000, "--directory", run)
    while not (run / "metrics.jsonl").exists():
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    assert align.wait() == 143
    assert f"Go on with: align {' '.join(map(str, GRPO))}" in align.said and "--resume" in align.said


def test_the_console_script_runs_and_two_processes_take_the_step_of_one(align: Align, place: Path, tmp_path: Path):
    arguments = [*map(str, GRPO), "--steps", "2", "--directory"]
    alone = subprocess.run(
        [sys.executable, "-m", "align", *arguments, str(tmp_path / "one")],
        cwd=place, env=environment(), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert alone.returncode == 0 and alone.stderr == "", alone.stderr
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = subprocess.run(
        [*launcher, "-m", "align", *arguments, str(tmp_path / "two")],
        cwd=place, env=environment(), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("step 1/2") == 1, "one process prints"
    told = json.loads((tmp_path / "two" / "environment.json").read_text())["command"]
    assert told.startswith("torchrun --nproc-per-node 2 -m align grpo"), "a world of two, not two of one"
    one, both = metrics_of(tmp_path / "one")[0], metrics_of(tmp_path / "two")[0]
    assert one.keys() == both.keys()
    for name in one:
        assert both[name] == pytest.approx(one[name], rel=1e-4, abs=1e-4), name


def test_grpo_learns_from_tasks_of_reasoning_gym_and_resumes_them(align: Align, tmp_path: Path):
    pytest.importorskip("reasoning_gym", reason="needs the extra [gym]")
    task = "reasoning_gym:chain_sum?size=20&max_terms=2&max_digits=1"
    data = ("--data", task, "--eval-data", task, "--reward", "reasoning_gym", "--chat")
    command = ("grpo", "--model", "model", *data, *QUICK)
    told = align(*command, "--steps", 1, "--directory", tmp_path / "run")
    assert "--reward reasoning_gym" in told
    before, *_, last = metrics_of(tmp_path / "run")
    assert 0 <= last["reward/reasoning_gym"] <= 1 and "eval/reward/reasoning_gym" in before
    other = align(*command, "--data", f"{task}&seed=5", "--directory", tmp_path / "run", "--resume", code=2)
    assert "fingerprint.data" in other
    assert "reasoning-gym has no task" in align(*command, "--data", "reasoning_gym:sums", code=2)


def test_a_profile_says_in_words_where_a_step_goes_and_changes_no_weight(align: Align, tmp_path: Path):
    align(*GRPO, "--steps", 10, "--directory", tmp_path / "plain")
    told = align(*GRPO, "--steps", 10, "--directory", tmp_path / "profiled", "--profile")
    text = (tmp_path / "profiled" / "profile.txt").read_text()
    assert text in told and "the mean of steps 4 to 6: " in text and "sampling: tokens through the model" in text
    plain, profiled = (load_file(tmp_path / run / "final" / "model.safetensors") for run in ("plain", "profiled"))
    assert all(torch.equal(profiled[name], value) for name, value in plain.items())
    assert not (tmp_path / "plain" / "profile.txt").exists()
    align(*GRPO, "--steps", 4, "--directory", tmp_path / "short", "--profile", code=2)
