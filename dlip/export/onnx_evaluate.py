"""Evaluation of an ONNX export by its runner, with the metrics of `dlip.evaluation.tasks.evaluate`."""

import numpy as np
import torch
from torch import Tensor

from dlip.evaluation.tasks import captioning, retrieval, vqa
from dlip.evaluation.tasks.base import TaskResult
from dlip.export.onnx_runner import Runner

BATCH = 64


def evaluate(runner: Runner, dataset, k: int = 16) -> dict:
    """{"retrieval", "captioning", "vqa"} of images with captions and questions; k: candidates that are re-ranked."""
    items, longest = [dataset[i] for i in range(len(dataset))], runner.config["max_text"]
    captions = captioning.run(runner, dataset, BATCH, max_new_tokens=longest, progress=False)
    return {
        "retrieval": evaluate_retrieval(runner, items, k).metrics,
        "captioning": captions.metrics,
        "vqa": evaluate_vqa(runner, items),
    }


def evaluate_retrieval(runner: Runner, items: list, k: int) -> TaskResult:
    """Retrieval by ITC, its k best candidates re-ranked by ITM, one image with all of its candidate texts at a time."""
    captions = [caption for item in items for caption in item.captions]
    texts, text = np.unique(captions, return_inverse=True)
    image_id = torch.tensor([item.image_id for item in items])
    caption_id = image_id.repeat_interleave(torch.tensor([len(item.captions) for item in items]))
    image_vectors, text_vectors = (
        torch.from_numpy(np.concatenate([embed(of[i : i + BATCH]) for i in range(0, len(of), BATCH)]))
        for embed, of in ((runner.embed_images, [item.image for item in items]), (runner.embed_texts, texts.tolist()))
    )

    def match(rows: Tensor, counts: Tensor) -> Tensor:
        logits = [
            runner.match_logits([item.image], texts[own].tolist())[:, 1]
            for item, own in zip(items, rows.split(counts.tolist()), strict=True)
            if len(own)
        ]
        return torch.from_numpy(np.concatenate(logits))

    text = torch.from_numpy(text)
    return retrieval.score(
        retrieval.rank(image_vectors, text_vectors[text], text, image_id, caption_id, captions, k, match)
    )


def evaluate_vqa(runner: Runner, items: list) -> dict:
    """Metrics of generated answers; the questions of an image are answered together."""
    answers = [runner.answer([item.image], [question.text for question in item.questions]) for item in items]
    return vqa.score(sum(answers, []), vqa.answered_questions(items))[0]
