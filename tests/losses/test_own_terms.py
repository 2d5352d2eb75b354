"""Each task's loss against a hand-written or torch's own one; the momentum encoders and their queue by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlip.losses import TERMS, At, Setup
from dlip.losses.contrastive import NO_ID, MomentumITC, itc, itc_targets
from dlip.losses.term import cross_entropy
from dlip.models.features import Features, Trace, Want
from dlip.training.config import TrainConfig


def features(ids=None, **values) -> Features:
    ids = torch.arange(4) if ids is None else torch.tensor(ids)
    mask = torch.ones(len(ids), 3, dtype=torch.bool)
    return Features(traces={}, mask=mask, image_id=ids, temp=torch.tensor(0.07), rows=torch.arange(len(ids)), **values)


def own(name: str, out: Features, **options) -> torch.Tensor:
    """A term without a teacher, of features."""
    term = TERMS[name](Setup(None, None, TrainConfig(**options)))
    return term(At(out, None, None, None, 0.0))


def test_itc_of_distinct_images_is_clip_loss():
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(4, 8), dim=-1) for _ in range(2))
    logits = image @ text.T / 0.07
    clip = (F.cross_entropy(logits, torch.arange(4)) + F.cross_entropy(logits.T, torch.arange(4))) / 2
    torch.testing.assert_close(itc(features(logits={"itc": logits})), clip)


def test_other_captions_of_an_image_are_positives():
    """Pictures 0 and 1 are the same: their rows share the mass, which torch's loss with probabilities confirms."""
    targets = torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(itc_targets(torch.tensor([5, 5, 1, 2])), targets)
    logits = torch.randn(4, 4)
    expected = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    torch.testing.assert_close(itc(features([5, 5, 1, 2], logits={"itc": logits})), expected)
    best = torch.where(targets > 0, 20.0, -20.0)
    assert itc(features([5, 5, 1, 2], logits={"itc": best})).item() == pytest.approx(
        torch.tensor([2.0, 2.0, 1.0, 1.0]).log().mean().item(), abs=1e-5
    )


def test_itm_by_hand():
    """Four matching pairs, then wrong ones; index 1 is "match"."""
    logits = torch.tensor([[0.0, 2.0]] * 4 + [[0.0, 2.0]] * 2)
    expected = (4 * torch.tensor(-2.0).exp().log1p() + 2 * torch.tensor(2.0).exp().log1p()) / 6
    labels = torch.tensor([1, 1, 1, 1, 0, 0])
    torch.testing.assert_close(own("itm", features(logits={"itm": logits}, labels={"itm": labels})), expected)


def test_itm_without_negatives(make_med, make_batch):
    batch = make_batch()
    batch.image_id[:] = 3
    out = make_med()(batch, Want(frozenset({"itm"})))
    assert out.logits["itm"].shape == (5, 2) and own("itm", out).isfinite()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_lm_and_vqa_against_torch(make_med, make_batch, smoothing):
    """Of the captions the words after the prompt count and no pads; label smoothing is torch's."""
    med, batch = make_med(prompt_ids=(20, 21)), make_batch()
    out = med(batch, Want(frozenset({"lm", "vqa"})))
    for task, ids, mask, skip in (("lm", batch.ids, batch.mask, 2), ("vqa", batch.answer_ids, batch.answer_mask, 0)):
        rows, words = [], []
        for i, n in enumerate(mask.sum(1).tolist()):
            rows.append(out.logits[task][i, skip : skip + n - 1])
            words.append(ids[i, 1:n])
        expected = nn.CrossEntropyLoss(label_smoothing=smoothing)(torch.cat(rows), torch.cat(words))
        torch.testing.assert_close(own(task, out, label_smoothing=smoothing), expected)


def test_smoothing_by_hand():
    logits, labels = torch.tensor([[[1.0, 2.0, 3.0], [9.0, 9.0, 9.0]]]), torch.tensor([[2, -100]])
    log_p = torch.tensor([1.0, 2.0, 3.0]).log_softmax(0)
    torch.testing.assert_close(cross_entropy(logits, labels, 0.3), -(0.7 * log_p[2] + 0.3 * log_p.mean()))


def test_losses_without_labels_are_zero():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = cross_entropy(logits, torch.full((2, 3), -100), 0.1)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


# --- momentum ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def start(make_med, make_batch):
    """A model, its features of a batch, and the batch."""
    med, batch = make_med(), make_batch()
    return med, med(batch, Want(frozenset({"itc"}))), batch


def test_first_momentum_loss_equals_plain_itc(start):
    med, out, batch = start
    momentum = MomentumITC(med, queue=0, momentum=0.995, alpha=0.0)
    torch.testing.assert_close(momentum(out, med, batch), itc(out))
    soft = MomentumITC(med, queue=0, alpha=0.4)
    torch.testing.assert_close(soft(out, med, batch, progress=0.0), itc(out))
    assert not torch.allclose(soft(out, med, batch, progress=1.0), itc(out))


def test_soft_labels_by_hand(start):
    """At the first step the momentum encoders are the model's, so that its own softmax is the soft part."""
    med, out, batch = start
    queue, alpha = 3, 0.4 * 0.5
    momentum = MomentumITC(med, queue, alpha=0.4)
    texts, images = momentum.texts.clone(), momentum.images.clone()
    loss, expected = momentum(out, med, batch, progress=0.5), 0.0
    hard = torch.cat([torch.eye(5), torch.zeros(5, queue)], 1)
    pairs = ((out.image_embed, out.text_embed, texts), (out.text_embed, out.image_embed, images))
    for own, other, queued in pairs:
        logits = own @ torch.cat([other.detach(), queued]).T / med.temp
        targets = alpha * logits.detach().softmax(1) + (1 - alpha) * hard
        torch.testing.assert_close(targets.sum(1), torch.ones(5))
        expected = expected + F.cross_entropy(logits, targets) / 2
    torch.testing.assert_close(loss, expected)
    gradients, expected_gradients = (
        torch.autograd.grad(x, (med.vision_proj.weight, med.temp), retain_graph=True) for x in (loss, expected)
    )
    torch.testing.assert_close(gradients, expected_gradients)


def test_alpha_is_constant_after_the_first_epoch(start):
    med, out, batch = start
    one, later = (MomentumITC(med, alpha=0.4)(out, med, batch, progress) for progress in (1.0, 7.5))
    torch.testing.assert_close(one, later)


def test_moving_average_by_hand(start):
    med, out, batch = start
    momentum = MomentumITC(med, momentum=0.995)
    name = "vision_model.post_layernorm.weight"
    old = dict(momentum.encoders.named_parameters())[name].clone()
    new = dict(med.named_parameters())[name]
    with torch.no_grad():
        new += 1.0
    for _ in range(2):
        momentum.update(med)
    expected = old * 0.995**2 + (0.005 * 0.995 + 0.005) * new
    torch.testing.assert_close(dict(momentum.encoders.named_parameters())[name], expected)
    assert not any(p.requires_grad for p in momentum.encoders.parameters())


def test_momentum_vectors_are_of_the_momentum_encoders(start):
    med, out, batch = start
    momentum = MomentumITC(med, momentum=0.5)
    images, texts = momentum.embed(med, batch)
    torch.testing.assert_close(images, out.image_embed)
    torch.testing.assert_close(texts, out.text_embed)
    with torch.no_grad():
        med.vision_proj.weight.neg_()
    torch.testing.assert_close(momentum.embed(med, batch)[0], images)
    momentum.update(med)
    assert not torch.allclose(momentum.embed(med, batch)[0], images)


def test_the_queue_wraps_around(start):
    """Seven places, five vectors a step: the newest overwrite the oldest."""
    med, out, batch = start
    momentum = MomentumITC(med, queue=7, momentum=1.0)  # encoders that stand still: every step has the same vectors
    assert momentum.ids.tolist() == [NO_ID] * 7
    places = []
    for start_id in (10, 20, 30):
        out.image_id = torch.arange(5) + start_id
        momentum(out, med, batch)
        momentum.update(med)
        places.append(momentum.place.item())
    assert momentum.ids.tolist() == [34, 23, 24, 30, 31, 32, 33] and places == [5, 3, 1]
    torch.testing.assert_close(momentum.images, out.image_embed[[4, 3, 4, 0, 1, 2, 3]])
    torch.testing.assert_close(momentum.texts, out.text_embed[[4, 3, 4, 0, 1, 2, 3]])


def test_queue_smaller_than_a_batch(start):
    med, out, batch = start
    momentum = MomentumITC(med, queue=3)
    momentum(out, med, batch)
    momentum.update(med)
    assert momentum.ids.tolist() == [100, 101, 102]


def test_queued_vectors_of_the_same_image_are_positives(start):
    med, out, batch = start
    momentum = MomentumITC(med, queue=5, momentum=1.0, alpha=0.0)
    momentum(out, med, batch)
    momentum.update(med)
    again = momentum(out, med, batch)
    pairs = ((out.image_embed, out.text_embed), (out.text_embed, out.image_embed))
    logits = [own @ torch.cat([other, other]).T / 0.07 for own, other in pairs]
    targets = torch.cat([torch.eye(5)] * 2, 1) / 2
    torch.testing.assert_close(again, sum(F.cross_entropy(x, targets) for x in logits) / 2)


def test_momentum_update_follows_all_micro_batches(start):
    """Two of them leave averages and queue alone until the step, which moves the averages once and takes both in."""
    med, out, batch = start
    momentum = MomentumITC(med, queue=12, momentum=0.9)
    name = "vision_proj.weight"
    before = momentum.encoders.state_dict()[name].clone()
    with torch.no_grad():
        med.vision_proj.weight += 1.0
    for start_id in (10, 20):
        out.image_id = torch.arange(5) + start_id
        momentum(out, med, batch)
    torch.testing.assert_close(momentum.encoders.state_dict()[name], before)
    assert momentum.ids.tolist() == [NO_ID] * 12
    momentum.update(med)
    torch.testing.assert_close(momentum.encoders.state_dict()[name], before + 0.1)
    assert momentum.ids.tolist() == [*range(10, 15), *range(20, 25), NO_ID, NO_ID] and momentum.place == 10


def test_tags_by_hand():
    """Read from the patches, without [CLS]; finer grids are averaged over the cells of the tags."""
    states = torch.tensor([[[9.0, 9.0], [0.0, 100.0], [-100.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])  # [1, 1 + 4, 2]

    def tag_loss(targets: list):
        setup = Setup(SimpleNamespace(config=SimpleNamespace(image_width=2)), None, None, tags=2)
        term, batch = TERMS["tags"](setup), SimpleNamespace(tags=torch.tensor(targets))
        term.head = nn.Identity()
        trace = Trace({"states": {-1: 0}})
        trace.keep("states", 0, states)
        return term(At(replace(features([0]), traces={"image": trace}), None, batch, None, 0.0))

    loss = tag_loss([[[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    torch.testing.assert_close(loss, torch.tensor(6 * math.log(2) / 8))
    mean = tag_loss([[[0.0, 1.0]]])  # of the patches: [-25, 25]
    torch.testing.assert_close(mean, torch.tensor(0.0), atol=1e-6, rtol=0)


def test_soft_labels_are_those_of_the_momentum_encoders(make_med, make_batch):
    """Also once the student has moved away from them."""
    med, batch = make_med(), make_batch()
    momentum = MomentumITC(med, alpha=0.4)
    with torch.no_grad():
        med.vision_proj.weight.neg_()
    out = med(batch, Want(frozenset({"itc"})))
    images, texts = momentum.embed(med, batch)
    expected = 0.0
    for own, slow, other in ((out.image_embed, images, texts), (out.text_embed, texts, images)):
        targets = 0.4 * (slow @ other.T / med.temp).softmax(1) + 0.6 * torch.eye(5)
        expected = expected + F.cross_entropy(own @ other.T / med.temp, targets.detach()) / 2
    torch.testing.assert_close(momentum(out, med, batch), expected)


def test_moving_average_of_every_encoder(make_med):
    med = make_med()
    momentum = MomentumITC(med, momentum=0.9)
    before = {name: p.clone() for name, p in momentum.encoders.named_parameters()}
    with torch.no_grad():
        for p in med.parameters():
            p.add_(1.0)
    momentum.update(med)
    for name, p in momentum.encoders.named_parameters():
        torch.testing.assert_close(p, before[name] + 0.1, msg=name)
