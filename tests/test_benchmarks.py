"""The benchmarks of the gradient step run, and measure what they say; the sides of peers need the peers."""

import importlib
import math
import re
import sys
from pathlib import Path

import pytest

from benchmarks import grpo_step_vs_trl, logprobs
from benchmarks.growth import Cost, Series, Size, cost_of, draw, exponent, rows_of_table

ROOT = Path(__file__).parent.parent
RUN = re.findall(r"python -m (benchmarks\.\w+) \$\(BENCH_ARGS\)", (ROOT / "Makefile").read_text())


@pytest.mark.parametrize("name", RUN)
def test_every_benchmark_that_make_runs_has_a_quick_form_and_figures_in_the_readme(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main()
    assert ended.value.code == 0 and "--quick" in capsys.readouterr().out
    assert f"python -m {name}" in (ROOT / "benchmarks" / "README.md").read_text()


@pytest.mark.parametrize("prompts", [False, True])
def test_all_ways_to_score_tokens_agree_on_sums_and_on_the_gradient(prompts):
    ours, entropy, plain = (
        logprobs.turn_of(side, logprobs.Task(words=64, prompts=prompts, times=1)).sums
        for side in ("align", "align+entropy", "plain")
    )
    assert entropy == pytest.approx(plain, rel=logprobs.CLOSE) and ours == pytest.approx(plain[:2], rel=logprobs.CLOSE)


def test_the_lengths_of_the_long_step_are_lognormal_with_the_median_that_is_told():
    alive, chances = 1.0, []
    for place in range(1, grpo_step_vs_trl.LONGEST + 1):
        chances.append(alive * grpo_step_vs_trl.hazard(place))
        alive -= chances[-1]
    median, sigma = grpo_step_vs_trl.MEDIAN, grpo_step_vs_trl.SIGMA
    assert sum(chances[:median]) == pytest.approx(0.5)
    below = 0.5 * (1 + math.erf(1 / math.sqrt(2)))  # one sigma above the median
    assert sum(chances[: round(median * math.exp(sigma))]) == pytest.approx(below, abs=0.01)


def test_the_long_step_runs_with_completions_of_different_lengths_that_are_all_learned_from():
    task = grpo_step_vs_trl.Task("7M", prompts=1, warm=1, steps=1)
    told = grpo_step_vs_trl.train_align(task)
    assert told.seconds > 0 and told.peak > told.before and 20 < told.length < grpo_step_vs_trl.LONGEST


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the most memory since a time")
def test_growth_measures_that_a_prompt_forwarded_once_takes_less_memory_and_draws_it(tmp_path):
    series = Series("group", "group", (8, 16), Size(prompt=256, completion=4, budget=16_384))
    costs = [cost_of(size, 1) for size in series.sizes()]
    assert all(cost["once"].memory < cost["whole"].memory for cost in costs)
    assert all(cost["once"].learning > 0 and cost["once"].sampling > 0 for cost in costs)
    assert [len(row) for row in rows_of_table(series, costs)] == [6, 6, 6]
    draw(tmp_path / "deep" / "growth.png", [(series, costs)])
    assert (tmp_path / "deep" / "growth.png").stat().st_size > 1000


def test_an_exponent_is_1_where_costs_double_with_sizes():
    assert exponent([8, 16, 64], [2.0, 5.0, 16.0]) == 1
    line = Series("tokens", "completion", (1, 4))
    flat = [{"once": Cost(1, 2, 3), "whole": Cost(1, 8, 3)}, {"once": Cost(1, 4, 3), "whole": Cost(1, 128, 3)}]
    assert rows_of_table(line, flat)[-1] == ["exponent", "**0.00**", "**0.50**", "**2.00**", "**0.00**", "**0.00**"]
