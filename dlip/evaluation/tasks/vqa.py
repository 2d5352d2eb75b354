"""Visual question answering: generated answers, and VQA's soft accuracy.

The decoder generates answers from the states of a question fused with its image (BLIP, arXiv 2201.12086, section 5.3).
Source: Antol et al., VQA (arXiv 1505.00468), and the rules published with its evaluation.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

from dlip.common.errors import UserError
from dlip.data.answers import normalize
from dlip.data.batch import Example, Question
from dlip.evaluation.tasks.base import MetricUnavailable, Progress, TaskResult, batches, percent
from dlip.models.protocol import Measured


def run(model: Measured, dataset, batch_size: int = 64, num_beams: int = 3, progress: Progress = True) -> TaskResult:
    """Metrics of `score` for generated answers, and the items "vqa", a row for each question.

    Raises MetricUnavailable where no question has an answer.
    """
    questions, answers, images, read = [], [], [], 0
    for items in batches(dataset, batch_size, "vqa", progress):
        items = [item for item in items if any(q.answers for q in item.questions)]
        pairs = [(row, q) for row, item in enumerate(items) for q in item.questions if q.answers]
        asked = [items[row].image for row, _ in pairs], [q.text for _, q in pairs]
        answers += model.answer(*asked, num_beams, batch_size=batch_size)
        questions += [q for _, q in pairs]
        images += [(read + row, items[row].image_id) for row, _ in pairs]
        read += len(items)
    if not questions:
        raise MetricUnavailable("the data have no questions with answers")
    metrics, accuracies = score(answers, questions)
    table = [
        dict(image=i, image_id=image_id, question=q.text, type=q.type, answer=answer, accuracy=accuracy)
        for (i, image_id), q, answer, accuracy in zip(images, questions, answers, accuracies, strict=True)
    ]
    return TaskResult(metrics, {"vqa": table})


# --- scoring ----------------------------------------------------------------------------------------------


def soft_accuracy(answer: str, references: list[str]) -> float:
    """Agreement of n annotators with an answer, 0 to 1, after normalization of both.

    With n >= 10, VQA's rule: min(agreeing / 3, 1), averaged over the n subsets without one annotator. With fewer,
    min(agreeing / max(1, 0.3 n), 1), so that one of up to three is enough. Where all annotators agree, VQA's published
    program does not normalize their answer; its published rules, and this function, do.
    """
    answer = normalize(answer)
    same = [normalize(reference) == answer for reference in references]
    if len(same) < 10:
        return min(sum(same) / max(1, 0.3 * len(same)), 1)
    return sum(min((sum(same) - own) / 3, 1) for own in same) / len(same)


def score(answers: list[str], questions: list[Question]) -> tuple[dict, list[float]]:
    """Soft accuracy in percent, and each question's, 0 to 1.

    Percents: "accuracy" over all questions, "by_type" of question, and "mean_by_type", which counts every type once.
    """
    accuracies = [soft_accuracy(a, q.answers) for a, q in zip(answers, questions, strict=True)]
    by_type = defaultdict(list)
    for question, accuracy in zip(questions, accuracies, strict=True):
        by_type[question.type].append(accuracy)
    by_type = {name: percent(some) for name, some in sorted(by_type.items())}
    mean_by_type = sum(by_type.values()) / len(by_type)
    return {"accuracy": percent(accuracies), "mean_by_type": mean_by_type, "by_type": by_type}, accuracies


def blind_baseline(train: Iterable[Example], test: Iterable[Example]) -> dict:
    """Metrics of `score` for answers without seeing the image: the most frequent ones in `train`.

    Most frequent for questions of the same type with the same first three words, else of the same type, else for all.
    Raises UserError where `train` or `test` has no answered questions.
    """
    counts = defaultdict(Counter)
    for question in answered_questions(train):
        for key in _blind_keys(question):
            counts[key].update(map(normalize, question.answers))
    questions = answered_questions(test)
    if not counts or not questions:
        raise UserError("a blind baseline needs answered questions to train and to test on; name other data")
    known = [next(counts[key] for key in _blind_keys(q) if key in counts) for q in questions]
    return score([answers.most_common(1)[0][0] for answers in known], questions)[0]


def answered_questions(items: Iterable[Example]) -> list[Question]:
    """All questions that have answers, in order."""
    return [question for item in items for question in item.questions if question.answers]


def _blind_keys(question: Question) -> tuple:
    return ("words", question.type, *question.text.lower().split()[:3]), ("type", question.type), "all"
