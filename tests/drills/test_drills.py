"""A short run of the drills, and whether they notice faults."""

import json

import pytest

from dlip.common.errors import UserError
from drills import bounds, inputs, killed
from drills.__main__ import main


@pytest.mark.slow
def test_a_hundred_bad_inputs_and_their_record(tmp_path, capsys):
    path = tmp_path / "drills.jsonl"
    assert main(["inputs", "--times", "100", "--results", str(path)]) == 0, capsys.readouterr().out
    (record,) = map(json.loads, path.read_text().splitlines())
    assert record["drill"] == "inputs" and record["faults"] == [] and record["settings"]["inputs"] >= 100
    assert set(record["counts"]) == set(inputs.KINDS)
    assert all(sum(counts.values()) >= 10 for counts in record["counts"].values())
    assert capsys.readouterr().out.endswith("all passed\n")


@pytest.mark.slow
def test_a_killed_export():
    settings, counts, faults = killed.run(1, 0, ("export",))
    assert counts["export"]["kills"] == 1 and counts["export"]["ends"] >= 1 and faults == []


def test_outcomes_are_read_from_a_report_of_pytest(tmp_path):
    kinds = ("", "<skipped/>", "<failure/>", "<error/>")
    cases = "".join(f'<testcase classname="tests.test_a" name="{i}">{kind}</testcase>' for i, kind in enumerate(kinds))
    (tmp_path / "report.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    counts, failed = bounds.read_report(tmp_path / "report.xml")
    assert counts == {"passed": 1, "skipped": 1, "failed": 2} and failed == ["tests.test_a::2", "tests.test_a::3"]
    assert bounds.read_report(tmp_path / "none.xml")[1] == ["the tests did not finish"]


def test_unknown_drill_is_refused(capsys):
    assert main(["earthquake"]) == 2
    assert "there is no drill 'earthquake'; choose one of " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "used"),
        (UserError("this is wrong; mend it"), "refused"),
        (ValueError("broken"), "ValueError: 'broken' at test_drills.py:"),
    ],
)
def test_outcome_of_an_input(error, outcome):
    def call():
        if error:
            raise error

    assert inputs.outcome_of(call).startswith(outcome)


def test_differences_are_listed(tmp_path):
    scenario = killed.Scenario("", killed.files)
    (tmp_path / "same").write_text("1")
    (tmp_path / "other").write_text("2")
    (tmp_path / ".left").write_text("")
    expected = killed.files(tmp_path) | {"other": "?", "gone": "?"}
    del expected[".left"]
    faults = ["other differs", "gone is missing", ".left is unexpected"]
    assert killed.differences(scenario, tmp_path, expected) == faults


def test_failed_command_is_a_fault(tmp_path):
    (fault,) = killed.finish(killed.Scenario("export nothing --bf16", killed.files), tmp_path / "run")
    assert fault.startswith("exit 2: ") and "there is no model" in fault
