"""The figures of `dlip.evaluation.tasks.evaluate` for an exported model, as its runner has them
(dlip/export/onnx_runner.py)."""

import numpy as np
import torch
from torch import Tensor

from dlip.evaluation.tasks import captioning, retrieval, vqa
from dlip.evaluation.tasks.base import Outcome
from dlip.export.onnx_runner import Runner

BATCH = 64


def evaluate(runner: Runner, dataset, k: int = 16) -> dict:
    """{"retrieval", "captioning", "vqa"} of pictures with captions and questions; k: candidates that are re-ranked."""
    items, longest = [dataset[i] for i in range(len(dataset))], runner.config["max_text"]
    captions = captioning.run(runner, dataset, BATCH, max_new_tokens=longest, progress=False)
    return {
        "retrieval": found(runner, items, k).figures,
        "captioning": captions.figures,
        "vqa": answered(runner, items),
    }


def found(runner: Runner, items: list, k: int) -> Outcome:
    """Retrieval by ITC, its k best re-ranked by ITM: one picture with all of its candidate texts at a time."""
    captions = [caption for item in items for caption in item.captions]
    texts, text = np.unique(captions, return_inverse=True)
    image_id = torch.tensor([item.image_id for item in items])
    caption_id = image_id.repeat_interleave(torch.tensor([len(item.captions) for item in items]))
    pictures, vectors = (
        torch.from_numpy(np.concatenate([embed(of[i : i + BATCH]) for i in range(0, len(of), BATCH)]))
        for embed, of in ((runner.embed_images, [item.image for item in items]), (runner.embed_texts, texts.tolist()))
    )

    def match(some: Tensor, counts: Tensor) -> Tensor:
        logits = [
            runner.match_logits([item.image], texts[mine].tolist())[:, 1]
            for item, mine in zip(items, some.split(counts.tolist()), strict=True)
            if len(mine)
        ]
        return torch.from_numpy(np.concatenate(logits))

    text = torch.from_numpy(text)
    return retrieval.score(retrieval.find(pictures, vectors[text], text, image_id, caption_id, captions, k, match))


def answered(runner: Runner, items: list) -> dict:
    """Figures of free answers; a picture's questions are answered together."""
    answers = [runner.answer([item.image], [question.text for question in item.questions]) for item in items]
    return vqa.score(sum(answers, []), vqa.answered(items))[0]
