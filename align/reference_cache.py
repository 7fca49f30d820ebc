"""A reference whose log-probabilities are computed once and kept in a file, so that training holds no second model.

They are a pure function of an answer's tokens and of the weights. So the file is valid for one set of weights, and an
answer is found in it by a hash of its tokens, whatever the order of the data; what is not there is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from align.batch import Sequences
from align.data import Examples
from align.logprobs import base_model
from align.models import disable_dropout
from align.training import cut_by_tokens

if TYPE_CHECKING:
    from accelerate import Accelerator

FORMAT = "align reference cache 1"
KEY_BYTES = 16
VOLATILE = ("transformers_version", "architectures", "dtype")
"""Entries of a model's config that say nothing about what it computes, beside those that begin with an underscore."""
ADAPTER_PLACES = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")
"""The same of adapters."""

Answers = dict[bytes, tuple[list[int], list[bool]]]
"""Hash of an answer -> its token ids and action mask, up to the last action."""


class CacheError(ValueError):
    """A cache cannot be read or written, or is of another reference or of other data; the message says which."""


@dataclass(frozen=True)
class CachedReference:
    """Log-probabilities of known answers, asked for as those of `align.models.reference_of` are.

    They are kept for each token, not summed, so that any score of an answer, and any loss, sees what it would have
    seen of a model: 4 bytes a trained token, where the data themselves take more.

    path: the file, to be named in errors.
    logprobs: of all answers' actions, one answer after another, nats. [number of actions]
    places: hash of an answer -> first action and the one after its last.
    """

    path: Path
    logprobs: Tensor
    places: dict[bytes, tuple[int, int]]

    def __call__(self, input_ids: Tensor, action_mask: Tensor) -> Tensor:
        """Look up the log-probabilities of right-padded rows. [B, T], [B, T] -> [B, T], 0 where there is no action.

        Raises:
            CacheError: if the file has not all of the answers.
        """
        ids, masks = input_ids.cpu().numpy(), action_mask.cpu().numpy()
        keys = [_key(row, mask) for row, mask in zip(ids, masks, strict=True) if mask.any()]
        self.check(keys)
        found = [self.logprobs[slice(*self.places[key])] for key in keys]
        laid_out = self.logprobs.new_zeros(action_mask.shape)
        laid_out[torch.from_numpy(masks)] = torch.cat(found) if found else self.logprobs[:0]
        return laid_out.to(input_ids.device)

    def check(self, keys: Iterable[bytes]) -> None:
        """Refuse answers that are not there."""
        asked = list(keys)
        missing = sum(key not in self.places for key in asked)
        if missing:
            raise CacheError(
                f"{self.path}: is of other data: it lacks {missing:,} of {len(asked):,} answers. The rows, the chat "
                f"template, a limit of tokens, or in KTO seed, steps or examples_per_step have changed: {WAY_OUT}"
            )


WAY_OUT = "take them back, or remove the file or name another one, and it is computed anew"


def cached_reference(
    path: str | Path,
    policy: nn.Module,
    examples: Iterable[Examples],
    accelerator: Accelerator,
    *,
    tokens_per_batch: int = 65_536,
) -> CachedReference:
    """Freeze what a policy says now of some answers: read it from a file, or compute it and write the file.

    To be called before anything is trained, by all processes, which share the work and the file. Answers that are
    the same are computed once. The numbers are those of a reference model to rounding, since answers are batched
    otherwise (so in the first step, where policy and reference are one, ties are broken by rounding); a run that reads
    them repeats the one that wrote them bit for bit. The order of the data and the settings of training may change.

    Args:
        path: a safetensors file; its folder is made where missing.
        policy: the module that is going to be trained, as it starts; moved to the accelerator's device, and its
            dropout is switched off.
        examples: all answers that will be asked about, those of evaluations too; fewer than the file has are fine.
        accelerator: of the run; its arithmetic is that of the policy.
        tokens_per_batch: padding included; bounds memory.

    Raises:
        CacheError: if the file is of other weights, data, temperature or arithmetic, is damaged or cannot be written,
            or if a log-probability is not finite.
    """
    disable_dropout(policy)
    path, wanted = Path(path), _distinct(examples)
    made_with = {
        "weights": fingerprint(policy),
        "temperature": repr(float(getattr(policy, "temperature", 1.0))),
        "arithmetic": accelerator.mixed_precision,
    }
    # One process decides: another might look when the file is there already.
    missing = torch.tensor(float(accelerator.is_main_process and not path.exists()), device=accelerator.device)
    if float(accelerator.reduce(missing, "sum")) == 0:  # pyright: ignore[reportArgumentType]
        reference = _read(path, made_with)
        reference.check(wanted)
        return reference
    found = _computed(policy.to(accelerator.device), wanted, accelerator, tokens_per_batch)
    keys = list(wanted)
    reference = _reference(path, keys, [len(found[key]) for key in keys], torch.cat([*found.values(), torch.zeros(0)]))
    if not reference.logprobs.isfinite().all():
        raise CacheError("the reference gives a log-probability that is not finite: look at its weights and the data")
    if accelerator.is_main_process:
        _write(reference, made_with)
    return reference


def fingerprint(policy: nn.Module) -> str:
    """Return a hash of all that decides what a policy says: parameters, buffers, the model's config, adapters.

    LoRA adapters that do not change anything yet are left out, so that fresh ones of any rank and seed, and the
    model without any, have one reference.
    """
    model: Any = policy.model if hasattr(policy, "model") else policy
    tensors = dict(chain(model.named_parameters(), model.named_buffers()))
    lora_b = [tensor for name, tensor in tensors.items() if ".lora_B." in name]
    idle = bool(lora_b) and not any(bool(tensor.detach().any()) for tensor in lora_b)
    settings = _without(base_model(model).config.to_dict(), VOLATILE)
    adapters = {} if idle else {name: _without(c.to_dict(), ADAPTER_PLACES) for name, c in _adapters(model).items()}
    digest = hashlib.sha256(json.dumps([settings, adapters], sort_keys=True, default=_plain).encode())
    for name, tensor in tensors.items():
        if not (idle and (".lora_A." in name or ".lora_B." in name)):
            _update(digest, tensor.detach().cpu())
    return digest.hexdigest()


def _adapters(model: Any) -> Mapping[str, Any]:
    return getattr(model, "peft_config", {})


def _without(settings: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {str(name): value for name, value in settings.items() if name not in names and not name.startswith("_")}


def _plain(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def _key(ids: Any, mask: Any) -> bytes:
    """Hash the tokens of an answer up to its last action, which is all that its log-probabilities depend on."""
    end = int(np.flatnonzero(mask)[-1]) + 1
    content = np.asarray(ids[:end], dtype="<i8").tobytes() + np.asarray(mask[:end], dtype=bool).tobytes()
    return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()


def _distinct(examples: Iterable[Examples]) -> Answers:
    answers: Answers = {}
    for part in examples:
        for ids, mask in zip(part.ids, part.action_masks, strict=True):
            if any(mask):
                end = len(mask) - mask[::-1].index(True)
                answers[_key(ids, mask)] = (ids[:end], mask[:end])
    return answers


@torch.no_grad()
def _computed(policy: nn.Module, wanted: Answers, accelerator: Accelerator, tokens: int) -> dict[bytes, Tensor]:
    """Return the log-probabilities of each answer's actions, each process having computed its share, longest first."""
    from accelerate.utils import gather_object

    keys = sorted(wanted, key=lambda key: len(wanted[key][0]), reverse=True)
    keys = keys[accelerator.process_index :: accelerator.num_processes]
    lengths, mine = torch.tensor([len(wanted[key][0]) for key in keys]), []
    for rows in cut_by_tokens(lengths, tokens) if keys else []:
        names = [keys[row] for row in rows.tolist()]
        ids, masks = zip(*(wanted[name] for name in names), strict=True)
        batch = Sequences.from_lists(ids, masks).to(accelerator.device)
        with accelerator.autocast():  # the arithmetic of the policy, or the two would differ from the start
            logprobs = policy(batch.input_ids, batch.action_mask).logprobs
        actions = logprobs[batch.action_mask].cpu()
        mine += zip(names, actions.split(batch.action_mask.sum(dim=1).tolist()), strict=True)
    everywhere = dict(gather_object(mine) if accelerator.num_processes > 1 else mine)
    return {key: everywhere[key] for key in wanted}


def _reference(path: Path, keys: list[bytes], counts: list[int], logprobs: Tensor) -> CachedReference:
    return CachedReference(path, logprobs, dict(zip(keys, pairwise(accumulate(counts, initial=0)), strict=True)))


def _write(reference: CachedReference, made_with: Mapping[str, str]) -> None:
    """Write the file under another name, and give it its own when it is whole."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    keys = np.frombuffer(b"".join(reference.places), dtype=np.uint8).reshape(-1, KEY_BYTES).copy()
    counts = [end - start for start, end in reference.places.values()]
    tensors = {"keys": torch.from_numpy(keys), "counts": torch.tensor(counts), "logprobs": reference.logprobs}
    unfinished = reference.path.with_name(f"{reference.path.name}.{os.getpid()}.unfinished")  # runs may start together
    try:
        reference.path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, unfinished, {"format": FORMAT, "content": _content(tensors), **made_with})
        os.replace(unfinished, reference.path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            unfinished.unlink()
        raise CacheError(f"{reference.path}: cannot be written ({error}): name another file") from error


def _read(path: Path, made_with: Mapping[str, str]) -> CachedReference:
    """Read the file, if it is whole and was made with the same."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (OSError, SafetensorError) as error:
        raise CacheError(f"{path}: is damaged, or no reference cache ({error}): {ANEW}") from error
    if said.get("format") != FORMAT:
        raise CacheError(f"{path}: is no reference cache of this version: name another file, and it is computed")
    if said.get("content") != _content(tensors):
        raise CacheError(f"{path}: is damaged, its content is not what was written: {ANEW}")
    for name, now in made_with.items():
        if said.get(name) != now:
            was = "" if name == "weights" else f" ({said.get(name)}, and here it is {now})"
            raise CacheError(f"{path}: was made with {DIFFERS[name]} than this run starts with{was}: {WAY_OUT}")
    keys = [row.tobytes() for row in tensors["keys"].numpy()]
    return _reference(path, keys, tensors["counts"].tolist(), tensors["logprobs"])


ANEW = "remove it or name another file, and it is computed anew"
DIFFERS = {"weights": "other weights", "temperature": "another temperature", "arithmetic": "another arithmetic"}


def _content(tensors: Mapping[str, Tensor]) -> str:
    """Hash what a file holds, so that a flipped bit is not taken for a log-probability."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        _update(digest, tensors[name])
    return digest.hexdigest()


def _update(digest: hashlib._Hash, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(cast(Any, tensor.contiguous().view(-1).view(torch.uint8).numpy()))
