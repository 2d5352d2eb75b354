"""Visual question answering: answers generated or picked from a list, and VQA's soft accuracy.

The decoder generates answers from the states of a question fused with its image (BLIP, arXiv 2201.12086, section 5.3).
Source: Antol et al., VQA (arXiv 1505.00468), and the rules published with its evaluation.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from dlip.common.errors import UserError
from dlip.common.text import one_line
from dlip.data.answers import normalize
from dlip.data.batch import Example, Question
from dlip.evaluation.tasks.base import MetricUnavailable, Progress, TaskResult, batches, percent
from dlip.models.generate import generate
from dlip.models.token_ids import next_tokens
from dlip.vlm import MAX_ANSWER_TOKENS

QUESTION_BATCH = 128
PAIR_BATCH = 256  # pairs of question and candidate answer


def run(
    vlm, dataset, answers: list[str] | None = None, batch_size: int = 64, num_beams: int = 3, progress: Progress = True
) -> TaskResult:  # fmt: skip
    """Metrics of `score` for generated answers and, under "ranked", for answers picked from the list `answers`, if any.

    Items "vqa": a row for each question. Needs eval and inference mode. Raises MetricUnavailable where no question has
    an answer.
    """
    med = vlm.med.model_for("vqa")
    questions, images, generated, ranked, read = [], [], [], [], 0
    for items in batches(dataset, batch_size, "vqa", progress):
        items = [item for item in items if any(q.answers for q in item.questions)]
        if not items:
            continue
        first, read = read, read + len(items)
        pairs = [(row, q) for row, item in enumerate(items) for q in item.questions if q.answers]
        cross = med.text_encoder.cross(vlm.image_states((item.image for item in items), med))
        for start in range(0, len(pairs), QUESTION_BATCH):
            rows, batch = zip(*pairs[start : start + QUESTION_BATCH], strict=True)
            ids, mask = vlm.tokenize((q.text for q in batch), med)
            states = med.question_states(med.fuse_with(cross, ids, mask, torch.tensor(rows, device=ids.device)))
            prompt = ids.new_full((len(ids), 1), med.config.dec_id)
            generated += med.tokenizer.decode(generate(med, states, mask, prompt, num_beams, MAX_ANSWER_TOKENS))
            if answers:
                ranked += [answers[i] for i in best_answers(vlm, states, mask, answers)]
            questions += batch
            images += [(first + row, items[row].image_id) for row in rows]
    evaluated = result(generated, questions, images)
    if answers:
        evaluated.metrics["ranked"], accuracies = score(ranked, questions)
        for row, answer, accuracy in zip(evaluated.items["vqa"], ranked, accuracies, strict=True):
            row |= {"ranked_answer": answer, "ranked_accuracy": accuracy}
    return evaluated


def result(answers: list[str], questions: list[Question], images: list[tuple[int, int]]) -> TaskResult:
    """Metrics of `score` and a row for each question. images: index and id of each question's image.

    Raises MetricUnavailable where there is no question.
    """
    if not questions:
        raise MetricUnavailable("the data have no questions with answers")
    metrics, accuracies = score(answers, questions)
    table = [
        dict(image=i, image_id=image_id, question=q.text, type=q.type, answer=answer, accuracy=accuracy)
        for (i, image_id), q, answer, accuracy in zip(images, questions, answers, accuracies, strict=True)
    ]
    return TaskResult(metrics, {"vqa": table})


def best_answers(vlm, states: Tensor, mask: Tensor, answers: list[str], k: int = 128) -> list[int]:
    """Index in `answers` of each question's likeliest answer; question states [N, Q, Di], mask bool [N, Q].

    As in BLIP, only the `k` answers with the likeliest first tokens are scored in full. BLIP's code smooths the labels,
    which favors short answers; this is the plain likelihood. Raises UserError for an answer that is longer than the
    model reads.
    """
    med = vlm.med.model_for("vqa")
    ids, ids_mask = (x.to(states.device) for x in med.tokenizer.encode(answers, first="[DEC]"))  # [C, A]
    if ids.shape[1] > (limit := med.config.max_positions):
        longest = answers[ids_mask.sum(1).argmax()]
        raise UserError(f"the answer {one_line(longest)!r} is longer than the {limit} tokens that this model reads")
    if len(answers) <= k:
        chosen = torch.arange(len(answers), device=states.device).expand(len(states), -1)  # [N, K]
    else:
        first = med.decode(ids[:1, :1].expand(len(states), -1), states, mask)[:, 0]  # [N, V]
        chosen = first[:, ids[:, 1]].topk(k, 1).indices
    best = []
    for rows in torch.arange(len(states), device=states.device).split(max(1, PAIR_BATCH // chosen.shape[1])):
        candidates = chosen[rows].flatten()
        likelihood = log_likelihood(med, ids[candidates], ids_mask[candidates], states[rows], mask[rows])
        index = likelihood.view(len(rows), -1).argmax(1, keepdim=True)
        best += chosen[rows].gather(1, index).squeeze(1).tolist()
    return best


def log_likelihood(med, ids: Tensor, ids_mask: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    """log p(answer | question), [N], end token included: answers [N, A] to B questions, N / B consecutive ones each."""
    logits = med.decode(ids, states, mask)  # [N, A, V]
    return -F.cross_entropy(logits.transpose(1, 2), next_tokens(ids, ids_mask), reduction="none").sum(1)


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
