"""The drills themselves: each can be called, a short one of each kind holds, and none is blind to what goes wrong."""

import inspect
import json
from pkgutil import resolve_name

import pytest

from dlip.common.errors import UserError
from drills import DRILLS, bounds, inputs, killed
from drills.__main__ import main


@pytest.mark.parametrize("name", DRILLS)
def test_each_has_a_run_of_so_many_times(name):
    assert inspect.signature(resolve_name(f"drills.{name}:run")).parameters["times"].default > 0


@pytest.mark.slow
def test_a_hundred_bad_inputs_and_their_record(tmp_path, capsys):
    path = tmp_path / "drills.jsonl"
    assert main(["inputs", "--times", "100", "--results", str(path)]) == 0, capsys.readouterr().out
    (record,) = map(json.loads, path.read_text().splitlines())
    assert record["drill"] == "inputs" and record["faults"] == [] and record["settings"]["inputs"] >= 100
    assert set(record["counts"]) == set(inputs.KINDS)
    assert all(sum(found.values()) >= 10 for found in record["counts"].values())
    assert capsys.readouterr().out.endswith("all have held\n")


@pytest.mark.slow
def test_two_killed_exports():
    settings, counts, faults = killed.run(2, 0, ("export",))
    assert counts["export"]["kills"] == 2 and counts["export"]["ends"] >= 1 and faults == []


def test_the_outcomes_of_tests_are_read_from_what_pytest_tells(tmp_path):
    kinds = ("", "<skipped/>", "<failure/>", "<error/>")
    cases = "".join(f'<testcase classname="tests.test_a" name="{i}">{kind}</testcase>' for i, kind in enumerate(kinds))
    (tmp_path / "told.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    counts, failed = bounds.outcomes(tmp_path / "told.xml")
    assert counts == {"passed": 1, "skipped": 1, "failed": 2} and failed == ["tests.test_a::2", "tests.test_a::3"]
    assert bounds.outcomes(tmp_path / "none.xml")[1] == ["the tests did not come to an end"]


def test_unknown_drills_are_named(capsys):
    assert main(["earthquake"]) == 2
    assert "there is no drill 'earthquake'; choose one of " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "outcome"),
    [
        (None, "used"),
        (UserError("this is wrong; mend it"), "refused"),
        (ValueError("broken"), "ValueError: 'broken' at test_drills.py:"),
    ],
)
def test_what_an_input_came_to(raised, outcome):
    def call():
        if raised:
            raise raised

    assert inputs.tried(call).startswith(outcome)


def test_what_differs_is_told(tmp_path):
    work = killed.Work("", killed.files)
    (tmp_path / "same").write_text("1")
    (tmp_path / "other").write_text("2")
    (tmp_path / ".left").write_text("")
    wanted = killed.files(tmp_path) | {"other": "?", "gone": "?"}
    del wanted[".left"]
    assert killed.differences(work, tmp_path, wanted) == ["other differs", "gone is missing", ".left is left"]


def test_a_command_that_fails_is_told(tmp_path):
    (said,) = killed.finish(killed.Work("export nothing --int8", killed.files), tmp_path / "here")
    assert said.startswith("exit 2: ") and "there is no model" in said
