"""Linear layers: equal results with and without oneDNN, and unchanged gradients."""

import pytest
import torch
import torch.nn.functional as F

from dlip.models.fast import linear
from dlip.models.fast.linear import Linear

pytestmark = pytest.mark.skipif(not linear.ONEDNN, reason="torch without oneDNN")


@pytest.fixture
def products(monkeypatch) -> list:
    """Input shapes of torch's own product."""
    shapes, plain = [], F.linear
    monkeypatch.setattr(F, "linear", lambda x, *rest: shapes.append(tuple(x.shape)) or plain(x, *rest))
    return shapes


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", [(1, 300), (3, 1, 300), (2, 40, 300)])
def test_onednn_equals_torch(shape, gelu, products):
    torch.manual_seed(0)
    layer, x = Linear(300, 320), torch.randn(shape)
    with torch.no_grad():
        fast = layer(x, gelu)
    assert not products
    plain = layer(x, gelu)  # with gradients
    assert products and plain.requires_grad
    torch.testing.assert_close(fast, plain.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        plain, F.gelu(x @ layer.weight.T + layer.bias) if gelu else x @ layer.weight.T + layer.bias
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 24, 70])
@torch.no_grad()
def test_packed_layers_give_the_same(rows, dtype, products):
    torch.manual_seed(0)
    layer, small, x = Linear(300, 320).to(dtype), Linear(8, 8), torch.randn(2, rows, 300).to(dtype)
    before, kept = layer(x, gelu=True), small.weight.clone()
    calls = len(products)
    layer.pack()
    small.pack()  # its calls would cost more than they save
    torch.testing.assert_close(layer(x, gelu=True), before, atol=1e-5 if dtype is torch.float32 else 0.02, rtol=0)
    assert torch.equal(small.weight, kept)
    packs = dtype is torch.float32 or linear.onednn_has_bf16()
    assert layer.weight.is_meta == packs and (len(products) == calls or not packs)
    assert sum(p.numel() for p in layer.parameters()) == 320 * 301


def test_changed_weights_are_used_at_once():
    layer, x = Linear(300, 320), torch.randn(3, 300)
    with torch.inference_mode():
        before = layer(x)
    layer.weight.data *= 2
    layer.bias.data *= 2
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), 2 * before)


@torch.no_grad()
def test_when_onednn_is_not_used(products):
    layer = Linear(300, 320)
    Linear(8, 8)(torch.randn(3, 8))  # its call would cost more than it saves
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, 300)).dtype == torch.bfloat16
    assert layer.bfloat16()(torch.randn(3, 300).bfloat16()).dtype == torch.bfloat16
    assert len(products) == 3
