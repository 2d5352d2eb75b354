"""The teacher's own objectives: ITC, ITM, LM (and LM of answers). Each is a named term of the loss.

DLIP's L_VLP is ITC + ITM + LM. Each loss is a scalar in fp32, a mean over the batch of all processes; those that read
`Features` raise KeyError where the batch was read without wanting their task.
Source: Li et al., BLIP (arXiv 2201.12086), section 3.2; the momentum encoders, queue and soft labels are ALBEF's
(arXiv 2107.07651), sections 3.2 and 3.3.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlip.common import distributed
from dlip.data.batch import Batch
from dlip.models.features import Features, cosines
from dlip.models.med import Med


def itc_targets(image_id: Tensor, queue_id: Tensor) -> Tensor:
    """[C], [Q] -> [C, Q]: equal weight on every entry of the same picture, rows adding up to 1."""
    same = (image_id[:, None] == queue_id[None]).float()
    return same / same.sum(1, keepdim=True)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum_j targets_ij log softmax(logits)_ij, mean over the rows of [C, Q]; 0 where there is no row."""
    return -(targets * logits.float().log_softmax(1)).sum() / max(1, len(logits))


def itc(features: Features) -> Tensor:
    """Image-text contrast within the batch: cross-entropy of both directions of logits [C, C], mean of the two."""
    ids = features.contrasted(features.image_id)
    targets, logits = itc_targets(ids, ids), features.logits["itc"]
    return (soft_cross_entropy(logits, targets) + soft_cross_entropy(logits.T, targets)) / 2


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean over the labels that are not -100, of the batch of all processes. logits [..., K], labels [...]."""
    logits, labels = logits.flatten(0, -2).float(), labels.flatten()
    summed = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    return distributed.global_mean(summed, (labels >= 0).sum())


def itm(features: Features) -> Tensor:
    """Cross-entropy of "match" over the matching pairs and the mined hard negatives: logits [N, 2], labels [N]."""
    return cross_entropy(features.logits["itm"], features.labels["itm"])


def lm(features: Features, smoothing: float = 0.1) -> Tensor:
    """Next word of the caption, given its picture, with label smoothing: logits [B, T, V], labels [B, T]."""
    return cross_entropy(features.logits["lm"], features.labels["lm"], smoothing)


def vqa(features: Features, smoothing: float = 0.1) -> Tensor:
    """Next word of the answer, given the question read with its picture: logits [N, A, V], labels [N, A].

    Source: BLIP, section 5.3 (VQA as the generation of answers).
    """
    return cross_entropy(features.logits["vqa"], features.labels["vqa"], smoothing)


def tags(logits: Tensor, targets: Tensor) -> Tensor:
    """Which kinds of things a picture shows: binary cross-entropy, mean over logits and targets [B, K].

    Beyond the paper, in place of the ImageNet weights that its image encoders begin with.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), targets)


class MomentumITC(nn.Module):
    """ITC against moving averages of the encoders, a queue of their latest vectors, and soft labels.

    queue: vectors kept (0: the batch alone), each process an equal part of them. momentum: 0.995 in BLIP. alpha: weight
    of the soft labels (0: hard ones); BLIP's 0.4, reached linearly over the first epoch (BLIP's pre-training: two).

    Once an optimiser step, as in BLIP, the averages move and the step's vectors enter the queue: `update` does it after
    the optimiser's, for all micro-batches together.
    """

    def __init__(self, med: Med, queue: int = 0, momentum: float = 0.995, alpha: float = 0.4):
        super().__init__()
        self.size, self.momentum, self.alpha = queue // distributed.world_size(), momentum, alpha
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        names = ("vision_model", "text_encoder", "vision_proj", "text_proj")
        self.encoders = nn.ModuleDict({name: copy.deepcopy(getattr(med, name)) for name in names})
        self.encoders.requires_grad_(False)
        width = med.config.embed_dim
        self.register_buffer("images", F.normalize(torch.randn(self.size, width), dim=-1))
        self.register_buffer("texts", F.normalize(torch.randn(self.size, width), dim=-1))
        self.register_buffer("ids", torch.full((self.size,), -1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(self, med: Med) -> None:
        """The queue takes in the vectors since the last step; m <- momentum m + (1 - momentum) student."""
        for images, texts, ids in self.waiting:
            self._push(images, texts, ids)
        self.waiting.clear()
        for name, own in self.encoders.items():
            torch._foreach_lerp_(list(own.parameters()), list(getattr(med, name).parameters()), 1 - self.momentum)

    @torch.no_grad()
    def embed(self, med: Med, batch: Batch) -> tuple[Tensor, Tensor]:
        """ITC vectors [B, E] of pictures and captions by the averages, L2-normalised, in fp32."""
        e = self.encoders
        images = e["vision_proj"](e["vision_model"](med.normalize(batch.images))[:, 0])
        texts = e["text_proj"](e["text_encoder"](batch.ids, batch.mask)[:, 0])
        return F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)

    def forward(self, features: Features, med: Med, batch: Batch, progress: float = 1.0) -> Tensor:
        """The mean of both directions. progress: share of the soft labels' ramp that is done, 0 to 1.

        Every process compares the C pictures and captions of all with the vectors that it holds itself, those of its
        own part of the batch and of the queue.
        """
        images, texts = self.embed(med, batch)
        here, ids = features.captioned, features.image_id[features.captioned]
        same = (features.contrasted(features.image_id)[:, None] == torch.cat([ids, self.ids])).float()  # [C, held]
        hard, alpha = same / distributed.all_sum(same.sum(1, keepdim=True)), self.alpha * min(1.0, progress)
        loss = 0.0
        for own, mine, other, queue in (
            (features.image_embed, images, texts, self.texts),
            (features.text_embed, texts, images, self.images),
        ):
            held = torch.cat([other[here], queue])
            own, mine = (cosines(features.contrasted(x), held) / features.temp for x in (own, mine))  # [C, held]
            targets = alpha * log_shares(mine).exp().detach() + (1 - alpha) * hard
            loss = loss - (targets * log_shares(own)).sum()
        self.waiting.append((images[here], texts[here], ids))
        return loss * distributed.batch_world_size() / (2 * max(1, len(hard)))

    def _push(self, images: Tensor, texts: Tensor, ids: Tensor) -> None:
        if self.size:
            n = min(len(images), self.size)
            at = (self.place + torch.arange(n, device=images.device)) % self.size
            self.images[at], self.texts[at], self.ids[at] = images[:n], texts[:n], ids[:n]
            self.place.copy_((self.place + n) % self.size)


def log_shares(logits: Tensor) -> Tensor:
    """Log-softmax of logits [C, K] over the columns of all processes, each of which holds its own."""
    logits = logits.float()
    if distributed.batch_world_size() == 1:
        return logits.log_softmax(1)
    return logits - distributed.all_gather(logits.logsumexp(1)[None]).logsumexp(0)[:, None]
