"""Evaluation of a model by its runner, with the metrics of `dlip.evaluation.tasks.evaluate`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from dlip.common.errors import UserError
from dlip.evaluation.tasks import captioning, retrieval, vqa
from dlip.evaluation.tasks.base import MetricUnavailable, Progress, TaskResult, batches, counter, subrange
from dlip.export.onnx_export import to_onnx
from dlip.export.onnx_runner import Runner
from dlip.models.tasks import Reranker


def run_retrieval(
    runner: Runner,
    dataset,
    k: int | None = None,
    rerank: Reranker = "itm",
    batch_size: int = 64,
    progress: Progress = True,
) -> TaskResult:
    """Retrieval by ITC, its k best candidates re-ranked by ITM, one image with all of its candidate texts at a time.

    Raises UserError for re-ranking by the decoder.
    """
    if rerank == "decoder":
        raise UserError("a model by its runner cannot rank by its decoder; leave rerank out")
    rows, items, vectors, read = [], [], [], 0
    for batch in batches(dataset, batch_size, "retrieval: images", subrange(progress, 0, 0.2)):
        if captioned := [item for item in batch if item.captions]:
            vectors.append(runner.embed_images([item.image for item in captioned]))
        rows += [row for row, item in enumerate(batch, read) if item.captions]
        items += [replace(item, image=None) for item in captioned]
        read += len(batch)
    captions = [caption for item in items for caption in item.captions]
    if not captions:
        raise MetricUnavailable("the data have no captions")
    texts, text = np.unique(captions, return_inverse=True)
    image_id = torch.tensor([item.image_id for item in items])
    caption_image = torch.arange(len(items)).repeat_interleave(torch.tensor([len(item.captions) for item in items]))
    parts = [runner.embed_texts(texts[i : i + batch_size].tolist()) for i in range(0, len(texts), batch_size)]

    def match(candidates: Tensor, counts: Tensor) -> Tensor:
        logits = [np.empty((0, 2), np.float32)]
        with counter(len(rows), "retrieval: re-ranking", subrange(progress, 0.2, 1)) as update:
            for row, own in zip(rows, candidates.split(counts.tolist()), strict=True):
                if len(own):
                    logits.append(runner.match_logits([dataset[row].image], texts[own].tolist()))
                update(1)
        return torch.from_numpy(np.concatenate(logits))

    text, image_vectors, text_vectors = map(torch.from_numpy, (text, np.concatenate(vectors), np.concatenate(parts)))
    notes = retrieval.note(k, runner.abilities)
    k = retrieval.candidates(k, dataset, runner.abilities)
    result = retrieval.score(
        retrieval.rank(
            image_vectors, text_vectors[text], runner.temperature, text, image_id, caption_image, captions, k, match
        )
    )
    result.notes |= notes
    return result


def run_vqa(
    runner: Runner,
    dataset,
    batch_size: int = 64,
    num_beams: int = 3,
    progress: Progress = True,
    answers: list[str] | None = None,
) -> TaskResult:
    """Generated answers; the questions of an image are answered together. Raises UserError for a list of answers."""
    if answers:
        raise UserError("a model by its runner cannot rank answers; leave answers out")
    generated, questions, images, read = [], [], [], 0
    for items in batches(dataset, batch_size, "vqa", progress):
        for item in items:
            if own := [question for question in item.questions if question.answers]:
                generated += runner.answer([item.image], [question.text for question in own], num_beams)
                questions += own
                images += [(read, item.image_id)] * len(own)
                read += 1
    return vqa.result(generated, questions, images)


EVALUATORS = {"retrieval": run_retrieval, "captioning": captioning.run, "vqa": run_vqa}


@contextmanager
def int8_runner(model: str) -> Iterator[tuple[Runner, float]]:
    """A model by its name as int8 graphs for `dlip.evaluate`, which last as long as the context, and the MB of its
    weights.

    Raises UserError as `to_onnx` does.
    """
    with TemporaryDirectory() as folder:
        runner = Runner(to_onnx(model, folder, int8=True)[0]["onnx-int8"], torch.get_num_threads())
        runner.name, runner.evaluators = model, EVALUATORS
        yield runner, sum((part.folder / "weights.bin").stat().st_size for part in runner.parts) / 1e6
