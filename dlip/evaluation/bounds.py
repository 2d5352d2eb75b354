"""Floor and ceiling of the metrics on a split of scenes: what a blind guesser scores, and what the ground truth does.

Both have the form of `dlip.evaluate`. Nothing is drawn at random: where chance decides, the figure is its expectation.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np

from dlip.common.errors import UserError
from dlip.data.batch import Example
from dlip.data.scenes.dataset import Scenes
from dlip.data.scenes.facts import count_facts
from dlip.data.scenes.truth import caption_facts, parse_caption
from dlip.data.scenes.world import Scene
from dlip.evaluation.tasks import captioning, vqa
from dlip.evaluation.tasks.retrieval import RECALLS
from dlip.models.tasks import TASKS

TRAIN_SPLIT = "train-small"
"""Split that the blind guesser knows."""


def bounds(
    dataset,
    tasks: Sequence[str] = tuple(TASKS),
    generate_limit: int | None = None,
    train: Sequence[Example] | None = None,
) -> dict:
    """{"floor", "ceiling"}, each as `evaluate` with the same tasks and `generate_limit` returns it.

    train: what the blind guesser knows; by default all of `TRAIN_SPLIT`. Raises UserError for data other than scenes.
    """
    if not dataset.has_scenes:
        raise UserError(f"bounds need the ground truth of scenes, which {dataset.name} lacks; drop --bounds")
    train = Scenes(TRAIN_SPLIT) if train is None else train
    items = [dataset[i] for i in range(len(dataset))]
    scenes = [dataset.scene(i) for i in range(len(dataset))]
    texts, text_scenes = items[:generate_limit], scenes[:generate_limit]
    about = {"data": dataset.name, "split": dataset.split}
    floor, ceiling = ({"model": name} | about | {"notes": {}} for name in ("blind guesser", "ground truth"))
    if "retrieval" in tasks:
        floor["retrieval"], ceiling["retrieval"] = retrieval_floor(items), retrieval_ceiling(items, scenes)
    if "captioning" in tasks:
        captions = captioning_floor(texts, text_scenes, train), captioning_ceiling(texts, text_scenes)
        for bound, (metrics, notes) in zip((floor, ceiling), captions, strict=True):
            bound["captioning"] = metrics
            bound["notes"] = {f"captioning.{name}": note for name, note in notes.items()}
    if "vqa" in tasks:
        questions = vqa.answered_questions(texts)
        usual = [max(q.answers, key=q.answers.count) for q in questions]  # the annotators' most frequent answers
        floor["vqa"], ceiling["vqa"] = vqa.blind_baseline(train, texts), vqa.score(usual, questions)[0]
    return {"floor": floor, "ceiling": ceiling}


# --- retrieval --------------------------------------------------------------------------------------------------------


def retrieval_floor(items: Sequence[Example]) -> dict[str, float]:
    """Expected recalls of a random order, in percent: k / N for an image; any of its captions will do for a caption."""
    captions = np.array([len(item.captions) for item in items])
    texts = np.ones(captions.sum(), int)
    return _recalls((captions, captions.sum()), (texts, len(items)))


def retrieval_ceiling(items: Sequence[Example], scenes: Sequence[Scene]) -> dict[str, float]:
    """Expected recalls, in percent, of a matcher that knows which captions are true of which images, and no more.

    It ranks what is true first, in random order: no model can tell an image from another that its caption is true of.
    """
    true = true_images([caption for item in items for caption in item.captions], scenes)
    images = np.array([len(some) for some in true])
    captions = np.bincount(np.concatenate(true), minlength=len(items))
    own = np.array([len(item.captions) for item in items])
    return _recalls((own, captions), (np.ones(len(images), int), images))


def _recalls(tr: tuple, ir: tuple) -> dict[str, float]:
    """ "tr@1" ... "ir@10" from (own, size) of each direction: the probability that the first k of `size` items in
    random order have one of the `own` among them."""
    out = {}
    for name, (own, size) in (("tr", tr), ("ir", ir)):
        for k in RECALLS:
            misses = [(size - own - i).clip(0) / np.maximum(size - i, 1) for i in range(k)]
            out[f"{name}@{k}"] = 100 * float((1 - np.prod(misses, 0)).mean())
    return out


def true_images(captions: Sequence[str], scenes: Sequence[Scene]) -> list[list[int]]:
    """For each caption the indices of the scenes that all its claims are true of, in order.

    Only scenes that show each of its objects are checked claim by claim.
    """

    @cache
    def showing(claims: tuple[tuple[str, str], ...]) -> set[int]:
        has_all = lambda shape: all(getattr(shape, name) == value for name, value in claims)  # noqa: E731
        return {i for i, scene in enumerate(scenes) if any(map(has_all, scene.objects))}

    @cache
    def true_of(caption: str) -> list[int]:
        parsed, possible = parse_caption(caption), set(range(len(scenes)))
        for mention in parsed.mentions:
            possible &= showing(mention.claims)
        for _, number in parsed.counts:
            possible = {i for i in possible if len(scenes[i].objects) == number}
        for background in parsed.backgrounds:
            possible = {i for i in possible if scenes[i].background == background}
        return [i for i in sorted(possible) if all(fact.true for fact in caption_facts(caption, scenes[i]))]

    return [true_of(caption) for caption in captions]


# --- captioning -------------------------------------------------------------------------------------------------------


def captioning_floor(items: Sequence[Example], scenes: Sequence[Scene], train: Sequence[Example]) -> tuple[dict, dict]:
    """Metrics and notes of captions of training images, one each in turn.

    They are fluent and of the right form but say nothing of the image. A single caption that scores best for all
    images would be fitted to the metric, and differ from metric to metric.
    """
    known = [train[i % len(train)].captions for i in range(len(items))]
    guesses = [captions[i % len(captions)] for i, captions in enumerate(known)]
    metrics, _, notes = captioning.score(guesses, [item.captions for item in items])
    return metrics | captioning.facts(sum(map(count_facts, guesses, scenes))), notes


def captioning_ceiling(items: Sequence[Example], scenes: Sequence[Scene]) -> tuple[dict, dict]:
    """Metrics and notes of the references, each against the image's others, and their facts against the scene."""
    tables, counts = [], 0
    for i in range(min(len(item.captions) for item in items)):
        captions = [item.captions[i] for item in items]
        others = [item.captions[:i] + item.captions[i + 1 :] for item in items]
        metrics, _, notes = captioning.score(captions, others)
        tables.append(metrics)
        counts += sum(map(count_facts, captions, scenes))
    means = {}
    for name in tables[0]:
        values = [table[name] for table in tables]
        means[name] = None if None in values else sum(values) / len(values)
    return means | captioning.facts(counts), notes
