import pytest
import torch

from pipeline.tiny.landscape import EYE_HEIGHT, OVERRIDES, PERIOD, PLACES, layout
from pipeline.tiny.renderer import NEAREST, Renderer, cast

HEIGHT, WIDTH = 24, 40
CLEAR_DAY = torch.tensor([[0, 0, 1, 0]])


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer()


def draw(renderer: Renderer, pose: list[float], scene: torch.Tensor = CLEAR_DAY, phase: int = 0) -> torch.Tensor:
    picture = renderer.render(torch.tensor([pose]), scene, torch.tensor([phase]), HEIGHT, WIDTH, oversample=1)
    return picture[0]


def test_pictures_are_in_range_for_every_place(renderer):
    scenes = torch.tensor([[place, 0, place % 4, place % 5] for place in range(len(PLACES))])
    pose = torch.rand(len(PLACES), 4, generator=torch.Generator().manual_seed(1)) * torch.tensor([10, 10, 6, 0.2])
    pictures = renderer.render(pose, scenes, torch.zeros(len(PLACES)), HEIGHT, WIDTH, oversample=1)
    assert pictures.shape == (len(PLACES), 3, HEIGHT, WIDTH)
    assert pictures.isfinite().all()
    assert pictures.min() >= 0
    assert pictures.max() <= 1


def test_the_world_repeats_after_its_period(renderer):
    here, there = draw(renderer, [1.0, 2.0, 0.3, 0.0]), draw(renderer, [1.0 + PERIOD, 2.0 - PERIOD, 0.3, 0.0])
    assert (here - there).abs().max() < 2e-2


def test_a_picture_does_not_depend_on_its_neighbours_in_the_batch(renderer):
    poses = torch.tensor([[1.0, 2.0, 0.3, 0.0], [5.0, 5.0, 2.0, 0.1]])
    both = renderer.render(poses, CLEAR_DAY.expand(2, -1), torch.zeros(2), HEIGHT, WIDTH, oversample=1)
    alone = draw(renderer, [5.0, 5.0, 2.0, 0.1])
    torch.testing.assert_close(both[1], alone)


def test_looking_up_shows_more_sky(renderer):
    rays_level, rays_up = (cast(torch.tensor([[0.0, 0.0, 0.0, pitch]]), HEIGHT, WIDTH) for pitch in (0.0, 0.2))
    assert (rays_up.y > 0).sum() > (rays_level.y > 0).sum()


def test_turning_right_turns_the_rays_to_the_right():
    rays = cast(torch.tensor([[0.0, 0.0, 0.5, 0.0]]), HEIGHT, WIDTH)
    assert rays.x.mean() > 0.3


@pytest.mark.parametrize("column", [0, 2, 3], ids=["place", "hour", "weather"])
def test_each_attribute_changes_the_picture(renderer, column):
    other = CLEAR_DAY.clone()
    other[0, column] = 3
    assert (draw(renderer, [1.0, 2.0, 0.3, 0.0], other) - draw(renderer, [1.0, 2.0, 0.3, 0.0])).abs().mean() > 0.03


def test_things_asked_for_take_the_place_of_the_places_own(renderer):
    crystals = CLEAR_DAY.clone()
    crystals[0, 1] = 1 + OVERRIDES.index("crystal")
    assert (draw(renderer, [0.0, 0.0, 0.0, 0.0], crystals) - draw(renderer, [0.0, 0.0, 0.0, 0.0])).abs().mean() > 0.005


def test_rain_moves_within_a_latent_frame_and_repeats_after_it(renderer):
    rain = torch.tensor([[0, 0, 1, 3]])
    pose = [1.0, 2.0, 0.3, 0.0]
    first, second, again = (draw(renderer, pose, rain, phase) for phase in (0, 1, 4))
    assert (first - second).abs().max() > 0.02
    torch.testing.assert_close(first, again, atol=1e-4, rtol=0)


def test_the_map_has_room_to_walk_and_nothing_stands_where_a_walk_begins():
    things = layout()
    assert len(things) > NEAREST
    assert all(0 <= thing.x < PERIOD and 0 <= thing.z < PERIOD for thing in things)
    assert min((thing.x**2 + thing.z**2) ** 0.5 for thing in things) > EYE_HEIGHT


def test_the_map_is_the_same_every_time():
    assert layout() == layout()
