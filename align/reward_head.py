"""Reward models: a causal LM's trunk under a head of one number, read at the last token of a text.

Which token is last is known from lengths. transformers' classes, which are to give the same scores, take the last one
that is not padding instead: so a reward model's padding token is one with which no text can end.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from align.batch import Completion, Message, Sequences
from align.checks import template_of
from align.data import check_template, eos_token_ids
from align.logprobs import base_model
from align.models import check_model_folder, disable_dropout, load_model, load_tokenizer, save_model
from align.rendering import Demonstrations
from align.rewards import RewardFunction
from align.rows import Fault
from align.training import cut_by_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CLASSIFIER = "ForSequenceClassification"
"""How transformers ends the name of a class with such a head."""


class TokenScores(NamedTuple):
    """What the head says of the tokens that are asked about, 0 elsewhere, float32. [B, T]

    logprobs: the scores, under the name by which `align.training.Trainer` hands on what a module says of tokens.
    """

    logprobs: Tensor


class RewardModel(nn.Module):
    """A one-label sequence classifier whose forward gives scores: the one module that Accelerate is handed."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, action_mask: Tensor) -> TokenScores:
        """Score right-padded rows at the tokens of the mask, each from itself and those before it.

        Causal attention never sees what is padded on the right, so no mask is built of it.
        """
        classifier: Any = base_model(self.model)
        rows, columns = action_mask.nonzero(as_tuple=True)
        hidden = classifier.base_model(input_ids=input_ids, use_cache=False)[0][rows, columns]  # [N, H]
        scores = classifier.score(hidden)[:, 0]
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return TokenScores(scores.new_zeros(input_ids.shape).index_put((rows, columns), scores))


def at_last(sequences: Sequences) -> Sequences:
    """Return the sequences with their last real token as the only one asked about."""
    columns = torch.arange(sequences.input_ids.shape[1], device=sequences.lengths.device)
    return Sequences(sequences.input_ids, sequences.lengths, columns == sequences.lengths[:, None] - 1)


def reward_model_of(causal_lm: nn.Module, *, seed: int) -> PreTrainedModel:
    """Put a new head of one number on the trunk of a causal LM, which the result takes over; adapters are merged.

    The head is drawn from N(0, 1 / (H + 1)), H its inputs, so that scores begin at a scale of about 1.

    Source: the scale: Huang et al. 2024 (arXiv:2403.17031), reward heads.

    Raises:
        ValueError: if transformers has no class to save such a model as.
    """
    from transformers import AutoModelForSequenceClassification

    model: Any = causal_lm
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload().requires_grad_(True)  # adapters had frozen what they are merged into
    config = copy.deepcopy(model.config)
    _check_class(config)
    config.num_labels = 1
    with torch.device("meta"):
        classifier: Any = AutoModelForSequenceClassification.from_config(config)
    if type(classifier.base_model) is not type(model.base_model):
        raise ValueError(f"{type(model).__name__}: {type(classifier).__name__} stands on another kind of trunk")
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(1, classifier.score.in_features, generator=generator) / math.sqrt(
        classifier.score.in_features + 1
    )
    trunk = next(model.base_model.parameters())
    classifier.score = nn.Linear(weight.shape[1], 1, bias=False).to(trunk.device, trunk.dtype)
    with torch.no_grad():
        classifier.score.weight.copy_(weight)
    setattr(classifier, classifier.base_model_prefix, model.base_model)
    return _ready(classifier)


def load_reward_model(path: str | Path, *, seed: int | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """Load a sequence classifier with one label, in float32, from a folder or a hub id.

    Args:
        path: what `save_reward_model` wrote, or any such classifier that reads the last token; or a folder with PEFT
            adapters of one (task type SEQ_CLS), which are merged into their base.
        seed: of a new head, for a causal LM; None refuses it, since scores of a new head mean nothing.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ValueError: if it is no such model.
    """
    from transformers import AutoModelForSequenceClassification

    what = kind_of(path, trust_remote_code=trust_remote_code)
    if what == "a causal LM" and seed is not None:
        return reward_model_of(load_model(path, trust_remote_code=trust_remote_code), seed=seed)
    check_reward_model(path, trust_remote_code=trust_remote_code)
    if what == "adapters of a classifier":
        return _ready(_on_their_base(path, trust_remote_code))
    arguments: Any = {"dtype": torch.float32, "trust_remote_code": trust_remote_code, "output_loading_info": True}
    classifier, found = AutoModelForSequenceClassification.from_pretrained(str(path), **arguments)
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"])[:3])
        raise ValueError(f"{path}: lacks weights of the model, such as {missing}: save or fetch it again")
    return _ready(classifier)


Kind = Literal["a classifier", "adapters of a classifier", "a causal LM"]


def kind_of(path: str | Path, *, trust_remote_code: bool = False) -> Kind:
    """Tell from its config what a folder or hub id holds; whatever is no classifier counts as a causal LM.

    Raises:
        ValueError: if the path looks like a local folder that is not there, or holds no model.
    """
    from transformers import AutoConfig

    folder = check_model_folder(path)
    if (folder / "adapter_config.json").exists():
        said = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        return "adapters of a classifier" if said.get("task_type") == "SEQ_CLS" else "a causal LM"
    config: Any = AutoConfig.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    return "a classifier" if any(n.endswith(CLASSIFIER) for n in config.architectures or []) else "a causal LM"


def check_reward_model(path: str | Path, *, trust_remote_code: bool = False) -> None:
    """Refuse what is no reward model, from its config and the names of its weights: nothing is loaded for that.

    Raises:
        ValueError: saying what is there instead, and the way out.
    """
    from transformers import AutoConfig

    what = kind_of(path, trust_remote_code=trust_remote_code)
    if what == "a causal LM":
        raise ValueError(f"{path}: is no reward model but a causal LM: train one on it with `align reward`")
    names, base = _weight_names(Path(path)), path
    if what == "adapters of a classifier":
        base = _base_of(path)
        if not _has_head(names or set()) and kind_of(base) != "a classifier":
            raise ValueError(
                f"{path}: holds adapters without a head, and so does {base} under them: a new one would score at "
                "random. Save the head with them (modules_to_save), or train a model with `align reward`"
            )
    elif names is not None and not _has_head(names):
        way_out = "save it again, or train a model with `align reward`"
        raise ValueError(f"{path}: has no weights of a head `score`, which reads the last token: {way_out}")
    config: Any = AutoConfig.from_pretrained(str(base), trust_remote_code=trust_remote_code)
    _check_class(config)
    if config.num_labels != 1 and kind_of(base) == "a classifier":  # a causal LM's config counts labels of no use
        raise ValueError(f"{path}: has {config.num_labels} labels, and a reward model has 1: take another model")


def separate_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a reward model and its tokenizer a padding token with which no text ends, a new one if need be.

    Both are changed in place. A text may end with every EOS of model and tokenizer, and with the template's end of
    turn; a padding token that is one of these would make transformers read the score a token too early.
    """
    last = set(eos_token_ids(model, tokenizer)) | _end_of_turn(tokenizer)
    pad = tokenizer.pad_token_id
    if pad is None or pad in last or pad == tokenizer.unk_token_id:
        vocabulary = tokenizer.get_vocab()
        names = ("<pad>", "<|pad|>", "<|reward_pad|>", *(f"<|reward_pad_{number}|>" for number in range(len(last) + 9)))
        tokenizer.add_special_tokens({"pad_token": next(name for name in names if name not in vocabulary)})
        pad = int(cast(Any, tokenizer.pad_token_id))
        embeddings: Any = model.get_input_embeddings()
        if pad >= embeddings.num_embeddings:
            with torch.random.fork_rng():  # nobody ever attends to the new row
                model.resize_token_embeddings(pad + 1, mean_resizing=False)
    tokenizer.padding_side = "right"
    for config in {id(each): each for each in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id = pad


def save_reward_model(model: nn.Module, tokenizer: Any, directory: str | Path, *, card: str) -> None:
    """Write a folder that `AutoModelForSequenceClassification.from_pretrained` loads, adapters merged.

    Args:
        model: as given to `RewardModel`, after `separate_padding`.
        tokenizer: of the reward model, saved beside it.
        directory: made if it is not there.
        card: the model card, written as README.md.
    """
    if hasattr(model, "merge_and_unload"):
        model = cast(Any, copy.deepcopy(model)).merge_and_unload()
    save_model(model, tokenizer, directory, card=card)


def model_reward(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat: bool = False,
    tokens_per_batch: int = 65_536,
) -> RewardFunction:
    """Make a reward function of a reward model.

    Prompt and completion are written as in training, with the reward model's own template and tokens: closed by the
    end of turn or EOS also where `max_new_tokens` cut the completion.

    Args:
        model: a one-label classifier, or a `RewardModel`.
        tokenizer: of the reward model, which may differ from the policy's.
        chat: take prompts that are strings as the user's message, for a model that was trained on conversations.
        tokens_per_batch: padding included; bounds memory, never changes a score.
    """
    scorer = model if isinstance(model, RewardModel) else RewardModel(model)
    demonstrations = Demonstrations(tokenizer)

    def learned_reward(
        prompts: Sequence[str | list[Message]], completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        texts = [_as_chat(*text) if chat else text for text in zip(prompts, completions, strict=True)]
        check_template(tokenizer, [completion for _, completion in texts], ["reward model"] * len(texts))
        ids = [demonstrations.make(*text, template_of(columns, row))[-1][0] for row, text in enumerate(texts)]
        return [*score_ids(scorer, ids, tokens_per_batch=tokens_per_batch)]

    return learned_reward


@torch.no_grad()
def score_ids(model: RewardModel, ids: Sequence[Sequence[int]], *, tokens_per_batch: int = 65_536) -> list[float]:
    """Score texts as token ids, each at its last token."""
    sequences = at_last(Sequences.from_lists(ids, [[False] * len(row) for row in ids]))
    config: Any = base_model(model.model).config.get_text_config()
    check_ends([row[-1:] for row in ids], config.pad_token_id)
    room, longest = getattr(config, "max_position_embeddings", None), max(map(len, ids), default=0)
    if room and longest > room:
        raise ValueError(f"a text of {longest} tokens, but the reward model was made for {room}: lower max_new_tokens")
    device = next(model.parameters()).device
    scores = torch.zeros(len(ids))
    for rows in cut_by_tokens(sequences.lengths, tokens_per_batch) if len(ids) else []:
        batch = sequences.select(rows).to(device)
        scores[rows] = model(batch.input_ids, batch.action_mask).logprobs.sum(dim=1).float().cpu()
    return scores.tolist()


def check_ends(last: Sequence[Sequence[int]], pad_token_id: int | None) -> None:
    """Refuse texts that are empty, or end with the padding token, which transformers would not read."""
    for tokens in last:
        if not tokens or tokens[0] == pad_token_id:
            what = f"ends with the padding token {pad_token_id}" if tokens else "has no tokens"
            raise ValueError(f"a text {what}: call separate_padding(model, tokenizer) before anything is tokenised")


def _on_their_base(path: str | Path, trust_remote_code: bool) -> Any:
    """Load adapters of a classifier with the head that was trained beside them, and merge them into their base."""
    from peft import PeftModel

    with torch.random.fork_rng():  # a head and adapters are drawn before those of the files take their place
        base: Any = load_reward_model(_base_of(path), seed=0, trust_remote_code=trust_remote_code)
        if any((Path(path) / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
            tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
            if len(tokenizer) > base.get_input_embeddings().num_embeddings:  # a padding token of their own
                base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            for config in (base.config, base.config.get_text_config()):
                config.pad_token_id = tokenizer.pad_token_id
        merged: Any = cast(Any, PeftModel.from_pretrained(base, str(path))).merge_and_unload()
    return merged.requires_grad_(True)  # adapters had frozen what they are merged into


def _base_of(path: str | Path) -> str:
    said = json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8"))
    base = str(said.get("base_model_name_or_path") or "")
    if not base or (Path(base).is_absolute() and not Path(base).exists()):
        raise ValueError(
            f"{path}: the adapters' base {base!r} is not there: put its path into adapter_config.json as "
            "base_model_name_or_path"
        )
    return base


def _weight_names(folder: Path) -> set[str] | None:
    """Return the names of the weights in a local folder; None where they are kept otherwise, as on the hub."""
    from safetensors import safe_open

    for file in (folder / "adapter_model.safetensors", folder / "model.safetensors"):
        if file.exists():
            with safe_open(file, "pt") as weights:
                return set(weights.keys())
    index = folder / "model.safetensors.index.json"
    return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"]) if index.exists() else None


def _has_head(names: set[str]) -> bool:
    return any("score" in name.split(".") for name in names)


def _check_class(config: Any) -> None:
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"transformers has no sequence-classification class for the model type {config.model_type!r}, so a reward "
            "model of it could not be saved and loaded: take a model of another type, such as llama, qwen3 or gemma2"
        )


@torch.no_grad()
def _ready(classifier: Any) -> PreTrainedModel:
    """Return a classifier without dropout, if it gives its score as `RewardModel` does."""
    classifier.train()
    disable_dropout(classifier)
    pad = classifier.config.get_text_config().pad_token_id
    ids = torch.tensor([[token for token in range(5) if token != pad]], device=next(classifier.parameters()).device)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, -1] = True
    try:
        own = classifier(input_ids=ids).logits
        same = torch.allclose(RewardModel(classifier)(ids, mask).logprobs[:, -1:], own.float(), rtol=1e-3, atol=1e-4)
    except (AttributeError, TypeError):  # of other parts than a trunk and `score`
        same = False
    if not same:
        raise ValueError(f"{type(classifier).__name__}: does not read its score from the last token by a head `score`")
    return classifier


def _end_of_turn(tokenizer: Any) -> set[int]:
    """Return the token that closes an answer in the chat template, if there is a template and it takes a question."""
    if not tokenizer.chat_template:
        return set()
    question, answer = [{"role": "user", "content": "a"}], [{"role": "assistant", "content": "a"}]
    try:
        return {Demonstrations(tokenizer).make(question, answer)[0][0][-1]}
    except Fault:  # of another form of conversation: `check_ends` sees what its texts end with
        return set()


def _as_chat(prompt: str | list[Message], completion: Completion) -> tuple[list[Message], list[Message]]:
    question = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return question, [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
