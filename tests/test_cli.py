"""The commands as a user types them: what they print, their exit codes, one line for a mistake."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from dlip.cli import COMMANDS, main, parse
from dlip.data.folders.write import write_folder
from dlip.data.scenes.dataset import SPLITS, Scenes
from dlip.experiments import ablation
from dlip.experiments.grids import FULL, GRIDS, TEACHER, TEACHER_ROW
from dlip.experiments.history import model_record
from dlip.records import floors, outcomes, read
from dlip.records.write import append
from tests.helpers import ONE_PAIR, make_record

TINY = ["--limit", "64", "--steps", "2", "--batch-size", "8", "--test-split", "val", "--test-limit", "20"]
TINY += ["--eval-items", "8", "--latency-repeats", "0"]


def help_of(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as done:
        main([*words, "--help"])
    assert done.value.code == 0
    return capsys.readouterr().out


def test_help_lists_the_commands(capsys):
    text = help_of(capsys)
    for name in COMMANDS:
        assert f"\n    {name}" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_covers_every_option_and_ends_with_an_example(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = help_of(capsys, *name.split())
    command = COMMANDS[name]
    assert text.endswith(f"example:\n  {command.example}\n") and parse(shlex.split(command.example)[1:])
    sections = text.partition("usage:")[2].partition("\n\n")[2]
    flags = re.findall(r"^  (--?[\w-]+).*?(?:  +|\n +)([A-Z]\w+.*|show this.*|hr.*)$", sections, re.MULTILINE)
    assert len(flags) == len(re.findall(r"^  --?[\w-]+", sections, re.MULTILINE)) > 1
    assert len({doc for _, doc in flags}) == len(flags)


def test_parsing_does_not_import_torch():
    code = (
        "import sys, dlip.cli; dlip.cli.parse(['evaluate', '--model', 'm']); "
        "print({'torch', 'pandas', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_predictions_are_printed_on_request(capsys):
    words = ["evaluate", "--model", "scenes/student", "--limit", "2", "--tasks", "vqa", "--latency-repeats", "0"]
    for more in ([], ["--items"]):
        assert main([*words, *more, "--json", "-"]) == 0
        assert ("items" in json.loads(capsys.readouterr().out)) == bool(more)


def test_models_as_text_and_as_json(capsys):
    assert main(["models"]) == 0
    assert "dlip-small" in capsys.readouterr().out
    assert main(["models", "--json", "-"]) == 0
    assert "blip-base" in json.loads(capsys.readouterr().out)["models"]


def test_data_counts(capsys):
    assert main(["data", "scenes", "--json", "-"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["splits"]["test"] == {"images": 1000, "captions": 5000, "questions": 6000}
    assert figures["faults"] == []


def test_train_then_distill_then_evaluate(tmp_path, capsys, monkeypatch):
    """The main workflow on a few images: train a teacher, distill it, evaluate the student."""
    monkeypatch.setitem(SPLITS, "train-small", 64)  # bounds read all of it
    results = str(tmp_path / "records.jsonl")
    teacher, student = str(tmp_path / "teacher"), str(tmp_path / "student")
    common = [*TINY, "--results", results, "--json", "-"]
    assert main(["train", "--size", "scenes-student", "--role", "teacher", "--out", teacher, *common]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["role"], first["train_images"], first["data"], first["split"]) == ("teacher", 64, "scenes", "val")
    distill = ["distill", "--size", "scenes-student", "--teacher", teacher, "--out", student, "--weights", "hr,at,kd"]
    assert main([*distill, *common]) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["role"] == "distilled" and second["command"].startswith("dlip distill --size scenes-student")
    assert set(second["losses"]) > {"hr.image", "at.cross", "kd.itm", "step"}
    with open(results) as file:
        assert [json.loads(line)["id"] for line in file] == [first["id"], second["id"]]

    evaluate = ["evaluate", "--model", student, "--split", "val", "--limit", "20", "--latency-repeats", "0"]
    evaluate += ["--generate-limit", "5", "--bounds", "--results", results]
    assert main([*evaluate, "--tasks", "retrieval,vqa", "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert 0 <= figures["retrieval"]["tr@1"] <= 100 and 0 <= figures["vqa"]["accuracy"] <= 100
    assert figures["bounds"]["floor"]["retrieval"]["ir@1"] == pytest.approx(100 / 20)
    assert figures["bounds"]["ceiling"]["vqa"]["mean_by_type"] == 100 and "captioning" not in figures["bounds"]["floor"]
    record = read(results)[-1]
    items = outcomes(record)
    assert len(items["tr1"]) == 20 and len(items["vqa"]) == 5 * 6 and floors(record)["ir1"] == pytest.approx(5)
    assert figures["efficiency"]["params_m"] == second["efficiency"]["params_m"]
    assert main([*distill, *common, "--lr", "0.1"]) == 2  # another configuration in the same folder
    assert "holds a run with another train" in capsys.readouterr().err


def test_ablate_prints_recorded_runs(tmp_path, capsys, monkeypatch):
    """The table, the verdicts and a failure, without training."""
    results, (untrained, *_) = tmp_path / "runs.jsonl", GRIDS["init"].rows
    for row in (TEACHER_ROW, untrained):
        seed = model_record(TEACHER)["seed"] if row.role == "teacher" else 0
        append(
            make_record("x", row.role, seed=seed, tr1=61.5, items=ONE_PAIR)
            | {"ablation": {"hash": ablation.identity(row, FULL)}},
            results,
        )
    words = ["ablate", "init", "--only", "neither trained", "--seeds", "1"]
    words += ["--results", str(results), "--out", str(tmp_path)]
    assert main([*words, "--conclusions"]) == 0
    printed = capsys.readouterr().out
    cells = ["neither", "trained", "59.5", "57.1", "61.5", "80.0", "61.5", "74.5", "92.2", "101.4", "1"]
    assert cells in [line.split() for line in printed.splitlines()]
    assert printed.count("CANNOT BE TOLD") == 7
    assert main([*words, "--json", "-"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["tr1"], row["tr1_sd"]) for row in figures["tables"]["init"]] == [
        ("teacher", 61.5, None), ("neither trained", 61.5, None),
    ]  # fmt: skip
    assert figures["failed"] == {} and figures["conclusions"] is None
    assert main(["ablate", "--conclusions", "--results", str(results), "--json", "-"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["tables"] == {} and {row["number"] for row in figures["conclusions"]} == set(range(1, 8))
    assert figures["spreads"] == []  # the records lack floors
    monkeypatch.setattr(ablation, "ablate", lambda *_: {"init: a, seed 0": "it broke", "init: b, seed 1": "again"})
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert "init: a, seed 0 failed (it broke), and 1 more" in printed and printed.count("\n") == 1
    assert main([*words, "--no-train"]) == 0


def test_advise(tmp_path, capsys):
    for record in (
        make_record("t", "teacher", tr1=80.0, params=4.0),
        make_record("s", params=1.0, command="dlip distill x"),
    ):
        append(record, tmp_path / "runs.jsonl")
    words = ["advise", "--max-params", "2", "--metric", "tr1", "--results", str(tmp_path / "runs.jsonl")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith('Within 2 M parameters: "s" (distilled, 1 seed') and printed.endswith(
        "  trained by: dlip distill x\n"
    )
    assert main([*words, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["student"]["kept"]["tr1"] == 87.5
    append(make_record("far") | {"data": "photos"}, tmp_path / "runs.jsonl")
    assert main(words) == 2 and "choose with --data, --split and --test-images" in capsys.readouterr().err
    assert main([*words, "--data", "none"]) == 2
    assert "no record is of none; choose one of scenes test; photos test" in capsys.readouterr().err
    scenes = [*words, "--data", "scenes", "--split", "test"]
    assert main(scenes) == 0 and capsys.readouterr().out == printed
    for flag, cost in (("--max-gflops", "GFLOPs"), ("--max-latency", "ms")):
        assert main([words[0], flag, "0.001", *words[3:], "--data", "scenes"]) == 0
        assert f"within 0.001 {cost}" in capsys.readouterr().out
    append(make_record("larger", items=ONE_PAIR), tmp_path / "runs.jsonl")
    assert main(scenes) == 2 and "scenes test; scenes test, 1 image" in capsys.readouterr().err
    assert main([*scenes, "--test-images", "1"]) == 0 and 'Within 2 M parameters: "larger"' in capsys.readouterr().out
    assert main([*words[:1], *words[3:]]) == 2
    assert "advice needs a budget" in capsys.readouterr().err


TRAIN = ["train", "--size", "scenes-student", "--out", "run"]
INVALID_VALUES = """steps=0 lr=nan lr=-1 lr=inf clip=nan clip=0 warmup=-1 weight-decay=-1 label-smoothing=7 momentum=2
    alpha=-1 decay=nan queue=-8 workers=-1 seed=-1 eval-every=-1 eval-items=-4""".split()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        *(([*TRAIN, f"--{word}"], f"--{word.partition('=')[0]} is ") for word in INVALID_VALUES),
        ([*TRAIN, "--weights", "nothing"], "there is no loss term 'nothing'"),
        ([*TRAIN, "--weights", "hr"], "needs a teacher"),
        ([*TRAIN, "--weights", "itc=nan"], "--weights['itc'] is nan; it has to be a number"),
        ([*TRAIN, "--weights", "itc=-1"], "the weight of itc is -1"),
        ([*TRAIN, "--start-term-at", "lm=-5"], "lm joins after -5 of 1000 steps"),
        ([*TRAIN, "--start-term-at", "lm=1000"], "lm joins after 1000 of 1000 steps"),
        ([*TRAIN, "--candidates", "-1"], "--candidates is -1; give a whole number, at least 0"),
        ([*TRAIN, "--lr", "fast"], "invalid float value: 'fast'; see dlip train --help"),
        (["train", "--size", "scenes-student", "--out", ""], "--out is empty"),
        (["train", "--size", "scenes-student"], "dlip train needs --out; see dlip train --help"),
        (["distill", "--size", "scenes-student", "--out", "x"], "dlip distill needs --teacher"),
        ([*TRAIN, "--teacher", "scenes/teacher"], "unrecognized arguments: --teacher scenes/teacher; see dlip train"),
        ([*TRAIN, "--role", "distilled"], "invalid choice: 'distilled'"),
        ([*TRAIN, "--data", ""], "--data is empty"),
        ([*TRAIN, "--data", "nowhere"], "there is no folder nowhere"),
        ([*TRAIN, "--json", "."], "--json . cannot be a file"),
        ([*TRAIN, "--results", "taken/records.jsonl"], "--results taken/records.jsonl cannot be a file"),
        ([*TRAIN, "--results", "/dev/null"], "--results /dev/null is not a file on a disk"),
        ([*TRAIN, "--results", ""], "--results is empty"),
        (
            [*TRAIN, "--results", "r.jsonl", "--json", "./r.jsonl"],
            "--json would replace the records of --results r.jsonl",
        ),
        ([*TRAIN, "--json", ""], "--json is empty"),
        (["evaluate", "--model", "scenes/student", "--data", "photos", "--tasks", "vqa,run"], "there is no task 'run'"),
        (["train", "--size", "huge", "--out", "x"], "there is no model size 'huge'"),
        (["train", "--size", "scenes-student:max_positions=4", "--out", "x"], "model.max_text is 40; give 3 to"),
        (["train", "--size", "scenes-student:image_width=16+32", "--out", "x"], "give whole numbers"),
        (["train", "--size", "scenes-student:vocab_size=7", "--out", "x"], "changes 'vocab_size'"),
        (["evaluate", "--model", "nowhere"], "there is no model 'nowhere'"),
        (["evaluate", "--model", "scenes/teacher", "--split", "nope"], "no split 'nope'"),
        (["evaluate", "--model", "m", "--precision", "int8", "--rerank", "decoder"], "cannot rank by its decoder"),
        (["evaluate", "--model", "scenes/student", "--beams", "0"], "--beams is 0; give a whole number, at least 1"),
        (["evaluate", "--model", "scenes/student", "--latency-repeats", "-5"], "--latency-repeats is -5"),
        (["bench", "captioning", "--rounds", "0"], "--rounds is 0; give a whole number, at least 1"),
        (["bench", "captioning", "--data", "scenes"], "the benchmark captioning has no option --data"),
        (["bench", "speed"], "invalid choice: 'speed'"),
        (["data", "recaption", "photos", "--out", "taken", "--writer", "m", "--splits", "val"], "taken"),
        (["data", "recaption", "photos", "--out", "x"], "dlip data recaption needs --writer"),
        (["data", "recaption", "photos", "--out", "x", "--writer", "nowhere", "--splits", "val"], "no model 'nowhere'"),
        (["ablate"], "there is no grid to run; choose one of objectives, modalities"),
        (["ablate", "depth"], "there is no grid 'depth'"),
        (["ablate", "fusion", "--only", "seven"], "there is no row 'seven' in fusion"),
        (["ablate", "--conclusions", "--only", "VLP"], "--only and --seeds choose runs of a grid"),
        (["advise", "--max-params", "1"], "no records at results/ablations.jsonl"),
        (["app", "--models", ","], "has an empty name"),
    ],
)
def test_invalid_options_are_refused(words, sentence, tmp_path, monkeypatch, capsys):
    """In one line with exit code 2, before any work is done: no file is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("")
    write_folder(tmp_path / "photos", {"val": Scenes("val", size=2)})
    before = sorted(tmp_path.rglob("*"))
    assert main(words) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.err.startswith("dlip: ")
    assert printed.err.count("\n") == 1 and printed.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_closed_stdout_ends_a_command_silently():
    command = [sys.executable, "-m", "dlip", "models", "--json", "-"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run.stdout.close()
    assert run.stderr.read() == "" and run.wait() == 141


@pytest.mark.parametrize(
    ("command", "options", "kept"),
    [
        ("app", [], False),
        ("ablate", ["fusion"], True),
        ("data", ["photos"], False),
        ("data recaption", ["photos", "--writer", "m", "--out", "x"], True),
    ],
)
def test_ctrl_c_mentions_checkpoints_if_the_command_has_them(command, options, kept, monkeypatch, capsys):
    def interrupted(_):
        """Interrupted."""
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, command, replace(COMMANDS[command], function=interrupted))
    assert main([*command.split(), *options]) == 130
    printed = capsys.readouterr().err
    assert printed.startswith("dlip: interrupted") and ("checkpoint" in printed) == kept and printed.count("\n") == 1


def test_warning_is_one_line(tmp_path):
    file = tmp_path / "runs.jsonl"
    file.write_text("torn\n")
    words = ["advise", "--max-params", "1", "--results", str(file)]  # in a process, as pytest warns in its own way
    done = subprocess.run([sys.executable, "-m", "dlip", *words], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.startswith(f"dlip: {file} line 1 ") and done.stderr.count("\n") == 1


def test_ascii_terminal_shows_escapes(monkeypatch):
    screen = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(screen, "ascii", write_through=True))
    monkeypatch.setattr("dlip.cost.sizes.models_text", lambda table: "± " + os.fsdecode(b"caf\xe9"))
    assert main(["models"]) == 0 and screen.getvalue().startswith(b"\\xb1 caf\\udce9\n")


def test_json_is_written_into_devices_and_links(tmp_path):
    assert main(["models", "--json", "/dev/null"]) == 0 and Path("/dev/null").is_char_device()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert main(["models", "--json", str(tmp_path / "link")]) == 0 and (tmp_path / "link").is_symlink()
    assert "models" in json.loads((tmp_path / "file").read_text())


def test_cache_limit_is_enforced(tmp_path, capsys):
    words = ["distill", "--teacher", "scenes/teacher", "--size", "scenes-student", "--limit", "96", "--cache"]
    words += [str(tmp_path / "cache"), "--cache-gb", "0.001", "--weights", "hr", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    assert "more than the 0.001 GB allowed; raise --cache-gb" in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_out_of_memory_is_one_line(error, monkeypatch, capsys):
    monkeypatch.setattr("dlip.cost.sizes.models_table", Mock(side_effect=error))
    assert main(["models"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("dlip: not enough memory") and printed.count("\n") == 1
    monkeypatch.setattr("dlip.cost.sizes.models_table", Mock(side_effect=RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError, match="a fault of ours"):
        main(["models"])


def test_a_full_disk_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("dlip.cost.sizes.models_table", Mock(side_effect=OSError(28, "No space left on device", "/x")))
    assert main(["models"]) == 2
    assert capsys.readouterr().err == "dlip: /x: No space left on device; choose another path, or free disk space\n"


def test_an_output_that_cannot_be_written_is_refused_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    assert main(["models", "--json", str(tmp_path / "a.json")]) == 2
    assert "a.json is not writable" in capsys.readouterr().err
