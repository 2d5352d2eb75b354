"""Images that every test of checkpoints may read."""

import pytest
import torch
from PIL import Image


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(3)
    return [Image.fromarray(torch.randint(256, (40 + i, 50, 3), dtype=torch.uint8).numpy()) for i in range(3)]
