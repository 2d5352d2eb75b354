"""Floor and ceiling of the metrics on a split of scenes: what a blind guesser scores, and what the ground truth does.

Both have the form of `dlip.evaluate`. Nothing is drawn at random: where chance decides, the figure is its
expectation.
"""

from collections.abc import Sequence

import numpy as np

from dlip.common.errors import UserError
from dlip.data.batch import Example
from dlip.data.scenes.dataset import Scenes
from dlip.data.scenes.facts import count_facts
from dlip.data.scenes.truth import caption_facts, parse_caption
from dlip.data.scenes.world import ATTRIBUTES, Scene
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
        for bound, (metrics, notes) in (
            (floor, captioning_floor(texts, text_scenes, train)), (ceiling, captioning_ceiling(texts, text_scenes)),
        ):  # fmt: skip
            bound["captioning"] = metrics
            bound["notes"] = {f"captioning.{name}": note for name, note in notes.items()}
    if "vqa" in tasks:
        floor["vqa"], ceiling["vqa"] = vqa.blind_baseline(train, texts), vqa_ceiling(texts)
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
    """ "tr@1" ... "ir@10" from (own, size) of each direction: see `_chance`."""
    return {
        f"{name}@{k}": 100 * float(_chance(k, *sizes).mean())
        for name, sizes in (("tr", tr), ("ir", ir))
        for k in RECALLS
    }


def _chance(k: int, own: np.ndarray, size: np.ndarray | int) -> np.ndarray:
    """Probability that the first k of `size` items in random order have one of the `own` among them, [Q]."""
    misses = [(size - own - i).clip(0) / np.maximum(size - i, 1) for i in range(k)]
    return 1 - np.prod(misses, 0)


def true_images(captions: Sequence[str], scenes: Sequence[Scene]) -> list[np.ndarray]:
    """For each caption the indices of the scenes that all its claims are true of, in order.

    Scenes that lack one of its objects, its count or its background are ruled out by index; the rest, few, are checked
    claim by claim.
    """
    index, true_of = _SceneIndex(scenes), {}
    for caption in dict.fromkeys(captions):
        candidates = np.flatnonzero(index.may_hold(caption))
        true_of[caption] = np.array([i for i in candidates if _is_true(caption, scenes[i])], int)
    return [true_of[caption] for caption in captions]


def _is_true(caption: str, scene: Scene) -> bool:
    return all(fact.true for fact in caption_facts(caption, scene))


class _SceneIndex:
    """Which scenes show an object of some attributes, by comparing arrays."""

    def __init__(self, scenes: Sequence[Scene]):
        self.counts = np.array([len(scene.objects) for scene in scenes])
        self.backgrounds = np.array([scene.background for scene in scenes])
        most = self.counts.max()
        self.values = {  # attribute -> [scenes, objects], "" where a scene has fewer
            name: np.array([[getattr(o, name) for o in s.objects] + [""] * (most - len(s.objects)) for s in scenes])
            for name in ATTRIBUTES
        }
        self.known: dict[tuple, np.ndarray] = {}

    def shows(self, claims: tuple[tuple[str, str], ...]) -> np.ndarray:
        """bool [scenes]: whether one object has all of these (attribute, value)."""
        if claims not in self.known:
            self.known[claims] = np.all([self.values[name] == value for name, value in claims], 0).any(1)
        return self.known[claims]

    def may_hold(self, caption: str) -> np.ndarray:
        """bool [scenes]: false where an object, a count or a background of the caption is not in the scene."""
        parsed, possible = parse_caption(caption), np.ones(len(self.counts), bool)
        for mention in parsed.mentions:
            possible &= self.shows(mention.claims)
        for _, number in parsed.counts:
            possible &= self.counts == number
        for background in parsed.backgrounds:
            possible &= self.backgrounds == background
        return possible


# --- captioning and questions -----------------------------------------------------------------------------------------


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


def vqa_ceiling(items: Sequence[Example]) -> dict:
    """Metrics of the annotators' most frequent answers."""
    questions = vqa.answered_questions(items)
    return vqa.score([max(q.answers, key=q.answers.count) for q in questions], questions)[0]
