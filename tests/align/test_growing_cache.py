"""A cache that grows in place holds what transformers' own holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from align import growing_cache
from align import sampler as sampler_module
from align.growing_cache import growing
from tests.align.test_sampler import completions, make, prompts
from tests.models import EVERY, stirred_model


def filled(kind: str = "llama", rows: int = 3, tokens: int = 5) -> Any:
    ids = torch.randint(8, 61, (rows, tokens), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return stirred_model(kind)(input_ids=ids, use_cache=True).past_key_values


@pytest.mark.parametrize("block", [1, 3, 64])
def test_appends_keeps_and_appends_leave_what_the_layers_of_transformers_hold(block, monkeypatch):
    monkeypatch.setattr(growing_cache, "BLOCK", block)
    plain, roomy = filled(), filled()
    roomy.layers[:] = growing(roomy.layers)
    generator = torch.Generator().manual_seed(1)

    def append(rows: int) -> None:
        for number, layer in enumerate(plain.layers):
            keys, values = torch.randn(2, rows, layer.keys.shape[1], 1, layer.keys.shape[3], generator=generator)
            for got, expected in zip(
                roomy.update(keys, values, number), plain.update(keys, values, number), strict=True
            ):
                assert torch.equal(got, expected)
        assert roomy.get_seq_length() == plain.get_seq_length()
        assert roomy.get_mask_sizes(1, 0) == plain.get_mask_sizes(1, 0)

    for kept in ([0, 0, 1, 1, 2, 2], [0, 2, 3, 5], [1, 2], [1]):
        for each in (plain, roomy):
            each.reorder_cache(torch.tensor(kept))
        for _ in range(4):
            append(len(kept))


def test_a_token_is_written_where_there_is_room_and_nothing_else_moves():
    cache = filled()
    cache.layers[:] = growing(cache.layers)
    places = set()
    for _ in range(growing_cache.BLOCK + 1):
        keys, _ = cache.update(*torch.randn(2, 3, 2, 1, 8), 0)
        places.add(keys.data_ptr())
    assert len(places) == 2, "one for the first block, and one after it"


def test_layers_of_a_window_or_a_state_are_left_as_they_are():
    for kind in ("gpt_oss", "lfm2"):
        layers = filled(kind).layers
        same = [new is old for new, old in zip(growing(layers), layers, strict=True)]
        assert same == [True, False]


@pytest.mark.parametrize("kind", EVERY)
def test_growing_in_place_changes_no_completion_and_no_log_probability(kind, monkeypatch):
    monkeypatch.setattr(sampler_module, "COMPACT_BELOW", 0.99)  # whenever a row ends
    plain = make(kind).sample(prompts(13, 3, 20), group_size=4, seed=0, step=0)
    monkeypatch.setattr(sampler_module, "GROWS_FROM", 24)  # some tokens after the longest prompt
    monkeypatch.setattr(growing_cache, "BLOCK", 3)
    grown = make(kind).sample(prompts(13, 3, 20), group_size=4, seed=0, step=0)
    assert completions(grown) == completions(plain)
    assert_close(grown.logprobs, plain.logprobs)
    assert_close(grown.entropy, plain.entropy)
