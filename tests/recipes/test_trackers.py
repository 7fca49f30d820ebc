"""--report-to: what a run measured, and its settings, reach the trackers that transformers knows by these names."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.recipes.conftest import Align, metrics_of

SFT = ("sft", "--model", "model", "--data", "pairs.jsonl", "--eval-data", "few_pairs.jsonl", "--steps", 2)


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Name -> step -> value, of all that tensorboard's own reader finds."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    events = reader.EventAccumulator(str(folder)).Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}


def test_tensorboard_reads_back_every_metric_of_every_step_and_the_settings(align: Align, place: Path, tmp_path: Path):
    pytest.importorskip("tensorboard")
    (place / "few_pairs.jsonl").write_text("".join((place / "pairs.jsonl").read_text().splitlines(True)[:8]))
    align(*SFT, "--report-to", "tensorboard", "--directory", tmp_path / "run")
    written, found = metrics_of(tmp_path / "run"), scalars(tmp_path / "run" / "align")
    assert [line["step"] for line in written] == [0, 1, 2] and "eval/loss" in found
    for line in written:
        for name in line.keys() - {"step"}:
            assert found[name][int(line["step"])] == pytest.approx(line[name])
    (settings,) = (tmp_path / "run" / "align").rglob("hparams.yml")
    assert "sft.optimizer.learning_rate: 2.0e-05" in settings.read_text()


def test_an_agent_is_tracked_too(align: Align, tmp_path: Path):
    pytest.importorskip("tensorboard")
    small = ("--eval-episodes", 2, "--num-envs", 2, "--rollout-steps", 8, "--env-steps", 32)
    align("classic", "ppo", "--env", "CartPole-v1", *small, "--report-to", "tensorboard", "--directory", tmp_path)
    assert scalars(tmp_path / "align")["eval/episode/return"].keys() == {0, 2}


def test_a_tracker_that_is_not_installed_is_named_with_what_to_install(align: Align, tmp_path: Path):
    if importlib.util.find_spec("trackio"):
        pytest.skip("trackio is installed")
    told = align(*SFT, "--report-to", "trackio", "--directory", tmp_path / "run", code=2)
    assert "pip install trackio" in told and not (tmp_path / "run").exists()
