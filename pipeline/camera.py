"""Keys to poses to Plucker maps.

World axes are OpenCV's: x right, y down, z forward. A pose on foot is x, z (world units), yaw, pitch (radians): yaw 0
looks along +z and grows to the right, towards +x; pitch grows upwards. A camera matrix is camera-to-world, 4x4.

T latent frames, h w latent height and width, H W picture height and width in pixels; the map has one pixel for each of
8x8 within a latent pixel, whatever the VAE's own factor.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

STEP = 0.05  # world units a video frame
TURN = math.radians(2.0)  # a video frame
PITCH_LIMIT = math.radians(85.0)
FRAMES_PER_LATENT = 4
FOLD = 8
STRAIGHT_AHEAD = STEP * FRAMES_PER_LATENT  # a live stream's unit of translation: what the longest step within it can be
ACTION_KEYS = "wasd"


class Pose(NamedTuple):
    """Where a walker stands and looks; plain float64, so a session replays exactly."""

    x: float = 0.0
    z: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0


class Intrinsics(NamedTuple):
    """Focal lengths and principal point in pixels."""

    fx: float
    fy: float
    cx: float
    cy: float

    def scaled(self, down: float, across: float) -> "Intrinsics":
        """For a picture of `down` times the height and `across` times the width."""
        return Intrinsics(self.fx * across, self.fy * down, self.cx * across, self.cy * down)


def intrinsics_from_view(degrees: float, height: int, width: int) -> Intrinsics:
    """Square pixels, the axis through the middle, `degrees` of horizontal field of view."""
    focal = width / 2 / math.tan(math.radians(degrees) / 2)
    return Intrinsics(focal, focal, width / 2, height / 2)


def step(pose: Pose, keys: frozenset[str], pitch_limit: float = PITCH_LIMIT) -> Pose:
    """The pose one video frame later with `keys` of wasdijkl held: turn first, then walk along the new heading.

    Two walking keys go diagonally at the same speed; opposite keys cancel. Pitch stays within +-pitch_limit radians.
    """
    yaw = pose.yaw + TURN * (("l" in keys) - ("j" in keys))
    pitch = pose.pitch + TURN * (("i" in keys) - ("k" in keys))
    pitch = min(max(pitch, -pitch_limit), pitch_limit)
    ahead, aside = ("w" in keys) - ("s" in keys), ("d" in keys) - ("a" in keys)
    length = STEP / (math.hypot(ahead, aside) or 1)
    x = pose.x + length * (ahead * math.sin(yaw) + aside * math.cos(yaw))
    z = pose.z + length * (ahead * math.cos(yaw) - aside * math.sin(yaw))
    return Pose(x, z, yaw, pitch)


def walk(
    pose: Pose, keys: Sequence[frozenset[str]], frames: Sequence[int], pitch_limit: float = PITCH_LIMIT
) -> tuple[Tensor, Pose]:
    """Walk through the latent frames of one chunk.

    `frames` is how many video frames the walker moves in each latent frame: 4, and 0 in the first one of a stream whose
    first latent frame is a single picture. `keys` are the keys held in each of these sum(frames) video frames.
    Returns (T, 2, 4) float64, the pose at each latent frame's start and at its last video frame, and the pose after.
    """
    assert len(keys) == sum(frames), (len(keys), sum(frames))
    held = iter(keys)
    rows = []
    for count in frames:
        start = pose
        for _ in range(count):
            pose = step(pose, next(held), pitch_limit)
        rows.append((start, pose))
    return torch.tensor(rows, dtype=torch.float64), pose


def camera_matrices(pose: Tensor) -> Tensor:
    """(..., 4) x, z, yaw, pitch to (..., 4, 4) camera-to-world; columns are right, down, forward, place."""
    x, z, yaw, pitch = pose.unbind(-1)
    sin_yaw, cos_yaw, sin_pitch, cos_pitch = yaw.sin(), yaw.cos(), pitch.sin(), pitch.cos()
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rows = (
        (cos_yaw, sin_yaw * sin_pitch, sin_yaw * cos_pitch, x),
        (zero, cos_pitch, -sin_pitch, zero),
        (-sin_yaw, cos_yaw * sin_pitch, cos_yaw * cos_pitch, z),
        (zero, zero, zero, one),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def relative_matrices(start: Tensor, end: Tensor) -> Tensor:
    """`end` seen from `start`; camera-to-world matrices (..., 4, 4)."""
    rotation = start[..., :3, :3].mT @ end[..., :3, :3]
    shift = start[..., :3, :3].mT @ (end[..., :3, 3:] - start[..., :3, 3:])
    bottom = torch.zeros_like(end[..., 3:, :])
    bottom[..., 3] = 1
    return torch.cat((torch.cat((rotation, shift), dim=-1), bottom), dim=-2)


def live_motion(pose: Tensor) -> Tensor:
    """Each latent frame's camera seen from the one before: `walk`'s (..., T, 2, 4) to (..., T, 4, 4).

    Translations are in steps of STRAIGHT_AHEAD: a clip divides by its own longest one, which a live stream cannot know.
    """
    motion = relative_matrices(camera_matrices(pose[..., 0, :]), camera_matrices(pose[..., 1, :]))
    motion[..., :3, 3] /= STRAIGHT_AHEAD
    return motion


def recorded_motion(path: Tensor, chunk: int) -> Tensor:
    """The same of a recorded path with a camera a video frame, (N, 4, 4) to (T, 4, 4), T whole chunks of `chunk`.

    As many latent frames as make whole chunks stand at equal distances on the whole path. The first one's motion is the
    identity; translations are divided by the longest. Raises ValueError for a path too short for one chunk.
    """
    count = ((len(path) - 1) // FRAMES_PER_LATENT + 1) // chunk * chunk
    if count == 0:
        needed = FRAMES_PER_LATENT * (chunk - 1) + 1
        raise ValueError(f"a path of {len(path)} video frames is too short for a chunk; it takes {needed}")
    cameras = interpolate(path.double(), count)
    motion = relative_matrices(torch.cat((cameras[:1], cameras[:-1])), cameras)
    motion[0] = torch.eye(4, dtype=motion.dtype)
    longest = motion[:, :3, 3].norm(dim=-1).max()
    if longest > 0:
        motion[:, :3, 3] /= longest
    return motion


def interpolate(path: Tensor, count: int) -> Tensor:
    """`count` cameras at equal distances on the path (N, 4, 4): rotations by slerp, places linearly; (count, 4, 4)."""
    places = torch.linspace(0, len(path) - 1, count, dtype=torch.float64)
    before = places.floor().long().clamp_max(max(len(path) - 2, 0))
    after = (before + 1).clamp_max(len(path) - 1)
    share = (places - before)[:, None, None]
    result = torch.lerp(path[before], path[after], share)
    turn = path[before, :3, :3].mT @ path[after, :3, :3]
    result[:, :3, :3] = path[before, :3, :3] @ _part_of_turn(turn, share)
    return result


def _part_of_turn(turn: Tensor, share: Tensor) -> Tensor:
    """The rotation (n, 3, 3) about the same axis by `share` (n, 1, 1) of the angle, by Rodrigues' formula.

    The axis comes from the antisymmetric part, so turns of half a circle between two video frames are out of reach.
    """
    skew = (turn - turn.mT) / 2  # sin(angle) times the axis' cross-product matrix
    sine = torch.stack((skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]), dim=-1).norm(dim=-1)[:, None, None]
    cosine = ((turn.diagonal(dim1=1, dim2=2).sum(-1) - 1) / 2)[:, None, None]
    angle = torch.atan2(sine, cosine) * share
    axis = skew / sine.clamp_min(1e-300)
    return torch.eye(3, dtype=turn.dtype) + angle.sin() * axis + (1 - angle.cos()) * axis @ axis


def ray_directions(intrinsics: Intrinsics, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Unit directions through the pixel centres in the camera's frame, (H, W, 3) float64."""
    x = (torch.arange(width, dtype=torch.float64, device=device) + 0.5 - intrinsics.cx) / intrinsics.fx
    y = (torch.arange(height, dtype=torch.float64, device=device) + 0.5 - intrinsics.cy) / intrinsics.fy
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.nn.functional.normalize(torch.stack((x, y, torch.ones_like(x)), dim=-1), dim=-1)


def plucker_map(motion: Tensor, directions: Tensor) -> Tensor:
    """Six numbers a pixel, origin and direction of its ray, folded: (..., T, 4, 4) to (..., 384, T, h, w) float32.

    directions: (8h, 8w, 3) of `ray_directions`. Channels stand in the order value, row, column.
    """
    rays = _turned(motion, directions)
    origins = motion[..., :3, 3, None, None, None].float().expand_as(rays)
    return _channels_first(torch.cat((origins, rays), dim=-4))


def action_map(motion: Tensor, directions: Tensor, held: Tensor) -> Tensor:
    """The `act` variant: direction of the ray and the flags of W, A, S, D; (..., 448, T, h, w) float32.

    held: (..., T, 4), 1 where the key is down.
    """
    rays = _turned(motion, directions)
    flags = held.to(rays)[..., None, None, None].expand(*held.shape, *rays.shape[-3:])
    return _channels_first(torch.cat((rays, flags), dim=-4))


def action_flags(keys: frozenset[str]) -> Tensor:
    """(4,) float32: 1 for each of W, A, S, D that is held."""
    return torch.tensor([float(key in keys) for key in ACTION_KEYS])


def _turned(motion: Tensor, directions: Tensor) -> Tensor:
    """directions (8h, 8w, 3), folded and in the frame of each motion (..., T, 4, 4): (..., T, 3, 64, h, w) float32.

    Folded before they are turned: one small matrix product then writes the map in its final order.
    """
    blocks = directions.unflatten(1, (-1, FOLD)).unflatten(0, (-1, FOLD))  # (h, 8, w, 8, 3)
    folded = blocks.permute(4, 1, 3, 0, 2).flatten(1, 2)
    turned = motion[..., :3, :3] @ folded.flatten(1).to(motion.dtype)
    return turned.unflatten(-1, folded.shape[1:]).float()


def _channels_first(values: Tensor) -> Tensor:
    """(..., T, c, 64, h, w) to (..., c*64, T, h, w)."""
    return values.flatten(-4, -3).transpose(-4, -3).contiguous()
