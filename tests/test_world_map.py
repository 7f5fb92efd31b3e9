"""The map is periodic, exact far out, and read where the viewer looks; landmarks are told where a camera shows them."""

import dataclasses
import math

import pytest
import torch

from pipeline.world_map import Landmark, Stand, WorldMap, WorldMapConfig

CONFIG = WorldMapConfig(cells=16, channels=2, points=6, rays=2, hidden=16)
AHEAD, FURTHER, BESIDE = (
    Landmark(1.0, 4.0, 0.2, 1.0, 0),
    Landmark(1.0, 6.0, 0.4, 2.0, 1),
    Landmark(4.0, 4.0, 0.2, 1.0, 2),
)
LANDMARKS = dataclasses.replace(CONFIG, landmarks=(FURTHER, AHEAD, BESIDE), seen=2)


@pytest.fixture(params=[CONFIG, LANDMARKS], ids=["without landmarks", "with landmarks"])
def world_map(request) -> WorldMap:
    torch.manual_seed(0)
    return WorldMap(request.param, dim=8)


def stand(x: float = 1.0, z: float = 1.0, yaw: float = 0.0, pitch: float = 0.0) -> Stand:
    return Stand(*(torch.full((1, 1, 2), value) for value in (x, z, yaw, pitch)))


def pose(x: float, z: float, yaw: float = 0.0) -> torch.Tensor:
    return torch.tensor([x, z, yaw, 0.1], dtype=torch.float64).expand(1, 1, 2, 4)


def test_a_walk_of_a_thousand_periods_and_turns_comes_back_to_the_same_place(world_map):
    far = pose(3.3 + 1000 * CONFIG.period, 7.1 - 1000 * CONFIG.period, 0.4 + 1000 * 2 * math.pi)
    assert torch.allclose(world_map(pose(3.3, 7.1, 0.4), 6, 10), world_map(far, 6, 10), atol=1e-4)


def test_another_place_and_another_direction_look_different(world_map):
    here = world_map(pose(1.0, 1.0), 6, 10)
    assert (world_map(pose(4.0, 1.0), 6, 10) - here).abs().max() > 1e-3
    assert (world_map(pose(1.0, 1.0, 1.0), 6, 10) - here).abs().max() > 1e-3


def test_without_landmarks_the_rows_of_a_column_share_what_it_sees():
    grid = WorldMap(CONFIG, dim=8)(pose(1.0, 2.0), 6, 10).unflatten(1, (6, 10))
    assert torch.equal(grid[:, 0], grid[:, 5]) and not torch.equal(grid[:, :, 0], grid[:, :, 9])


def test_a_cell_is_read_in_its_middle_and_halves_are_means(world_map):
    with torch.no_grad():
        size = CONFIG.period / CONFIG.cells
        at = world_map._bilinear(torch.tensor([3 * size, 3.5 * size]), torch.tensor([2 * size, 2 * size]))
        assert torch.allclose(at[0], world_map.cells[2, 3], atol=1e-5)
        assert torch.allclose(at[1], world_map.cells[2, 3:5].mean(0), atol=1e-5)


def test_a_column_sees_what_reaches_into_it_the_nearest_first():
    sight = WorldMap(LANDMARKS, dim=8).landmarks._seen(stand(), columns=10)
    distances = sight.distance[0, 0, 0]
    torch.testing.assert_close(distances[4], torch.tensor([3.0, 5.0]))  # both stand on the line between two columns
    torch.testing.assert_close(distances[5], torch.tensor([3.0, 5.0]))
    assert distances[0].isinf().all()
    assert not torch.isclose(distances, torch.tensor(math.hypot(3, 3))).any()  # at 45 degrees, outside a view of 75


def test_a_landmark_is_told_where_a_pinhole_camera_shows_it():
    pitch, columns, rows = 0.2, 10, 6
    landmarks = WorldMap(LANDMARKS, dim=8).landmarks
    here = stand(pitch=pitch)
    told = landmarks._up(landmarks._seen(here, columns), here.pitch, rows, columns)[0, 0, 0, :, 4, 0]
    half = math.tan(math.radians(CONFIG.field_of_view / 2)) / columns  # of a token, at depth 1
    for level, number in ((0.0, 0), (AHEAD.height, 1)):
        up = math.tan(math.atan2(level - CONFIG.eye_height, 3.0) - pitch) / half  # in half tokens above the middle
        expected = torch.tensor([(up - (rows - 1 - 2 * row)) for row in range(rows)]).clamp(-4, 4)
        places = told[:, number * told.shape[1] // 2]
        torch.testing.assert_close(places, expected, atol=1e-4, rtol=1e-4)


def test_what_is_behind_the_viewer_tells_nothing():
    torch.manual_seed(0)
    world = WorldMap(LANDMARKS, dim=8)
    assert (world.landmarks(stand(), 6, 10) != 0).any()
    near = dataclasses.replace(LANDMARKS, far=4.5)  # so that none is seen a period further on
    assert (WorldMap(near, dim=8).landmarks(stand(yaw=math.pi), 6, 10) == 0).all()


def test_a_landmark_of_no_kind_is_refused():
    with pytest.raises(ValueError, match="kind"):
        WorldMapConfig(landmarks=(Landmark(0, 0, 1, 1, 4),))


@pytest.mark.parametrize("options", [{"cells": 0}, {"near": 9.0}])
def test_a_map_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError):
        WorldMapConfig(**options)
