"""From options to what a run is made of: rewards and rows, checked before a model loads, then prompts and the model."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from align import procedural, reward_names
from align.batch import Prompts
from align.data import PromptRows, read_prompts, tokenize_prompts
from align.logprobs import base_model
from align.mixture import Rows, mix
from align.models import add_lora, check_lengths, load_model, load_tokenizer
from align.reward_head import RewardModel, load_reward_model
from align.rewards import Reward, RewardError, check_rewards
from align.rows import DataError, nearest, no_such_folder
from recipes import numbers_game, word_problems
from recipes.common import word_after

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from recipes.options import ModelOptions, PromptOptions

SAMPLING_HABITS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

TOKENIZER = ("token*", "vocab*", "*.model", "*.tiktoken", "*token*.py")
"""What the files of a tokenizer are called."""

SCHEMES: Mapping[str, Callable[..., Any]] = {
    procedural.SCHEME: procedural.task_rows,
    word_problems.SCHEME: word_problems.rows,
    numbers_game.SCHEME: numbers_game.rows,
}
"""Word before the data -> what makes rows of it: (data, split=) -> rows."""
MIXTURE = "mix:"
"""Before several data, joined by commas, each with `=weight` after it."""


def read_rewards(names: Sequence[Sequence[str]]) -> list[Reward]:
    """Find rewards by their names, each with `=weight` after it or without."""
    if not any(names):
        raise RewardError("no reward: name one, as in --reward exact_answer or --reward my_rewards.py:function")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for module:function, as `python -m` has it
    listed = [name for group in names for name in group]
    return told_apart([_weighted(name) for name in listed], listed)


def told_apart(rewards: Sequence[Reward], names: Sequence[str]) -> list[Reward]:
    """Give rewards of one name the parts of their places in which they differ: model:a/final and model:b/final."""
    taken = [reward.name for reward in rewards]
    places = [Path(name.rpartition("=")[0] or name).with_suffix("").parts for name in names]
    apart = []
    for reward, place in zip(rewards, places, strict=True):
        alike = [set(other) for other, name in zip(places, taken, strict=True) if name == reward.name]
        own = [part for part in place if part not in set.intersection(*alike)]
        named = "-".join(part.removeprefix(reward_names.MODEL) for part in own)
        apart.append(replace(reward, name=f"{reward.name}-{named}") if len(alike) > 1 and named else reward)
    return apart


def _weighted(named: str) -> Reward:
    if named.startswith(reward_names.MODEL):
        refuse_run(Path(named.removeprefix(reward_names.MODEL).partition("=")[0]), f"--reward {named}")
    name, equals, weight = named.rpartition("=")
    if not equals or "/" in weight or ":" in weight:  # the sign belongs to a path
        return reward_names.resolve(named)
    try:
        number = float(weight)
    except ValueError:
        raise RewardError(f"--reward {named}: {weight!r} is no weight: expected a number, as in {name}=0.5") from None
    return replace(reward_names.resolve(name), weight=number)


def read_rows(options: PromptOptions, rewards: Sequence[Reward]) -> PromptRows:
    """Read and check prompts, and that the rewards find their columns."""
    rows = read_data(options.data, split=options.split, read=read_prompts)
    try:
        check_rewards(rewards, rows.columns)
    except RewardError as error:
        raise RewardError(f"{options.data}: {error}") from None
    return rows


def read_both(options: Any, read: Callable[..., Rows]) -> dict[str, Rows]:
    """Read what is learned from, `data`, and what is measured on where that was asked for, `eval_data`."""
    data, held_out = options.data, options.held_out
    rows = {"data": read_data(data.data, split=data.split, read=read)}
    if held_out.eval_data is not None:
        rows["eval_data"] = read_data(held_out.eval_data, split=held_out.eval_split, read=read)
    return rows


def read_data(data: str, *, split: str, read: Callable[..., Rows]) -> Rows:
    """Read data as they were named: a place, a word with rows of its own making, or a mixture of such parts.

    Args:
        data: as in --data; a mixture is `mix:DATA=WEIGHT,DATA=WEIGHT`.
        split: to take where a source has several.
        read: (source, split=) -> checked rows; called for each part, so that parts may be of different forms.
    """
    if not data.startswith(MIXTURE):
        return read(_source(data, split=split), split=split)
    parts = [_part(part, data) for part in data.removeprefix(MIXTURE).split(",")]
    return mix([(read(_source(place, split=split), split=split), weight) for place, weight in parts])


def _part(part: str, data: str) -> tuple[str, float]:
    """Take a part of a mixture apart."""
    place, _, weight = part.rpartition("=")
    try:
        return place, float(weight if place else "")
    except ValueError:
        raise DataError(f"{data}: {part!r} has no weight: write {MIXTURE}a.jsonl=0.7,b.jsonl=0.3") from None


def _source(data: str, *, split: str) -> Any:
    """Return what the library reads: rows of a word's own making, or the data as they were named."""
    scheme = next((scheme for scheme in SCHEMES if data.startswith(scheme)), None)
    return SCHEMES[scheme](data, split=split) if scheme else data


def record(options: Any, rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run was asked for, with a hash of the rows, so that none is resumed on data that have changed."""

    def fingerprint(rows: Any) -> str:
        content = {name: value for name, value in vars(rows).items() if name != "origins"}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    asked = {name: value for name, value in asdict(options).items() if name != "run"}
    for settings in asked.values() if asked["data"].get("epochs") else ():
        if "steps" in settings:
            settings["steps"] = None  # follows from the epochs, once it is known how many rows are long enough
    return {**asked, "fingerprint": {name: fingerprint(each) for name, each in rows.items()}}


def make_prompts(rows: PromptRows, options: PromptOptions, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """Tokenise prompts."""
    return tokenize_prompts(
        rows,
        tokenizer,
        max_tokens=options.max_prompt_tokens,
        too_long=options.too_long,
        chat=options.chat or options.system is not None,
        system=options.system,
    )


def with_steps(config: Any, epochs: float | None, rows: int, command: Sequence[str]) -> Any:
    """Return the settings of an algorithm with the steps that so many epochs take, if epochs were asked for.

    Raises:
        ValueError: if steps were asked for too.
    """
    if epochs is None:
        return config
    if word_after(command, "--steps"):
        raise ValueError("--epochs and --steps both say how long: give one of them")
    return replace(config, steps=math.ceil(epochs * rows / per_step(config)))


def per_step(config: Any) -> int:
    """Return how many rows an optimizer step, or a rollout, takes."""
    names = ("examples_per_step", "pairs_per_step", "prompts_per_step")
    return next(getattr(config, name) for name in names if hasattr(config, name))


def passes(config: Any, rows: int) -> str:
    """Say how often a run goes through its rows."""
    updates = math.prod(getattr(config, name, 1) for name in ("updates_per_rollout", "epochs", "minibatches"))
    takes = math.ceil(config.steps / updates)
    times = takes * per_step(config) / rows
    told = f"{times:,.0f}" if times >= 10 else f"{times:.2g}"
    what = "steps" if updates == 1 else "rollouts"
    return f"; {takes:,} {what} of {per_step(config)}: {told} pass{'es' * (told != '1')}"


def describe(name: str, lengths: Sequence[int], dropped: int, what: str) -> str:
    """Say in one line what was read."""
    left_out = f"; {dropped:,} that were too long are left out" if dropped else ""
    span = f"{min(lengths)} to {max(lengths)}" if min(lengths) < max(lengths) else f"{max(lengths)}"
    return f"{name}: {len(lengths):,} {what} of {span} tokens{left_out}"


def make_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model."""
    check_folder(model)
    with _told(model):
        return load_tokenizer(model, trust_remote_code=trust_remote_code)


def make_model(options: ModelOptions, *, seed: int) -> nn.Module:
    """Load a model in float32, with new adapters if asked for."""
    # Adapters name their base by this path, and are to be found from any working directory.
    path = str(Path(options.model).resolve()) if Path(options.model).exists() else options.model
    if options.quantize and not options.lora_rank and not (Path(path) / "adapter_config.json").exists():
        raise ValueError(f"--quantize {options.quantize} freezes all weights: train adapters, with --lora-rank 16")
    with _told(options.model):
        model = load_model(path, trust_remote_code=options.trust_remote_code, quantize=options.quantize)
    if options.lora_rank and hasattr(model, "peft_config"):
        raise ValueError(f"{options.model} has adapters, and these are trained on: leave out --lora-rank")
    return with_adapters(model, options, seed=seed)


def make_reward_model(options: ModelOptions, *, seed: int) -> Any:
    """Load a reward model in float32, or put a new head on a causal LM."""
    if options.quantize:
        raise ValueError(f"--quantize {options.quantize} is for policies: a reward model is saved with adapters merged")
    with _told(options.model):
        return load_reward_model(options.model, seed=seed, trust_remote_code=options.trust_remote_code)


def make_value_model(
    place: str, policy: nn.Module, tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool
) -> RewardModel:
    """Load a reward model to be the critic of a policy, whose tokens it must read by the same ids.

    Raises:
        ValueError: if it reads other tokens than the policy writes.
    """
    check_folder(place, "--value-model")
    with _told(place, "--value-model"):
        model = load_reward_model(place, trust_remote_code=trust_remote_code)
        own = load_tokenizer(place, trust_remote_code=trust_remote_code)
    ids, known = tokenizer.get_vocab(), own.get_vocab()
    strange = min(
        (token for token, number in ids.items() if known.get(token) != number), key=ids.__getitem__, default=None
    )
    embedded = [cast(Any, each).config.get_text_config().vocab_size for each in (model, base_model(policy))]
    if strange is not None or embedded[0] < embedded[1]:
        why = (
            f"it has {embedded[0]} embeddings and the policy {embedded[1]}"
            if strange is None
            else f"{strange!r} is {ids[strange]} for the policy and {known.get(strange, 'nothing')} for it"
        )
        raise ValueError(
            f"--value-model {place}: reads other tokens than the policy writes: {why}. Take a reward model that was "
            "trained on the policy's own family, with `align reward`, or leave --value-model out"
        )
    return RewardModel(model)


def with_adapters(model: nn.Module, options: ModelOptions, *, seed: int) -> nn.Module:
    """Return a model with new adapters, and with gradient checkpointing, as far as asked for."""
    import torch

    if options.lora_rank:
        torch.manual_seed(seed)
        targets = options.lora_targets or "all-linear"
        model = add_lora(model, rank=options.lora_rank, alpha=options.lora_alpha, target_modules=targets)
    if options.gradient_checkpointing:
        base_model(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def count_parameters(model: nn.Module) -> str:
    """Say how many parameters a model has, and how many of them are trained."""
    stored = [getattr(p, "quant_state", None) or p for p in model.parameters()]  # two 4-bit numbers are one byte
    total = sum(p.shape.numel() for p in stored)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{total:,} parameters, {'all' if trained == total else f'{trained:,}'} of them trained"


def check_fit(model: nn.Module, ids: Sequence[Sequence[int]], new_tokens: int = 0) -> None:
    """Refuse a tokenizer of another model, and texts that are longer than the model was made for."""
    config: Any = cast(Any, model).config.get_text_config()
    largest, longest = max(map(max, ids)), max(map(len, ids)) + new_tokens
    if largest >= config.vocab_size:
        raise ValueError(
            f"the tokenizer gives token {largest}, but the model has {config.vocab_size} embeddings: "
            "take the tokenizer that belongs to the model, or resize its embeddings"
        )
    room = getattr(config, "max_position_embeddings", None) or longest
    words, advice = "", "leave long ones out with --max-tokens {limit} --too-long drop"
    if new_tokens:
        words = f" ({new_tokens} of them new)"
        advice = "lower --max-new-tokens, or leave long prompts out with --max-prompt-tokens N --too-long drop"
    check_lengths(model, ids, new_tokens, advice=advice)
    if longest > room:
        raise ValueError(
            f"the longest text has {longest} tokens{words}, but the model was made for {room}: "
            f"{advice.format(limit=room)}"
        )


def sampling_habits(model: nn.Module) -> dict[str, Any]:
    """Return what the model's generation config would do to sampling; nothing here follows it."""
    config = getattr(model, "generation_config", None)
    neutral: Mapping[str, tuple[Any, ...]] = {"top_k": (None, 0), "min_p": (None, 0.0)}
    values = {name: getattr(config, name, None) for name in SAMPLING_HABITS}
    return {name: value for name, value in values.items() if value not in neutral.get(name, (None, 1.0))}


def check_folder(model: str, option: str = "--model") -> None:
    """Refuse a mistyped folder before it is looked up on the hub as an id, and one that lacks a model or its tokens."""
    if told := no_such_folder(model):
        raise ValueError(f"{option} {model}: {told}")
    path = Path(model).expanduser()
    refuse_run(path, f"{option} {model}")
    if (path / "config.json").exists() and not any(file for name in TOKENIZER for file in path.glob(name)):
        raise ValueError(f"{option} {model}: has no tokenizer: put it there with tokenizer.save_pretrained({model!r})")


def refuse_run(path: Path, named: str) -> None:
    """Refuse the directory of a run where its model is meant."""
    if (path / "events.jsonl").exists():
        final = path / "final"
        advice = f"its model is in {final}" if final.exists() else f"it saved none, and align export {path} does"
        raise ValueError(f"{named}: is the directory of a run: {advice}")


@contextmanager
def _told(model: str, option: str = "--model") -> Iterator[None]:
    """Say in one line why a model or its tokenizer cannot be loaded."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        folders = [entry.name for entry in Path.cwd().iterdir() if entry.is_dir()]
        meant = "" if Path(model).exists() else nearest(model, folders)
        raise ValueError(f"{option} {model}: cannot be loaded: {reason}{meant}") from error
