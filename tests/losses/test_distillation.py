"""Distillation terms: 0 for equal models, learnable for others, unchanged by padding, right for unequal shapes."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlip.losses.attention_maps import map_loss
from dlip.losses.hidden_states import centered, cosine_loss
from dlip.losses.logits import logit_loss
from dlip.models.features import Want
from dlip.models.tasks import SOURCES
from dlip.training.config import TrainConfig
from dlip.training.learner import Learner
from dlip.training.optimizer import make_optimizer
from dlip.training.teacher import Teacher
from dlip.training.weights import weights
from dlip.vlm import VLM
from tests.losses.helpers import Pair

AT, HR, KD = weights("at"), weights("hr"), weights("kd")

TERMS = {**HR, **AT, **KD}
OTHER = dict(  # unequal widths, heads, depths, grids and image sizes, and a layer without cross-attention
    image_size=24, patch_size=6, image_width=24, image_heads=3, image_layers=1, text_width=20, text_heads=2,
    text_layers=3, embed_dim=6, fusion_layers=(0, 2),
)  # fmt: skip


def losses(student, teacher, batch, weights=TERMS, distiller=None, **options) -> dict[str, torch.Tensor]:
    distiller = distiller or Pair(student.config, teacher, weights, **options)
    torch.manual_seed(5)  # the same negatives every time
    features = student(batch, distiller.want("student"))
    return distiller(features, Teacher(teacher)(batch, distiller.want("teacher"), features.pairs))


def pad_more(batch, extra: int = 3):
    """The same batch with more padding after every text."""
    batch = copy.copy(batch)
    for name in ("ids", "mask", "question_ids", "question_mask", "answer_ids", "answer_mask"):
        setattr(batch, name, F.pad(getattr(batch, name), (0, extra)))
    return batch


# --- equal models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("changes", [{}, dict(image_width=24, image_heads=3), dict(prompt_ids=(9,), tie_decoder=False)])
def test_loss_and_gradients_of_equal_models_are_zero(term, changes, make_med, make_batch):
    teacher = make_med(**changes)
    student = copy.deepcopy(teacher)
    assert not make_batch().mask.all()
    for learned, center in ((True, False), (False, False), (False, True)):
        options = dict(learn_teacher_projection=learned, center_states=center)
        loss = losses(student, teacher, make_batch(), {term: 1.0}, **options)[term]
        student.zero_grad()  # or rounding errors of all three add up
        loss.backward()
        assert abs(loss.item()) < 1e-6
        assert all(p.grad is None or p.grad.abs().max() < 1e-5 for p in student.parameters())


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("changes", [{}, OTHER])
def test_each_term_falls_when_trained_alone(term, changes, make_med, make_batch):
    student, teacher, batch = make_med(1, **changes), make_med(0), make_batch()
    distiller = Pair(student.config, teacher, {term: 1.0}, learn_teacher_projection=False)
    adam = torch.optim.Adam([*student.parameters(), *distiller.parameters()], 3e-3)
    values = []
    for _ in range(12):
        loss = losses(student, teacher, batch, distiller=distiller)[term]
        adam.zero_grad()
        loss.backward()
        adam.step()
        values.append(loss.item())
    assert values[0] > 1e-3 and values[-1] < 0.8 * values[0]


# --- padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, OTHER, dict(prompt_ids=(9, 11))])
@pytest.mark.parametrize("center", [False, True])
def test_padding_does_not_change_losses(changes, center, make_med, make_batch):
    prompt = {k: v for k, v in changes.items() if k == "prompt_ids"}
    student, teacher, batch = make_med(1, **changes), make_med(0, **prompt), make_batch()
    distiller = Pair(student.config, teacher, TERMS, center_states=center)
    plain = losses(student, teacher, batch, distiller=distiller)
    padded = losses(student, teacher, pad_more(batch), distiller=distiller)
    assert plain.keys() == TERMS.keys()
    for term, loss in plain.items():
        assert loss > 1e-4, term
        torch.testing.assert_close(padded[term], loss, msg=f"{term}: {loss} became {padded[term]}")


@pytest.mark.parametrize("term", [term for term in TERMS if term not in ("hr.image", "kd.itc", "kd.itm")])
def test_losses_are_means_over_tokens(term, make_med, make_batch):
    """A batch's loss is the mean over all tokens: that of two halves, weighted by their tokens."""
    student, teacher, batch = make_med(1), make_med(0), make_batch(size=6)
    distiller = Pair(student.config, teacher, {term: 1.0})
    batch_loss = losses(student, teacher, batch, distiller=distiller)[term]
    mask = batch.answer_mask if term == "kd.vqa" else batch.mask
    total = count = 0
    for half in (slice(0, 2), slice(2, 6)):
        part = copy.copy(batch)
        for name, value in vars(batch).items():
            setattr(part, name, None if value is None else value[half])
        tokens = mask[half].sum() - (len(mask[half]) if term.startswith("kd") else 0)  # predicted tokens, or all
        total, count = total + losses(student, teacher, part, distiller=distiller)[term] * tokens, count + tokens
    torch.testing.assert_close(batch_loss, total / count)


# --- formulas ---------------------------------------------------------------------------------------------------------


def test_cosine_by_hand():
    """Angles of 0, 90, 180 and 60 degrees, the third masked out."""
    student = torch.tensor([[[1.0, 0], [1, 0], [1, 0], [1, 0]]])
    teacher = torch.tensor([[[3.0, 0], [0, 2], [-1, 0], [1, 3**0.5]]])
    mask = torch.tensor([[True, True, False, True]])
    torch.testing.assert_close(cosine_loss(student, teacher, mask), torch.tensor((0 + 1 + 0.5) / 3))
    torch.testing.assert_close(cosine_loss(student, teacher), torch.tensor((0 + 1 + 2 + 0.5) / 4))


def test_centered_states_by_hand():
    """The mean of (1, 0), (3, 0) and (5, 6) is (3, 2), whatever the padding holds."""
    states = torch.tensor([[[1.0, 0], [3, 0]], [[5, 6], [70, 80]]])
    mask = torch.tensor([[True, True], [True, False]])
    torch.testing.assert_close(centered(states, mask)[mask], torch.tensor([[-2.0, -2], [0, -2], [2, 4]]))
    torch.testing.assert_close(centered(states[:, :1]), torch.tensor([[[-2.0, -3]], [[2, 3]]]))


def test_centering_reveals_what_a_shared_bias_hides(make_med, make_batch):
    """With a large bias all states look alike: their cosine loss is near 0 unless they are centered."""
    student, teacher, batch = make_med(1), make_med(0), make_batch()
    with torch.no_grad():
        for model in (student, teacher):
            model.vision_model.post_layernorm.bias.add_(10)
    plain, center = (
        losses(student, teacher, batch, {"hr.image": 1.0}, center_states=c)["hr.image"] for c in (False, True)
    )
    assert plain < 0.05 and center > 0.5


def test_divergence_of_maps_by_hand():
    """Two heads are averaged first: (0.5, 0.5) from (0.75, 0.25); the masked query has disjoint maps."""
    teacher = torch.tensor([[[[1.0, 0.0], [1, 0]], [[0.0, 1.0], [1, 0]]]])  # [1, 2, 2, 2]
    student = torch.tensor([[[[0.75, 0.25], [0, 1]]]])  # one head
    expected = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    assert map_loss(student, teacher, torch.tensor([[True, False]])).item() == pytest.approx(expected)
    assert map_loss(student, teacher).item() > 5


def test_losses_equal_those_of_torch():
    torch.manual_seed(0)
    p, q = torch.randn(2, 3, 4, 5, 6).softmax(-1).unbind(0)  # [3, 4, 5, 6]
    expected = F.kl_div(q.mean(1).log(), p.mean(1), reduction="none").sum(-1).mean()
    torch.testing.assert_close(map_loss(q, p), expected)
    logits = torch.randn(2, 7, 6) * 3
    expected = F.kl_div(logits[0].log_softmax(-1), logits[1].log_softmax(-1), reduction="batchmean", log_target=True)
    torch.testing.assert_close(logit_loss(logits[0], logits[1]), expected)
    expected = nn.CosineEmbeddingLoss()(logits[0], logits[1], torch.ones(7))
    torch.testing.assert_close(cosine_loss(logits[:1], logits[1:]), expected)


def test_maps_with_zeros_have_finite_gradients():
    student = torch.tensor([[[[0.0, 1.0]]]], requires_grad=True)
    loss = map_loss(student, torch.tensor([[[[0.0, 1.0]]]]))
    loss.backward()
    assert loss.item() == 0 and student.grad.isfinite().all()


def test_itc_logits_are_compared_in_both_directions(make_med, make_batch):
    student, teacher, batch = make_med(1), make_med(0), make_batch()
    loss = losses(student, teacher, batch, {"kd.itc": 1.0})["kd.itc"]
    tables = []
    for med in (student, teacher):
        image = med.project_image(med.encode_image(med.normalize(batch.images)))
        tables.append(image @ med.project_text(med.encode_text(batch.ids, batch.mask)).T / med.temp)
    directions = [
        F.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="batchmean", log_target=True)
        for s, t in (tables, [table.T for table in tables])
    ]
    torch.testing.assert_close(loss, sum(directions) / 2)


GOLDEN = {
    "hr.image": 1.031, "hr.text": 1.0737, "hr.fusion": 0.8139, "hr.decoder": 1.3069,
    "at.self": 0.068, "at.cross": 0.4308, "at.decoder_self": 0.0179, "at.decoder_cross": 0.3726,
    "kd.itc": 1.6796, "kd.itm": 0.0343, "kd.lm": 0.6691, "kd.vqa": 0.6744,
}  # fmt: skip


def test_golden_numbers(make_med, make_batch, monkeypatch):
    """Pins every term on seeded weights and a seeded batch, the shapes unequal."""
    student, teacher = make_med(1, **OTHER), make_med(0)
    drawn = (
        torch.tensor([0, 1, 2, 3, 4] * 2 + [1, 2, 3, 4, 0]),
        torch.tensor([0, 1, 2, 3, 4, 1, 2, 3, 4, 0] + [*range(5)]),
    )
    monkeypatch.setattr("dlip.models.features.hard_negatives", lambda *_: drawn)  # releases draw differently
    torch.manual_seed(9)
    computed = losses(student, teacher, make_batch())
    assert {term: round(loss.item(), 4) for term, loss in computed.items()} == pytest.approx(GOLDEN, abs=2e-4)


# --- layers and sources -----------------------------------------------------------------------------------------------


def test_last_layers_are_compared_by_default(make_med):
    student, teacher = make_med(text_layers=2, image_layers=2).config, make_med(text_layers=4, image_layers=3)
    plain = Pair(student, teacher, TERMS)
    assert set(plain.want("teacher").layers.values()) == set(plain.want("student").layers.values()) == {(-1,)}
    chosen = Pair(student, teacher, TERMS, {"fusion": ((3, 1), (1, 0)), "image": ((2, 0),)})
    assert chosen.want("teacher").layers[("fusion", "cross")] == (1, 3)
    assert chosen.want("student").layers[("fusion", "cross")] == (0, 1)
    assert chosen.want("teacher").layers[("image", "states")] == (2,)
    assert chosen.want("student").layers[("image", "states")] == (0,)
    assert chosen.want("student").layers[("text", "states")] == (-1,)


def test_chosen_layers_are_compared(make_med, make_batch):
    """Against losses of states and maps taken one by one."""
    student, teacher, batch = make_med(1), make_med(0, text_layers=3), make_batch()
    pairs = {"fusion": ((2, 1), (0, 0)), "text": ((1, 0),)}
    weights = {"hr.fusion": 1.0, "hr.text": 1.0, "at.self": 1.0, "at.cross": 1.0}
    computed = losses(student, teacher, batch, weights, layers=pairs, learn_teacher_projection=False)
    reads = {}
    for name, med in (("s", student), ("t", teacher)):
        layers = range(med.config.text_layers)
        wanted = {("fusion", kind): tuple(layers) for kind in ("states", "self", "cross")}
        reads[name] = med(batch, Want(layers={**wanted, ("text", "states"): tuple(layers)}))
    s, t = reads["s"], reads["t"]
    torch.testing.assert_close(computed["hr.text"], cosine_loss(s.states("text", 0), t.states("text", 1), batch.mask))
    for kind in ("self", "cross"):
        each = [map_loss(s.maps("fusion", kind, b), t.maps("fusion", kind, a), batch.mask) for a, b in pairs["fusion"]]
        torch.testing.assert_close(computed[f"at.{kind}"], sum(each) / 2)
    each = [cosine_loss(s.states("fusion", b), t.states("fusion", a), batch.mask) for a, b in pairs["fusion"]]
    torch.testing.assert_close(computed["hr.fusion"], sum(each) / 2)


@pytest.mark.parametrize(
    ("term", "computed"),
    [("hr.image", ("image",)), ("hr.text", ("text",)), ("hr.fusion", ("image", "fusion")),
     ("hr.decoder", ("image", "decoder")), ("at.self", ("image", "fusion")), ("at.decoder_cross", ("image", "decoder")),
     ("kd.itc", ("image", "text")), ("kd.lm", ("image", "decoder")), ("kd.itm", ("image", "fusion")),
     ("kd.vqa", ("image", "question", "decoder"))],
)  # fmt: skip
def test_unneeded_sources_are_not_computed(term, computed, make_med, make_batch):
    """Counts passes through the modules; mining ITM's negatives costs the student a text pass, the teacher nothing."""
    student, teacher, counts = make_med(1), make_med(0), {"student": Counter(), "teacher": Counter()}
    for med, seen in ((student, counts["student"]), (teacher, counts["teacher"])):
        med.vision_model.register_forward_hook(lambda *_, seen=seen: seen.update(["image"]))
        med.text_decoder.bert.register_forward_hook(lambda *_, seen=seen: seen.update(["decoder"]))

        def read(module, args, seen=seen):
            ids, alone = args[0], len(args) < 3
            seen.update(["text" if alone else "question" if ids.shape[1] == 6 else "fusion"])

        med.text_encoder.register_forward_pre_hook(read)
    losses(student, teacher, make_batch(), {term: 1.0})
    assert counts["teacher"] == Counter(computed)
    assert counts["student"] == Counter([*computed, *(["text"] if term == "kd.itm" else [])])


def test_one_pass_serves_all_terms(make_med, make_batch):
    """Every term at once: each source of teacher and student is computed once a batch."""
    for side in ("student", "teacher"):
        meds = {"student": make_med(1), "teacher": make_med(0)}
        seen = Counter()
        meds[side].vision_model.register_forward_hook(lambda *_, seen=seen: seen.update(["image"]))
        meds[side].text_encoder.register_forward_hook(lambda *_, seen=seen: seen.update(["text"]))
        meds[side].text_decoder.bert.register_forward_hook(lambda *_, seen=seen: seen.update(["decoder"]))
        losses(meds["student"], meds["teacher"], make_batch())
        assert seen == {"image": 1, "text": 3, "decoder": 2}  # text, fusion and question; caption and answer


# --- teacher and projections ------------------------------------------------------------------------------------------


def test_the_teacher_is_frozen(make_med, make_batch):
    med, batch = make_med(dropout=0.5).train(), make_batch()
    teacher = Teacher(med)
    holder = nn.ModuleDict({"teacher": teacher}).train()
    assert holder.training and not any(module.training for module in teacher.modules() if module is not teacher)
    assert not any(p.requires_grad for p in teacher.parameters())
    want = Pair(med.config, med, TERMS).want("teacher")
    one, two = teacher(batch, want, (torch.arange(5),) * 2), teacher(batch, want, (torch.arange(5),) * 2)
    for task, logits in one.logits.items():
        assert not logits.requires_grad and torch.equal(logits, two.logits[task])
    assert not any(one.states(source).requires_grad for source in SOURCES)


@pytest.mark.parametrize("learned", [True, False])
def test_projections_are_trained(learned, make_med, make_batch):
    student, teacher, batch = make_med(1, **OTHER), make_med(0), make_batch()
    config = TrainConfig(weights=HR, learn_teacher_projection=learned)
    learner = Learner(VLM(student, None), VLM(teacher, None), config)
    before = {name: p.clone() for name, p in learner.named_parameters()}
    sides = {name.split(".")[2] for name in before if name.startswith("terms.")}
    assert sides == ({"student", "teacher"} if learned else {"student"})
    adamw = make_optimizer(learner, config)
    sum(learner(batch, Teacher(teacher), 0, 0.0).values()).backward()
    frozen = {name: p.clone() for name, p in teacher.named_parameters()}
    adamw.step()
    still = {name for name, p in learner.named_parameters() if torch.equal(p, before[name])}
    assert not any(name.startswith("terms.") for name in still)
    assert all(torch.equal(p, frozen[name]) for name, p in teacher.named_parameters())


def test_projections_start_as_the_identity_where_widths_are_equal(make_med):
    teacher, other = make_med(), make_med(**OTHER).config
    same = Pair(teacher.config, teacher, HR)
    for linear in (linear for term in same.terms for linear in (*term.student, *term.teacher)):
        assert torch.equal(linear.weight, torch.eye(16)) and linear.bias is None
    unequal = Pair(other, teacher, HR)
    widths = {term.name: term.student[0].weight.shape[1] for term in unequal.terms}
    assert widths == {"hr.image": 24, "hr.text": 20, "hr.fusion": 20, "hr.decoder": 20}
    assert all(torch.equal(term.teacher[0].weight, torch.eye(16)) for term in unequal.terms)


def test_teacher_matches_the_students_pairs(make_med, make_batch):
    """A student equal to its teacher loses nothing, though negatives are drawn at random."""
    med, batch = make_med(), make_batch()
    learner = Learner(VLM(copy.deepcopy(med), None), VLM(med, None), TrainConfig(weights={"kd.itm": 1.0}))
    for seed in range(3):
        torch.manual_seed(seed)
        assert learner(batch, Teacher(med), 0, 0.0)["kd.itm"].abs() < 1e-6
