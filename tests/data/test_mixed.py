"""Images without captions or questions add nothing to the losses that need them, in any mixture."""

from dataclasses import replace

import pytest
import torch

from dlip.training.config import TrainConfig
from dlip.training.learner import Learner
from dlip.training.teacher import Teacher
from dlip.training.weights import weights
from dlip.vlm import VLM

AT, HR, KD, VLP = weights("at"), weights("hr"), weights("kd"), weights("vlp")

WORDED = [term for term in {**VLP, **HR, **AT, **KD} if term not in ("vqa", "kd.vqa", "hr.image")]


def losses_of(batch, make_med, **changes) -> tuple[dict[str, torch.Tensor], Learner]:
    config = TrainConfig(weights=dict.fromkeys(WORDED, 1.0), **changes)
    teacher = VLM(make_med(0), None)
    torch.manual_seed(2)
    learner = Learner(VLM(make_med(1, image_width=24, image_heads=3), None), teacher, config)
    torch.manual_seed(3)
    return learner(batch, Teacher(teacher.med), 0, 1.0), learner


def silenced(batch, rows: list[int]):
    batch = replace(batch, ids=batch.ids.clone(), mask=batch.mask.clone())
    batch.ids[rows, 1:], batch.mask[rows, 1:] = 0, False
    return batch


@pytest.mark.parametrize("changes", [{}, dict(momentum=0.9, queue=4)])
def test_rows_without_caption_add_no_loss(changes, make_med, make_batch):
    whole = make_batch(size=6)
    part = replace(whole, **{k: t[[0, 1, 3, 4]] for k, t in vars(whole).items() if t is not None})
    (mixed, learner), (captioned, _) = (losses_of(b, make_med, **changes) for b in (silenced(whole, [2, 5]), part))
    for term in WORDED:
        assert captioned[term] > 1e-4, term
        torch.testing.assert_close(mixed[term], captioned[term], msg=term)
    sum(mixed.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in learner.parameters())
    if momentum := learner.terms["itc"].momentum:
        assert momentum.waiting[0][2].tolist() == part.image_id.tolist()


@pytest.mark.parametrize("changes", [{}, dict(momentum=0.9, queue=4)])
def test_batch_without_any_caption_has_zero_loss(changes, make_med, make_batch):
    losses, learner = losses_of(silenced(make_batch(), list(range(5))), make_med, **changes)
    assert losses.keys() == set(WORDED) and all(loss.item() == 0 and loss.requires_grad for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is None or not p.grad.any() for p in learner.parameters())
