"""A session's walk: held keys in, the camera of each chunk out.

T latent frames in a chunk, h w latent height and width.
"""

import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline import camera
from pipeline.camera import FOLD, FRAMES_PER_LATENT, Pose
from pipeline.presets import Preset
from pipeline.sampler import PLACE, stream


class Walked(NamedTuple):
    """The walk through one chunk: pose (T, 2, 4) float64 (see camera.walk), and the keys of each video frame walked,
    `moves` of them in each latent frame."""

    pose: Tensor
    keys: tuple[frozenset[str], ...]
    moves: tuple[int, ...]


class Steering:
    """Where one session's viewer stands; `walked` is the chunk that was stepped into last."""

    def __init__(self, preset: Preset, seed: int, script: tuple[frozenset[str], ...] = ()):
        self._preset = preset
        self._script = iter(script)
        self._standing = starting_pose(preset, seed)
        self._pitch_limit = float(np.radians(preset.pitch_limit))
        self.walked: Walked | None = None
        self._directions = None
        if preset.control != "none":
            height, width = (FOLD * side for side in preset.latent_shape[2:])
            view = camera.intrinsics_from_view(preset.field_of_view, height, width)
            self._directions = camera.ray_directions(view, height, width)

    def advance(self, keys: frozenset[str]) -> None:
        """Walk one chunk on with `keys` held; while a recorded script lasts, its keys go first."""
        moves = self._moves()
        held = list(itertools.islice(self._script, sum(moves)))
        held += [keys] * (sum(moves) - len(held))
        pose, self._standing = camera.walk(self._standing, held, moves, self._pitch_limit)
        self.walked = Walked(pose, tuple(held), tuple(moves))

    def plucker(self, walked: Walked) -> Tensor:
        """The camera input of a chunk, (384 or 448, T, h, w) float32; for presets with camera control."""
        motion = camera.live_motion(walked.pose)
        if self._preset.control == "cam":
            return camera.plucker_map(motion, self._directions)
        ends = np.cumsum(walked.moves)
        flags = [camera.action_flags(walked.keys[end - 1] if end else frozenset()) for end in ends]
        return camera.action_map(motion, self._directions, torch.stack(flags))

    def _moves(self) -> list[int]:
        """Video frames walked in each latent frame; a stream that begins with one picture has not moved in it."""
        moves = [FRAMES_PER_LATENT] * self._preset.chunk
        if self.walked is None and self._preset.first_frames == 1:
            moves[0] = 0
        return moves


def starting_pose(preset: Preset, seed: int) -> Pose:
    """The origin, looking along +z; on a world map a place and a direction that the seed draws."""
    if preset.transformer.world_map is None:
        return Pose()
    draw = stream(seed, PLACE)
    x, z = draw.uniform(0, preset.transformer.world_map.period, 2)
    return Pose(float(x), float(z), float(draw.uniform(0, 2 * np.pi)), 0.0)
