"""Private functions of torch against public ones."""

import pytest
import torch
import torch.nn.functional as F

from dlip.common import torch_private


@pytest.mark.skipif(not torch_private.ONEDNN, reason="torch was built without oneDNN")
@pytest.mark.parametrize("gelu", [False, True])
def test_onednn_equals_linear(gelu):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(5, 32), torch.randn(48, 32), torch.randn(48)
    expected = F.linear(x, weight, bias)
    expected = F.gelu(expected) if gelu else expected
    for layout in (weight, torch_private.onednn_layout(weight, 5)):
        torch.testing.assert_close(torch_private.onednn_linear(x, layout, bias, gelu), expected, atol=1e-4, rtol=1e-4)


def test_int8_products_equal_those_of_floats():
    torch.manual_seed(0)
    a, b = (torch.randint(-9, 10, (32, 32), dtype=torch.int8) for _ in range(2))
    assert torch.equal(torch_private.int8_times_int8(a, b), a.int() @ b.int())
