"""Maps and states of one grid of patches on another."""

import pytest
import torch

from dlip.models.grid_resize import map_to_grid, to_grid


@pytest.mark.parametrize(("old", "new"), [(4, 2), (2, 4), (6, 4), (3, 5), (14, 24), (3, 3)])
def test_maps_on_another_grid_stay_distributions(old, new):
    maps = torch.randn(2, 3, 5, 1 + old * old).softmax(-1)
    resized = map_to_grid(maps, new)
    assert resized.shape == (2, 3, 5, 1 + new * new) and (resized >= 0).all()
    torch.testing.assert_close(resized.sum(-1), torch.ones(2, 3, 5))
    torch.testing.assert_close(resized[..., 0], maps[..., 0])  # [CLS] keeps its own
    flat = torch.full((1, 1, 1, 1 + old * old), 0.7 / old**2)
    flat[..., 0] = 0.3
    expected = torch.full((1 + new * new,), 0.7 / new**2)
    expected[0] = 0.3
    torch.testing.assert_close(map_to_grid(flat, new)[0, 0, 0], expected)


@pytest.mark.parametrize(("old", "new"), [(4, 2), (2, 4), (8, 4), (4, 8), (6, 4)])
def test_maps_on_another_grid_keep_the_mass_of_each_quadrant(old, new):
    maps = torch.randn(2, 3, 5, 1 + old * old).softmax(-1)

    def quadrants(probs, grid):
        return probs[..., 1:].unflatten(-1, (2, grid // 2, 2, grid // 2)).sum((-1, -3))  # [N, H, Q, 2, 2]

    torch.testing.assert_close(quadrants(map_to_grid(maps, new), new), quadrants(maps, old))


def test_a_map_between_grids_by_hand():
    """3 patches a side to 2: the middle row and column are halved, the middle patch quartered."""
    row = torch.tensor([0.1, 0, 0.2, 0, 0, 0.4, 0, 0.3, 0, 0])  # [CLS], then three rows of three
    expected = torch.tensor([0.1, 0.1 + 0.1, 0.1 + 0.1, 0.1 + 0.3, 0.1])
    torch.testing.assert_close(map_to_grid(row[None, None, None], 2)[0, 0, 0], expected)


def test_states_on_another_grid():
    """[CLS] stays; equal patches stay equal; a slope from left to right stays one."""
    tokens = torch.randn(2, 1 + 16, 6)
    assert to_grid(tokens, 4) is tokens
    assert torch.equal(to_grid(tokens, 2)[:, 0], tokens[:, 0]) and to_grid(tokens, 7).shape == (2, 50, 6)
    torch.testing.assert_close(to_grid(torch.ones(1, 17, 3), 6), torch.ones(1, 37, 3))
    slope = torch.arange(4.0).repeat(4)[None, :, None]
    resized = to_grid(torch.cat([torch.zeros(1, 1, 1), slope], 1), 2)[0, 1:, 0].unflatten(0, (2, 2))
    torch.testing.assert_close(resized[0], resized[1])
    assert resized[0, 0].item() == pytest.approx(3 - resized[0, 1].item()) and resized[0, 0] < 1.2
