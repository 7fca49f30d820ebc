"""Mixtures: the share of each part, what is repeated and what is drawn, and where a row came from."""

from __future__ import annotations

from collections import Counter

import pytest

from align.data import read_prompts
from align.mixture import mix
from align.rows import DataError, Row


def part(name: str, size: int) -> list[Row]:
    return [Row(f"{name}:{number}", {"prompt": f"{name} {number}"}) for number in range(size)]


def test_every_part_has_its_share_of_as_many_rows_as_there_are_together():
    rows = mix([(part("a", 80), 1.0), (part("b", 20), 3.0)])
    assert Counter(row.origin[0] for row in rows) == {"a": 25, "b": 75}
    counts = Counter(row.origin for row in rows)
    assert all(counts[f"b:{number}"] in (3, 4) for number in range(20)), "75 of 20 are three times all, and 15 more"
    assert all(count == 1 for origin, count in counts.items() if origin[0] == "a")


def test_shares_that_are_those_of_the_sizes_change_nothing():
    parts = [(part("a", 30), 0.6), (part("b", 20), 0.4)]
    assert mix(parts) == [*parts[0][0], *parts[1][0]]


def test_what_is_drawn_depends_on_the_seed_alone():
    parts = [(part("a", 100), 0.1), (part("b", 100), 0.9)]
    assert mix(parts) == mix(parts) != mix(parts, seed=1)


def test_a_tiny_share_is_one_row_and_origins_are_told_in_faults():
    rows = mix([(part("a", 3), 1e-9), ([Row("b.jsonl:7", {"prompt": 5})], 1.0)])
    assert [row.origin[0] for row in rows] == ["a", *"bbbb"]
    with pytest.raises(DataError, match=r"^b\.jsonl:7: prompt: expected a string"):
        read_prompts(rows)


def test_what_makes_no_mixture_is_refused():
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(DataError, match="a weight in a mixture must be above 0"):
            mix([(part("a", 1), weight)])
    for parts in ([], [(part("a", 0), 1.0)]):
        with pytest.raises(DataError, match="needs parts, and each of them rows"):
            mix(parts)
