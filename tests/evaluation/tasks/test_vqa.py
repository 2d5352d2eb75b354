"""VQA: accuracy against numbers counted by hand, ranking against likelihoods one by one."""

import pytest
import torch

from dlip.common.errors import UserError
from dlip.data.batch import Example, Question
from dlip.data.tokenizer import Tokenizer
from dlip.evaluation.tasks import vqa
from dlip.evaluation.tasks.vqa import best_answers, blind_baseline, log_likelihood, score, soft_accuracy


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


ANSWERS = ["yes", "no", "two", "red circle", "red square", "large striped red circle", "blue", "left"]


@torch.inference_mode()
def plain_likelihood(vlm, picture, question: str, answer: str) -> float:
    """log p of one answer to one question, token by token."""
    med = vlm.med.eval()
    ids, mask = vlm.tokenize([question])
    states = med.question_states(med.fuse(ids, mask, vlm.image_states([picture])))
    words, _ = vlm.tokenizer.encode([answer], first="[DEC]")
    total = 0.0
    for t in range(1, words.shape[1]):
        total += med.decode(words[:, :t], states)[0, -1].log_softmax(-1)[words[0, t]].item()
    return total


@torch.inference_mode()
def states_of(vlm, dataset):
    asked = [(i, q.text) for i, it in enumerate(dataset) for q in it.questions[:2]]
    ids, mask = vlm.tokenize(text for _, text in asked)
    rows = torch.tensor([i for i, _ in asked])
    images = vlm.image_states(it.image for it in dataset)
    return asked, vlm.med.question_states(vlm.med.fuse(ids, mask, images, rows)), mask


@torch.inference_mode()
def test_best_answers_have_the_highest_likelihood(tiny, scenes, monkeypatch):
    tiny.med.eval()
    asked, states, mask = states_of(tiny, scenes)
    plain = torch.tensor([[plain_likelihood(tiny, scenes[i].image, q, a) for a in ANSWERS] for i, q in asked])
    expected = plain.argmax(1).tolist()
    assert len(set(expected)) > 1, "the model has the same favourite everywhere: the test would show nothing"
    ids, ids_mask = tiny.tokenizer.encode(ANSWERS * len(asked), first="[DEC]")
    result = log_likelihood(tiny.med, ids, ids_mask, states, mask).view(len(asked), -1)
    torch.testing.assert_close(result, plain, atol=1e-3, rtol=0)
    assert best_answers(tiny, states, mask, ANSWERS) == expected
    monkeypatch.setattr(vqa, "PAIR_BATCH", 24)  # three questions at once
    assert best_answers(tiny, states, mask, ANSWERS) == expected


@torch.inference_mode()
def test_long_answer_list_is_filtered_by_first_token(tiny, scenes):
    """With k = 1 the first token alone decides; among first tokens of one likelihood, any of their answers may."""
    tiny.med.eval()
    _, states, mask = states_of(tiny, scenes)
    ids, _ = tiny.tokenizer.encode(ANSWERS, first="[DEC]")
    first = tiny.med.decode(ids[:1, :1].expand(len(states), -1), states, mask)[:, 0, ids[:, 1]]
    for best, logits in zip(best_answers(tiny, states, mask, ANSWERS, k=1), first, strict=True):
        assert logits[best] == logits.max()


def test_too_long_answer_is_refused(tiny):
    states, mask = torch.zeros(1, 3, tiny.med.config.image_width), torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(UserError, match=r"the answer 'red red .* is longer than the \d+ tokens that this model reads"):
        best_answers(tiny, states, mask, ["blue", "red " * 600])


def test_rows_of_a_model(tiny, scenes, monkeypatch):
    monkeypatch.setattr(vqa, "QUESTION_BATCH", 4)
    outcome = vqa.run(tiny, scenes, ANSWERS, batch_size=3, progress=False)
    rows = outcome.items["vqa"]
    questions = [(it, q) for it in scenes for q in it.questions]
    assert [(row["image_id"], row["question"]) for row in rows] == [(it.image_id, q.text) for it, q in questions]
    assert [row["answer"] for row in rows] == tiny.answer(
        [it.image for it, _ in questions], [q.text for _, q in questions]
    )
    ids, mask = tiny.tokenize(q.text for _, q in questions)
    with torch.no_grad():
        fused = tiny.med.fuse(ids, mask, tiny.image_states(it.image for it, _ in questions))
        best = best_answers(tiny, tiny.med.question_states(fused), mask, ANSWERS)
    assert [row["ranked_answer"] for row in rows] == [ANSWERS[i] for i in best]
    assert set(outcome.metrics["by_type"]) == {q.type for _, q in questions}
    mean = sum(row["ranked_accuracy"] for row in rows) / len(rows)
    assert outcome.metrics["ranked"]["accuracy"] == pytest.approx(100 * mean)
