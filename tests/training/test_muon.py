"""Muon against torch.optim's, and the size of its updates."""

import pytest
import torch

from dlip.training.muon import Muon, orthogonalize


def test_orthogonalized_matrices_have_singular_values_near_one():
    for shape in ((3, 8, 8), (2, 4, 32)):
        singular = torch.linalg.svdvals(
            orthogonalize(torch.randn(shape, generator=torch.Generator().manual_seed(0))).float()
        )
        assert 0.5 < singular.min() and singular.max() < 1.3


def gradients(parameters: list, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)


def copies(*shapes: tuple[int, ...]) -> tuple[list, list]:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    return parameters, [torch.nn.Parameter(p.detach().clone()) for p in parameters]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_equals_torch_muon_and_adamw():
    """To 2% of the updates, which are computed in bf16; AdamW's exactly."""
    ours, theirs = copies((16, 64), (64, 16), (16, 16), (48, 16), (10, 16), (16,))
    muon = Muon(
        [{"params": ours[:4], "weight_decay": 0.1}], [{"params": ours[4:], "weight_decay": 0.1}], 0.01, (0.9, 0.98)
    )
    others = (
        torch.optim.Muon(theirs[:4], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(theirs[4:], lr=0.01, weight_decay=0.1, betas=(0.9, 0.98), fused=True),
    )
    start = [p.detach().clone() for p in ours]
    for step in range(5):
        gradients(ours, step)
        gradients(theirs, step)
        muon.step()
        for optimizer in others:
            optimizer.step()
    for i, (p, reference, first) in enumerate(zip(ours, theirs, start, strict=True)):
        if i < 4:
            assert (p - reference).norm() < 0.02 * (reference - first).norm()
        else:
            assert torch.equal(p, reference)


def test_parameters_without_gradient_stay():
    (p, q), _ = copies((4, 8), (4, 8))
    muon = Muon([{"params": [p, q], "weight_decay": 0.1}], [], 0.01, (0.9, 0.98))
    p.grad, before = torch.ones_like(p), q.detach().clone()
    muon.step()
    assert torch.equal(q, before) and not muon.state[q]


@pytest.mark.parametrize("shape", [(8, 32), (32, 8)])
def test_updates_have_adamws_rms(shape):
    (p,), (before,) = copies(shape)
    muon = Muon([{"params": [p], "weight_decay": 0.0}], [], 0.5, (0.9, 0.98))
    gradients([p], 0)
    muon.step()
    assert (p - before).square().mean().sqrt().item() == pytest.approx(0.2 * 0.5, rel=0.15)
