"""VQA: accuracy against numbers counted by hand, and the answers of a model."""

import pytest

from dlip.common.errors import UserError
from dlip.data.batch import Example, Question
from dlip.data.tokenizer import Tokenizer
from dlip.evaluation.tasks import vqa
from dlip.evaluation.tasks.vqa import blind_baseline, score, soft_accuracy


@pytest.mark.parametrize("same, expected", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_ten_annotators(same, expected):
    """3 of 10 say it: the 3 sets that leave one of them out give 2/3, the other 7 give 1: 0.9."""
    others = [f"other {i}" for i in range(10 - same)]
    assert soft_accuracy("Two", ["2"] * same + others) == pytest.approx(expected)


@pytest.mark.parametrize(
    "same, of, expected", [(1, 1, 1), (0, 1, 0), (1, 3, 1), (1, 5, 2 / 3), (2, 5, 1), (1, 9, 1 / 2.7), (3, 9, 1)]
)
def test_fewer_annotators(same, of, expected):
    assert soft_accuracy("cat", ["a cat"] * same + ["dog"] * (of - same)) == pytest.approx(expected)


@pytest.mark.parametrize("answer", ["can't tell", "don't know", "men's", "o'clock"])
def test_decoded_apostrophes_agree_with_annotators(answer):
    tokenizer = Tokenizer.train([answer], 100)
    (decoded,) = tokenizer.decode(tokenizer.encode([answer], first="[DEC]")[0])
    assert soft_accuracy(decoded, [answer] * 10) == 1


def test_accuracy_overall_and_by_type():
    questions = [
        Question("how many?", ["2"] * 3 + ["3"] * 7, "counting"),
        Question("how many?", ["2"], "counting"),
        Question("what color?", ["red"], "color"),
    ]
    figures, each = score(["two", "3", "Red."], questions)
    assert each == pytest.approx([0.9, 0, 1])
    assert figures["accuracy"] == pytest.approx(190 / 3)
    assert figures["by_type"] == pytest.approx({"color": 100, "counting": 45})
    assert figures["mean_by_type"] == pytest.approx(72.5)  # each type once, though counting has two questions
    untyped, _ = score(["2", "3"], [Question("how many?", ["2"]), Question("how many?", ["2"])])
    assert untyped["mean_by_type"] == untyped["accuracy"] == 50


def item(*questions: tuple[str, str, str]) -> Example:
    return Example(None, 0, [], [Question(text, [answer], type) for text, answer, type in questions])


def test_blind_baseline():
    train = [
        item(("is it red?", "no", "existence"), ("is it red?", "no", "existence"), ("Is it red?", "yes", "existence")),
        item(("is it blue?", "yes", "existence"), ("is it big?", "yes", "existence")),
        item(("how many?", "two", "counting"), ("how many?", "2", "counting"), ("how many?", "1", "counting")),
        item(("what is it of?", "red", "color"), ("and this?", "blue", "color"), ("and this?", "blue", "color")),
    ]
    test = [
        item(("what is it like?", "red", "color")),  # by type and first three words: red, though blue is more frequent
        item(("is it red?", "no", "existence")),  # known: no
        item(("is it pink?", "yes", "existence"), ("is it pink?", "no", "existence")),  # by type: yes (3 of 5)
        item(("how many?", "two", "counting")),
        item(("why?", "yes", "reason")),  # by all: yes
    ]
    figures = blind_baseline(train, test)
    assert figures["accuracy"] == pytest.approx(500 / 6)
    assert figures["by_type"] == pytest.approx({"color": 100, "counting": 100, "existence": 200 / 3, "reason": 100})
    with pytest.raises(UserError, match="answered questions"):
        blind_baseline([], test)


def test_rows_of_a_model(tiny, scenes):
    """Each question has the answer that it gets alone with its image."""
    outcome = vqa.run(tiny, scenes, batch_size=3, progress=False)
    rows = outcome.items["vqa"]
    questions = [(i, item, q) for i, item in enumerate(scenes) for q in item.questions]
    assert [(row["image"], row["question"]) for row in rows] == [(i, q.text) for i, _, q in questions]
    assert [row["image_id"] for row in rows] == [item.image_id for _, item, _ in questions]
    assert [row["answer"] for row in rows] == [tiny.answer(item.image, q.text) for _, item, q in questions]
    assert set(outcome.metrics["by_type"]) == {q.type for _, _, q in questions}
    accuracies = [row["accuracy"] for row in rows]
    assert outcome.metrics["accuracy"] == pytest.approx(100 * sum(accuracies) / len(rows))
