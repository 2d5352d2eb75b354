"""Visual question answering: answers written freely or picked from a list, and the official soft accuracy.

Source: Antol et al., VQA (arXiv 1505.00468), with the rules published beside its evaluation. Answers come
from the decoder, which reads the states of a question that has seen its picture (BLIP, arXiv 2201.12086,
section 5.3).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from dlip.common.errors import UserError
from dlip.common.text import one_line
from dlip.data.answers import normalize
from dlip.data.batch import Item, Question
from dlip.evaluation.tasks.base import Outcome, Progress, Unavailable, batches, percent
from dlip.models.generate import generate
from dlip.models.token_ids import next_tokens

QUESTIONS = 128  # questions that are answered at once
PAIRS = 256  # pairs of question and candidate answer that the decoder reads at once


def run(
    vlm, dataset, answers: list[str] | None = None, k: int = 128, batch_size: int = 64, num_beams: int = 3,
    max_new_tokens: int = 10, progress: Progress = True,
) -> Outcome:  # fmt: skip
    """Figures of `score` for free answers and, under "ranked", for those picked from the list `answers`, if any.

    In eval and inference mode. Rows "vqa": one a question. Raises Unavailable where no question has an
    answer.
    """
    med = vlm.med.model_for("vqa")
    questions, image_id, free, ranked = [], [], [], []
    for items in batches(dataset, batch_size, "vqa", progress):
        asked = [(row, q) for row, item in enumerate(items) for q in item.questions if q.answers]
        if not asked:
            continue
        cross = med.text_encoder.cross(vlm.image_states((item.image for item in items), med))
        for start in range(0, len(asked), QUESTIONS):
            rows, some = zip(*asked[start : start + QUESTIONS], strict=True)
            ids, mask = vlm.texts(q.text for q in some)
            states = med.question_states(med.fuse_with(cross, ids, mask, torch.tensor(rows, device=ids.device)))
            begin = ids.new_full((len(ids), 1), med.config.dec_id)
            free += vlm.tokenizer.decode(generate(med, states, mask, begin, num_beams, max_new_tokens))
            if answers:
                ranked += [answers[i] for i in best_answers(vlm, states, mask, answers, k)]
            questions += some
            image_id += [items[row].image_id for row in rows]
    if not questions:
        raise Unavailable("the data have no questions with answers")

    figures, accuracies = score(free, questions)
    rows = [
        dict(image_id=i, question=q.text, type=q.type, answer=answer, accuracy=accuracy)
        for i, q, answer, accuracy in zip(image_id, questions, free, accuracies, strict=True)
    ]
    if answers:
        figures["ranked"], accuracies = score(ranked, questions)
        for row, answer, accuracy in zip(rows, ranked, accuracies, strict=True):
            row |= {"ranked_answer": answer, "ranked_accuracy": accuracy}
    return Outcome(figures, {"vqa": rows})


def best_answers(vlm, states: Tensor, mask: Tensor, answers: list[str], k: int = 128) -> list[int]:
    """Each question's likeliest answer as its place in `answers`; states [N, Q, Di], mask bool [N, Q].

    Of more than `k` answers, the k with the likeliest first tokens are scored in full, as in BLIP. Raises UserError for
    one that is longer than the model reads.
    """
    med = vlm.med.model_for("vqa")
    ids, ids_mask = (x.to(states.device) for x in vlm.tokenizer.encode(answers, first="[DEC]"))  # [C, A]
    if ids.shape[1] > (most := med.config.max_positions):
        longest = answers[ids_mask.sum(1).argmax()]
        raise UserError(f"the answer {one_line(longest)!r} is longer than the {most} tokens that this model reads")
    if len(answers) <= k:
        chosen = torch.arange(len(answers), device=states.device).expand(len(states), -1)  # [N, K]
    else:
        first = med.decode(ids[:1, :1].expand(len(states), -1), states, mask)[:, 0]  # [N, V]
        chosen = first[:, ids[:, 1]].topk(k, 1).indices
    best = []
    for rows in torch.arange(len(states), device=states.device).split(max(1, PAIRS // chosen.shape[1])):
        asked = chosen[rows].flatten()
        likelihood = log_likelihood(med, ids[asked], ids_mask[asked], states[rows], mask[rows])
        place = likelihood.view(len(rows), -1).argmax(1, keepdim=True)
        best += chosen[rows].gather(1, place).squeeze(1).tolist()
    return best


def log_likelihood(med, ids: Tensor, ids_mask: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    """log p(answer | question) [N], end token included: answers [N, A] to B questions, N / B in a row each."""
    logits = med.decode(ids, states, mask)  # [N, A, V]
    return -F.cross_entropy(logits.transpose(1, 2), next_tokens(ids, ids_mask), reduction="none").sum(1)


# --- scoring ----------------------------------------------------------------------------------------------


def soft_accuracy(answer: str, references: list[str]) -> float:
    """How far the annotators agree with an answer, 0 to 1; both sides are normalised.

    With ten annotators or more, VQA's rule: min(same / 3, 1), averaged over the sets that leave one of them
    out. With fewer, its three of ten is read as a share: min(same / max(1, 0.3 n), 1), so that one of up to
    three is enough. Where all annotators agree, the published program leaves their answer as it is; the
    published rules do not.
    """
    said = normalize(answer)
    same = [normalize(reference) == said for reference in references]
    if len(same) < 10:
        return min(sum(same) / max(1, 0.3 * len(same)), 1)
    return sum(min((sum(same) - own) / 3, 1) for own in same) / len(same)


def score(answers: list[str], questions: list[Question]) -> tuple[dict, list[float]]:
    """Soft accuracy in percent, "accuracy" of all and "by_type" of question; and of each question, 0 to 1."""
    accuracies = [soft_accuracy(a, q.answers) for a, q in zip(answers, questions, strict=True)]
    by_type = defaultdict(list)
    for question, accuracy in zip(questions, accuracies, strict=True):
        by_type[question.type].append(accuracy)
    by_type = {name: percent(some) for name, some in sorted(by_type.items())}
    return {"accuracy": percent(accuracies), "by_type": by_type}, accuracies


def blind_baseline(train: Iterable[Item], test: Iterable[Item]) -> dict:
    """Figures of `score` for a guesser that sees no picture: it says what `train` answers most often.

    To the same question; where that is new, to questions of its type; where that is new too, to all. Raises
    UserError where one of the two has no questions.
    """
    counts = defaultdict(Counter)
    for question in answered(train):
        for key in _blind_keys(question):
            counts[key].update(map(normalize, question.answers))
    questions = answered(test)
    if not counts or not questions:
        raise UserError("a blind baseline needs answered questions to learn from and to test on; name other data")
    known = [next(counts[key] for key in _blind_keys(q) if key in counts) for q in questions]
    return score([answers.most_common(1)[0][0] for answers in known], questions)[0]


def answered(items: Iterable[Item]) -> list[Question]:
    """All questions that have answers, in order."""
    return [question for item in items for question in item.questions if question.answers]


def _blind_keys(question: Question) -> tuple:
    return ("text", question.text.lower()), ("type", question.type), "all"
