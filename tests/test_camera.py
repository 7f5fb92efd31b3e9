import math

import pytest
import torch

from pipeline import camera
from pipeline.camera import STEP, TURN, Pose

NONE = frozenset()


def held(keys, frames=4):
    return [frozenset(keys)] * frames


def test_walking_follows_the_heading():
    east = Pose(yaw=math.pi / 2)
    assert camera.step(Pose(), frozenset("w")) == pytest.approx((0, STEP, 0, 0))
    assert camera.step(east, frozenset("w")) == pytest.approx((STEP, 0, math.pi / 2, 0))
    assert camera.step(Pose(), frozenset("d")) == pytest.approx((STEP, 0, 0, 0))
    assert camera.step(east, frozenset("d")) == pytest.approx((0, -STEP, math.pi / 2, 0))


def test_a_diagonal_is_no_faster_and_opposite_keys_cancel():
    diagonal = camera.step(Pose(), frozenset("wd"))
    assert math.hypot(diagonal.x, diagonal.z) == pytest.approx(STEP)
    assert camera.step(Pose(), frozenset("wsadikjl")) == Pose()


def test_pitch_stops_at_its_limit_and_looking_up_does_not_slow_the_walk():
    pose = Pose()
    for _ in range(20):
        pose = camera.step(pose, frozenset("iw"), math.radians(14))
    assert pose == pytest.approx((0, 20 * STEP, 0, math.radians(14)))


def test_poses_join_from_chunk_to_chunk():
    first, pose = camera.walk(Pose(), held("w", 8), [4, 4])
    second, _ = camera.walk(pose, held("l", 4), [4])
    assert first.shape == (2, 2, 4) and first.dtype == torch.float64
    assert torch.equal(first[0, 1], first[1, 0]) and torch.equal(first[1, 1], second[0, 0])
    assert second[0, 1, 2] == pytest.approx(4 * TURN)


def test_a_first_latent_frame_of_one_picture_does_not_move():
    poses, _ = camera.walk(Pose(), held("w", 8), [0, 4, 4])
    motion = camera.live_motion(poses)
    assert torch.equal(motion[0], torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(motion[1, :3, 3], torch.tensor([0, 0, 1.0], dtype=torch.float64))


def test_matrices_are_rotations_with_the_axes_of_opencv():
    poses = torch.randn(5, 4, dtype=torch.float64)
    rotation = camera.camera_matrices(poses)[:, :3, :3]
    identity = torch.eye(3, dtype=torch.float64).expand(5, 3, 3)
    torch.testing.assert_close(rotation @ rotation.mT, identity)
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(5, dtype=torch.float64))
    right_up = camera.camera_matrices(torch.tensor([0, 0, math.pi / 2, 0.1], dtype=torch.float64))
    forward = right_up[:3, 2]
    assert forward[0] > 0.9 and forward[1] < 0  # y points down, so looking up is negative


def test_relative_then_absolute_is_the_absolute_again():
    start, end = camera.camera_matrices(torch.randn(2, 3, 4, dtype=torch.float64))
    torch.testing.assert_close(start @ camera.relative_matrices(start, end), end)


def test_the_walk_far_from_the_origin_gives_the_same_motion():
    near, _ = camera.walk(Pose(), held("wl"), [4])
    far, _ = camera.walk(Pose(x=1e5, z=-1e5), held("wl"), [4])
    torch.testing.assert_close(camera.live_motion(near), camera.live_motion(far), atol=1e-9, rtol=0)


def test_interpolation_turns_by_equal_angles_and_ends_where_the_path_does():
    path = camera.camera_matrices(torch.tensor([[0, 0, 0, 0], [1, 0, 0.9, 0]], dtype=torch.float64))
    middle = camera.interpolate(path, 4)
    yaw = torch.atan2(middle[:, 0, 2], middle[:, 2, 2])
    torch.testing.assert_close(yaw, torch.tensor([0, 0.3, 0.6, 0.9], dtype=torch.float64))
    torch.testing.assert_close(middle[-1], path[-1])


def test_a_recorded_path_too_short_for_a_chunk_is_refused():
    with pytest.raises(ValueError, match="a path of 8 video frames is too short for a chunk; it takes 9"):
        camera.recorded_motion(torch.eye(4).expand(8, 4, 4), 3)


def test_a_recorded_path_without_motion_stays_finite():
    motion = camera.recorded_motion(torch.eye(4).repeat(9, 1, 1), 3)
    assert torch.equal(motion, torch.eye(4, dtype=torch.float64).expand(3, 4, 4))


def test_rays_go_through_the_pixel_centres_and_have_length_one():
    rays = camera.ray_directions(camera.intrinsics_from_view(90, 8, 16), 8, 16)
    torch.testing.assert_close(rays.norm(dim=-1), torch.ones(8, 16, dtype=torch.float64))
    assert rays[0, 0, 0] / rays[0, 0, 2] == pytest.approx(-7.5 / 8)
    torch.testing.assert_close(rays[:, 0, 0], -rays[:, -1, 0])


def test_a_map_folds_blocks_of_eight_into_channels():
    poses, _ = camera.walk(Pose(), held("w"), [4])
    motion = camera.live_motion(poses)
    rays = camera.ray_directions(camera.intrinsics_from_view(75, 16, 24), 16, 24)
    plucker = camera.plucker_map(motion, rays)
    assert plucker.shape == (384, 1, 2, 3) and plucker.dtype == torch.float32
    values = plucker.unflatten(0, (6, 8, 8))  # value, row, column
    assert values[2, 4, 4, 0, 1, 2] == pytest.approx(1.0)  # the origin has gone one unit ahead
    torch.testing.assert_close(values[3:, 5, 6, 0, 1, 2].double(), rays[13, 22], atol=1e-6, rtol=0)


def test_maps_take_a_batch():
    motion = camera.live_motion(torch.randn(2, 3, 2, 4, dtype=torch.float64))
    rays = camera.ray_directions(camera.intrinsics_from_view(75, 16, 24), 16, 24)
    assert torch.equal(camera.plucker_map(motion, rays)[1], camera.plucker_map(motion[1], rays))


def test_the_action_map_has_directions_and_four_flags():
    motion = torch.eye(4, dtype=torch.float64)[None]
    rays = camera.ray_directions(camera.intrinsics_from_view(75, 16, 24), 16, 24)
    values = camera.action_map(motion, rays, camera.action_flags(frozenset("wdl"))[None]).unflatten(0, (7, 8, 8))
    assert [values[3 + flag].unique().tolist() for flag in range(4)] == [[1.0], [0.0], [0.0], [1.0]]


def test_intrinsics_scale_with_the_picture():
    assert camera.Intrinsics(400, 300, 208, 120).scaled(0.5, 0.25) == (100, 150, 52, 60)
