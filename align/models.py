"""Policies as they come and go: loading, LoRA, the frozen reference, saving.

Weights are loaded in float32, whatever the folder holds: bfloat16 is for the arithmetic (autocast), not for the master
weights. Nothing is fetched unless a hub id is given, and no remote code runs unless it is asked for.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from align.logprobs import SHORTCUTS, FrozenPolicy, Policy, base_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from align.batch import Prompts
    from align.config import SamplingConfig
    from align.critic import ActorCritic

CHANCES = ("dropout", "layerdrop", "pdrop")
"""Parts of the names of what makes a forward random in train mode."""
JITTER = ("jitter_noise", "input_jitter_noise", "moe_jitter_eps")
"""Names of the same in mixtures of experts; `router_jitter_noise` is left alone, since PhiMoE routes by it always."""
VALUE_HEAD_FILE = "value_head.safetensors"

Reference = Callable[[Tensor, Tensor], Tensor]
"""(input_ids [B, T], action_mask [B, T]) -> log-probabilities of the actions under the reference. [B, T]"""


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    trainable: bool = True,
    quantize: Literal["4bit"] | None = None,
) -> nn.Module:
    """Load a causal LM from a folder or a hub id; a folder with a PEFT adapter comes with its adapter on its base.

    Every dropout probability is set to 0: policy, old policy and reference must be one and the same function. With
    "4bit" the weights of linear layers become 4-bit numbers, which are frozen, and of use under adapters: QLoRA. Of a
    model of pictures and text, what text never reaches is frozen.

    Source: of "4bit", with its NF4 and its quantised constants: Dettmers et al. 2023 (arXiv:2305.14314).

    Raises:
        ValueError: if the path looks like a local folder that is not there, or holds no model; or for "4bit", if
            bitsandbytes is not installed.
    """
    folder = check_model_folder(path)
    arguments: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    if quantize is not None:
        arguments["quantization_config"] = _four_bits()
    if (folder / "adapter_config.json").exists():
        from peft import AutoPeftModelForCausalLM

        model: Any = AutoPeftModelForCausalLM.from_pretrained(str(path), is_trainable=trainable, **arguments)
    else:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(str(path), **arguments)
    for module in model.modules() if quantize else ():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # else sampling packs the weights anew, with other roundings
            module.support_avx512bf16_for_cpu = False
    model.train()
    disable_dropout(model)
    # no padding is ever looked up, and a token that is one by name, such as EOS, is to be learned where it stands
    cast(Any, base_model(model).get_input_embeddings()).padding_idx = None
    for part in _beyond_text(model):
        for parameter in part.parameters(recurse=False):
            parameter.requires_grad_(False)
    return model


def _four_bits() -> Any:
    if find_spec("bitsandbytes") is None:
        raise ValueError("4-bit weights need bitsandbytes: pip install 'align-rl[qlora]'")
    from transformers import BitsAndBytesConfig

    bfloat16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if bfloat16 else torch.float32,
    )


def check_model_folder(path: str | Path) -> Path:
    """Return the path, refused if it looks like a local folder that is not there, or holds no model."""
    folder = Path(path)
    if not folder.exists() and (folder.is_absolute() or str(path).startswith((".", "~"))):
        raise ValueError(f"{path}: no such folder. Give a folder written by save_pretrained, or a hub id.")
    if folder.is_file() or (folder.is_dir() and not any(folder.glob("*config.json"))):
        raise ValueError(f"{path}: holds no config.json. Give the folder that save_pretrained wrote.")
    return folder


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability of a model to 0: layers, attention's functional ones, LoRA's, routers' noise.

    The modules stay in train mode, because `eval()` would silently switch gradient checkpointing off. Some read
    their probabilities from the config, so those there become 0 too.

    Raises:
        ValueError: if the model draws its experts at random in train mode.
    """
    for module in model.modules():
        if type(module).__name__ == "PhimoeTopKRouter":
            raise ValueError(
                "PhiMoE draws its experts at random in train mode, so what is trained is not what is sampled"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for holder in (module, getattr(module, "config", None)):
            for name, value in vars(holder).items() if holder is not None else ():
                if isinstance(value, float) and (name in JITTER or any(word in name for word in CHANCES)):
                    setattr(holder, name, 0.0)


def check_lengths(
    model: nn.Module,
    ids: Iterable[Sequence[int]],
    more: int = 0,
    *,
    advice: str = "lower max_new_tokens, or leave long texts out",
) -> None:
    """Refuse texts at which the positions of a model would depend on the texts beside them.

    The rotations of "longrope" and "dynamic" are others for a whole batch once one text of it goes beyond a length: how
    a batch is cut would change what is learned, and the cached beginning of a completion that grows beyond it be wrong.

    Args:
        model: a Hugging Face model, or a module around one.
        ids: token ids of the texts, or of their prompts.
        more: tokens that are written after each of them.
        advice: how to stay below {limit}.

    Raises:
        ValueError: if a text is too long for such a model.
    """
    limits = list(_lengths_of_equal_ropes(model))
    longest = max(map(len, ids), default=0) + more if limits else 0
    for kind, limit in limits:
        if longest > limit:
            raise ValueError(
                f"the longest text has {longest} tokens{f' ({more} of them new)' if more else ''}, but beyond {limit} "
                f"the model's {kind!r} rope turns all texts of a batch by its longest, so what a text is given would "
                f"depend on those beside it: {advice.format(limit=limit)}"
            )


def _lengths_of_equal_ropes(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Return the ropes of a model that change with the length of a batch, and the length up to which they do not."""
    configs = {id(each): each for part in model.modules() if hasattr(each := getattr(part, "config", None), "to_dict")}
    for config in configs.values():
        ropes = getattr(config, "rope_parameters", None) or {}
        for rope in (ropes, *ropes.values()):  # one for all layers, or one for each kind of them
            kind = rope.get("rope_type") if isinstance(rope, dict) else None
            if kind == "longrope":
                yield kind, rope["original_max_position_embeddings"]
            elif kind == "dynamic":
                yield kind, cast(Any, config).max_position_embeddings


def match_sampling(
    policy: nn.Module, prompts: Prompts, *, sampler: SamplingConfig, config: SamplingConfig, look_ahead: int = 0
) -> None:
    """Make sure that what is trained is what is sampled: switch dropout off, and refuse what would part the two.

    Args:
        policy: the module that is trained; its temperature is 1 where it has none.
        prompts: what is sampled from.
        sampler, config: the settings of the sampler, and those of the algorithm.
        look_ahead: tokens that are looked at beyond a completion.

    Raises:
        ValueError: if the three temperatures differ, or completions may be longer than `check_lengths` allows.
    """
    check_lengths(policy, prompts.ids, sampler.max_new_tokens + look_ahead)
    temperatures = [getattr(policy, "temperature", 1.0), sampler.temperature, config.temperature]
    if len(set(temperatures)) > 1:
        raise ValueError(
            f"the policy, the sampler and the config have the temperatures {temperatures}: give all three the "
            "same, or another distribution is trained than is sampled"
        )
    disable_dropout(policy)


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside a model."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)


def add_lora(
    model: nn.Module, *, rank: int = 16, alpha: int = 32, target_modules: str | Sequence[str] = "all-linear"
) -> nn.Module:
    """Freeze a model and put trainable low-rank adapters on its linear layers; a reward model's head is trained whole.

    Left out are layers at which adapters would go unheard.

    Source: Hu et al. 2021 (arXiv:2106.09685).
    """
    from peft import LoraConfig, get_peft_model

    task = "SEQ_CLS" if type(model).__name__.endswith("ForSequenceClassification") else "CAUSAL_LM"
    targets = target_modules if isinstance(target_modules, str) else [*target_modules]
    settings: dict[str, Any] = {"target_modules": targets, "exclude_modules": _deaf_layers(model) or None}
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, task_type=task, **settings)
    return get_peft_model(cast(Any, model), config)


def _deaf_layers(model: nn.Module) -> list[str]:
    """Return the linear layers that are not called as such, or never by text.

    The mixers of Mamba and its kin hand the weights of three of their projections to a scan; a router that is a kind of
    linear layer returns more than a product.
    """
    mixers = {name for name, module in model.named_modules() if hasattr(module, "A_log") and hasattr(module, "D")}
    unread, deaf = _beyond_text(model), []
    for name, module in model.named_modules():
        parent, _, own = name.rpartition(".")
        scanned = parent in mixers and own in ("x_proj", "dt_proj", "out_proj")
        router = type(module).__name__.endswith("Router")
        if isinstance(module, nn.Linear) and (scanned or router or module in unread):
            deaf.append(name)
    return deaf


def _beyond_text(model: nn.Module) -> set[nn.Module]:
    """Return the parts of a model of text and pictures, or sound, that text never reaches; none of one of text."""
    whole: Any = base_model(model)
    if getattr(whole, "input_modalities", "text") in ("text", ("text",), ["text"]):
        return set()
    return {*whole.modules()} - {*whole.get_decoder().modules(), whole.get_output_embeddings()}


def reference_of(policy: Policy) -> Reference:
    """Freeze the policy as it is now, to measure how far training moves it.

    Adapters that do not change anything yet are switched off for the reference, so one copy of the weights serves
    both, if nothing beside them is trained, such as biases. Everything else is copied, and the copy is in eval mode.
    The reference is never loaded again by name: the object that was given may have resized embeddings or merged
    adapters.
    """
    shared = hasattr(policy.model, "disable_adapter") and _adapters_are_all_that_will_change(policy.model)
    model = policy.model if shared else copy.deepcopy(policy.model).requires_grad_(False).eval()
    if not shared:  # what the original allows, its copy does
        SHORTCUTS[base_model(model)] = SHORTCUTS.setdefault(base_model(policy.model), {})
    return FrozenPolicy(Policy(model, temperature=policy.temperature), without_adapters=shared)


@torch.no_grad()
def _adapters_are_all_that_will_change(model: nn.Module) -> bool:
    """Return whether a model without its adapters is what it is with them, and stays so while it is trained."""
    ids = (
        torch.arange(4, device=next(model.parameters()).device)[None]
        % base_model(model).config.get_text_config().vocab_size
    )
    with cast(Any, model).disable_adapter():
        without = model(input_ids=ids).logits
        still_trained = any(p.requires_grad for p in model.parameters())
    return not still_trained and torch.equal(model(input_ids=ids).logits, without)


def save_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase, directory: str | Path, *, card: str) -> None:
    """Write a folder that `from_pretrained`, `pipeline` and, for adapters, `AutoPeftModelForCausalLM` load.

    Args:
        model: the causal LM or PEFT model; only the adapters of the latter are written.
        tokenizer: saved beside it, chat template included.
        directory: made if it is not there; a model that lies there is replaced, with all that is beside it.
        card: the model card, written as README.md.

    Raises:
        ValueError: if something else than a model lies there.
    """
    directory = Path(directory)
    model_there = any((directory / name).is_file() for name in ("config.json", "adapter_config.json"))
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir()) and not model_there):
        raise ValueError(f"{directory}: is there and holds no model, so saving would delete it: name another folder")
    unfinished = directory.with_name(directory.name + ".unfinished")  # a folder that is there is whole
    shutil.rmtree(unfinished, ignore_errors=True)
    cast("PreTrainedModel", model).save_pretrained(str(unfinished))
    tokenizer.save_pretrained(str(unfinished))
    (unfinished / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    unfinished.rename(directory)


def save_value_head(policy: ActorCritic, directory: str | Path) -> None:
    """Write the value head beside the model or the adapters that `save_model` wrote."""
    from safetensors.torch import save_file

    head = cast(nn.Module, policy.value_head)
    tensors = {name: value.detach().cpu() for name, value in head.state_dict().items()}
    save_file(tensors, str(Path(directory) / VALUE_HEAD_FILE))


def load_value_head(policy: ActorCritic, directory: str | Path) -> bool:
    """Take over the value head that lies in a model's folder; return whether there is one.

    Raises:
        ValueError: if it belongs to a model of another width.
    """
    from safetensors.torch import load_file

    file = Path(directory) / VALUE_HEAD_FILE
    if not file.is_file():
        return False
    head = cast(nn.Module, policy.value_head)
    tensors = load_file(str(file))
    expected = {name: list(value.shape) for name, value in head.state_dict().items()}
    got = {name: list(value.shape) for name, value in tensors.items()}
    if got != expected:
        raise ValueError(f"{file}: expected {expected}, got {got}: it is of another model; remove it to begin with 0")
    head.load_state_dict(tensors)
    return True
