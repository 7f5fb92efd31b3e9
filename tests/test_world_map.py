"""The map is periodic, exact far out, and read where the viewer looks."""

import math

import pytest
import torch

from pipeline.world_map import WorldMap, WorldMapConfig

CONFIG = WorldMapConfig(cells=16, channels=2, points=6, rays=2, hidden=16)


@pytest.fixture
def world_map() -> WorldMap:
    torch.manual_seed(0)
    return WorldMap(CONFIG, dim=8)


def pose(x: float, z: float, yaw: float = 0.0) -> torch.Tensor:
    return torch.tensor([x, z, yaw, 0.1], dtype=torch.float64).expand(1, 1, 2, 4)


def test_a_walk_of_a_thousand_periods_and_turns_comes_back_to_the_same_place(world_map):
    far = pose(3.3 + 1000 * CONFIG.period, 7.1 - 1000 * CONFIG.period, 0.4 + 1000 * 2 * math.pi)
    assert torch.allclose(world_map(pose(3.3, 7.1, 0.4), 6, 10), world_map(far, 6, 10), atol=1e-4)


def test_another_place_and_another_direction_look_different(world_map):
    here = world_map(pose(1.0, 1.0), 6, 10)
    assert (world_map(pose(4.0, 1.0), 6, 10) - here).abs().max() > 1e-3
    assert (world_map(pose(1.0, 1.0, 1.0), 6, 10) - here).abs().max() > 1e-3


def test_the_rows_of_a_column_share_what_it_sees(world_map):
    grid = world_map(pose(1.0, 2.0), 6, 10).unflatten(1, (6, 10))
    assert torch.equal(grid[:, 0], grid[:, 5]) and not torch.equal(grid[:, :, 0], grid[:, :, 9])


def test_a_cell_is_read_in_its_middle_and_halves_are_means(world_map):
    with torch.no_grad():
        size = CONFIG.period / CONFIG.cells
        at = world_map._bilinear(torch.tensor([3 * size, 3.5 * size]), torch.tensor([2 * size, 2 * size]))
        assert torch.allclose(at[0], world_map.cells[2, 3], atol=1e-5)
        assert torch.allclose(at[1], world_map.cells[2, 3:5].mean(0), atol=1e-5)


@pytest.mark.parametrize("options", [{"cells": 0}, {"near": 9.0}])
def test_a_map_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError):
        WorldMapConfig(**options)
