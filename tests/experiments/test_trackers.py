"""Trackers get what the log has; one that is missing or fails never costs a run."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from dlip.common.errors import UserError
from dlip.data.scenes.dataset import SPLITS, Scenes
from dlip.experiments import trackers
from dlip.experiments.config import ExperimentConfig, HeldOutConfig
from dlip.experiments.run import run
from dlip.experiments.trackers import Reporter, check_installed
from dlip.training.config import TrainConfig

SPLITS_OF_8 = ("train-small", "val", "test")
CONFIG = TrainConfig(
    steps=4, batch_size=4, warmup=1, log_every=1, weights={"itc": 1.0, "lm": 1.0}, eval_every=2, eval_items=4
)
EXPERIMENT = ExperimentConfig(
    "scenes-student:image_layers=1,text_layers=2",
    tokenizer="scenes/teacher",
    name="alone",
    train=CONFIG,
    evaluation=HeldOutConfig(latency_repeats=0),
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for split in SPLITS_OF_8:
        monkeypatch.setitem(SPLITS, split, 8)


def logged(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_tensorboard_has_the_losses_scores_captions_and_images_of_the_log(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = run(EXPERIMENT, tmp_path / "run", tmp_path / "records.jsonl", progress=False, report_to=("tensorboard",))
    rows, found = logged(tmp_path / "run"), EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    for term in ("itc", "lm", "total"):
        scalars = [(event.step, pytest.approx(event.value)) for event in found.Scalars(f"losses/{term}")]
        assert scalars == [(row["step"], row["losses"][term]) for row in rows if "losses" in row]
    evaluations = [row for row in rows if "eval" in row]
    assert (
        [event.step for event in found.Scalars("eval/retrieval/ir@1")] == [row["step"] for row in evaluations] == [2, 4]
    )
    (last,) = found.Scalars("test/captioning/facts_f1")
    assert last.step == 4 and last.value == pytest.approx(record["metrics"]["captioning"]["facts_f1"])
    samples = evaluations[-1]["eval"]["samples"]
    assert len(samples) == 4
    text = found.Tensors("caption/3/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert text == samples[3]["caption"]
    assert found.Images("caption/3")[-1].width == Scenes("val")[3].image.shape[1]
    (settings,) = (tmp_path / "run" / "tensorboard").rglob("hparams.yml")
    assert "train.batch_size: 4" in settings.read_text().splitlines()


def test_trackio_has_one_run_also_if_it_is_resumed(tmp_path):
    """In a process of its own, as trackio reads its folder when it is imported."""
    code = f"""if True:
        import pytest
        from dlip.data.scenes.dataset import SPLITS
        from dlip.experiments.run import run
        from tests.experiments.test_trackers import EXPERIMENT, SPLITS_OF_8
        SPLITS.update(dict.fromkeys(SPLITS_OF_8, 8))
        place = {str(tmp_path / "run")!r}, {str(tmp_path / "records.jsonl")!r}
        stop = lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("dlip.training.run_folder.Run.finish", stop)
            run(EXPERIMENT, *place, progress=False, report_to=("trackio",))
        run(EXPERIMENT, *place, progress=False, report_to=("trackio",))
        import trackio
        (found,) = trackio.Api().runs("dlip")
        print(found.name)
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"TRACKIO_DIR": str(tmp_path / "db")},
    )
    assert done.returncode == 0 and "failed" not in done.stderr, done.stderr
    assert done.stdout.startswith("alone 20")  # and nothing else


def test_a_tracker_that_fails_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.TensorBoardTracker, "log", lambda *_, **__: 1 / 0)
    with pytest.warns(UserWarning, match="tensorboard failed .* whose log is complete: division by zero"):
        record = run(EXPERIMENT, tmp_path / "run", tmp_path / "r.jsonl", progress=False, report_to=("tensorboard",))
    assert record["losses"]["step"] == [1, 2, 3, 4]


def test_trackers_are_finished_where_a_run_fails(tmp_path, monkeypatch):
    finished = []
    monkeypatch.setattr(trackers.TensorBoardTracker, "finish", lambda tracker: finished.append(tracker.run_name))
    monkeypatch.setattr("dlip.experiments.run.measure", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(EXPERIMENT, tmp_path / "run", tmp_path / "r.jsonl", progress=False, report_to=("tensorboard",))
    assert finished == ["tensorboard"]


def test_unknown_and_missing_trackers_are_refused_before_the_run(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no tracker 'aim'; choose one of trackio, tensorboard, wandb"):
        run(EXPERIMENT, tmp_path / "run", tmp_path / "r.jsonl", report_to=("aim",))
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--report-to wandb needs the package wandb"):
        check_installed(("wandb",))
    assert not (tmp_path / "run").exists()


def test_samples_come_with_their_own_images():
    sent, images = {}, Scenes("val")
    reporter = Reporter(("tensorboard",), None, images)
    tracker = SimpleNamespace(log=lambda *_, **__: None, log_images=lambda values, **_: sent.update(values))
    reporter.trackers = {"tensorboard": tracker}
    reporter._send("tensorboard", {"step": 1, "eval": {"samples": [{"image_id": images[5].image_id, "caption": "a"}]}})
    assert (sent["caption/0"][0] == images[5].image).all()


def test_wandb_has_one_run_also_if_it_is_resumed(tmp_path, monkeypatch):
    made, rows = [], {}

    class Tracker:
        def __init__(self, project, **options):
            made.append(options)

        def start(self): ...

        def finish(self): ...

        def store_init_configuration(self, values): ...

        def log(self, values, step):
            rows.setdefault(step, {}).update(values)

    monkeypatch.setattr(trackers, "WandBTracker", Tracker)
    monkeypatch.setattr(trackers, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Image=lambda image, caption: (image.shape, caption)))
    experiment, place = EXPERIMENT.replace(name="a b/c:d"), (tmp_path / "run", tmp_path / "records.jsonl")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dlip.training.run_folder.Run.finish", Mock(side_effect=KeyboardInterrupt))
        run(experiment, *place, progress=False, report_to=("wandb",))
    run(experiment, *place, progress=False, report_to=("wandb",))
    first, second = made
    assert first == second and first["resume"] == "allow" and re.fullmatch(r"[\w.-]+", first["id"])
    assert {"caption/0", "caption/3", "losses/lm"} <= rows[4].keys()
