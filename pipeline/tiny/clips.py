"""Training data: random walks through random scenes, drawn by the renderer.

B clips, N latent frames a clip, four pictures each.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.camera import FRAMES_PER_LATENT, STEP, TURN
from pipeline.tiny.landscape import PERIOD
from pipeline.tiny.renderer import Renderer
from pipeline.tiny.text import KINDS

PITCH_LIMIT = 14.0 * torch.pi / 180
HEIGHT, WIDTH = 192, 320
KEEP_KEYS = 0.55
"""How often what is held stays for the next latent frame."""
OWN_THINGS = 0.65
"""How often a scene has its place's own objects."""
FADE_LATENTS = 2
"""A new prompt's picture fades in over so many latent frames."""
PICTURES_AT_ONCE = 64


class Clips(NamedTuple):
    """pictures: (B, N, 3, 4, H, W) in [-1, 1]; pose: (B, N, 2, 4); scenes: (B, N, 4) int64, the prompt in force."""

    pictures: Tensor
    pose: Tensor
    scenes: Tensor


class ClipMaker:
    """Makes clips from a seed: the same seed gives the same clips, call by call."""

    def __init__(self, seed: int, device: torch.device | str, coarseness: int = 1):
        """`coarseness` 2, 4 ... draws that much coarser and repeats pixels: for trying things out on a CPU."""
        self.device = torch.device(device)
        self.generator = torch.Generator().manual_seed(seed)
        self.renderer = Renderer(device)
        self.coarseness = coarseness

    def make(self, clips: int, latents: int) -> Clips:
        """The first half of the clips changes its prompt on the way, where `latents` leave room for it."""
        path = walk_many(self._starts(clips), self._held(clips, latents))
        scenes, change = self._scenes(clips, latents)
        pictures = self._draw(path[:, :, 1:], scenes)
        if len(change):
            self._fade(pictures, path[:, :, 1:], scenes, change)
        return Clips(pictures.mul_(2).sub_(1), path[:, :, (0, -1)].to(self.device), scenes.to(self.device))

    def stills(self, count: int) -> tuple[Tensor, Tensor]:
        """Single pictures (B, 3, H, W) in [-1, 1] and scenes (B, 4), each of a pose and a scene of its own."""
        poses, scenes = self._starts(count), self._random_scenes(count).to(self.device)
        phase = torch.arange(count, device=self.device) % FRAMES_PER_LATENT
        return self._rendered(poses.float().to(self.device), scenes, phase).mul_(2).sub_(1), scenes

    def _starts(self, clips: int) -> Tensor:
        start = torch.rand(clips, 4, generator=self.generator, dtype=torch.float64)
        start = start * torch.tensor([PERIOD, PERIOD, 2 * torch.pi, 0.0], dtype=torch.float64)
        tilt = 0.4 * PITCH_LIMIT * torch.randn(clips, generator=self.generator, dtype=torch.float64)
        start[:, 3] = tilt.clamp(-PITCH_LIMIT, PITCH_LIMIT) * (self._rand(clips) < 0.5)
        return start

    def _held(self, clips: int, latents: int) -> Tensor:
        """(B, N, 4): ahead, aside, turn, tilt, each -1, 0 or 1, constant within a latent frame."""
        held = torch.zeros(clips, latents, 4)
        for index in range(latents):
            keep = (self._rand(clips) < KEEP_KEYS) & (index > 0)
            held[:, index] = torch.where(keep[:, None], held[:, max(index - 1, 0)], self._fresh_keys(clips))
        return held

    def _fresh_keys(self, clips: int) -> Tensor:
        chances = torch.tensor([0.75, 0.25, 0.55, 0.18])
        down = torch.rand(clips, 4, generator=self.generator) < chances
        backwards = torch.rand(clips, 4, generator=self.generator) < torch.tensor([0.25, 0.5, 0.5, 0.5])
        return down.float() * torch.where(backwards, -1.0, 1.0)

    def _scenes(self, clips: int, latents: int) -> tuple[Tensor, Tensor]:
        """(B, N, 4) and, for each of the first clips, the latent frame at which its prompt changes."""
        before = self._random_scenes(clips)
        other = torch.rand(clips, 4, generator=self.generator) < 0.5
        after = torch.where(other, self._random_scenes(clips), before)
        count = clips // 2 if latents > FADE_LATENTS + 2 else 0
        change = torch.randint(2, max(3, latents - FADE_LATENTS + 1), (count,), generator=self.generator)
        scenes = before[:, None].repeat(1, latents, 1)
        for clip, at in enumerate(change.tolist()):
            scenes[clip, at:] = after[clip]
        return scenes, change

    def _random_scenes(self, clips: int) -> Tensor:
        columns = [torch.randint(kinds, (clips,), generator=self.generator) for kinds in KINDS]
        columns[1] = torch.where(self._rand(clips) < OWN_THINGS, 0, columns[1])
        return torch.stack(columns, dim=1)

    def _rand(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator)

    def _draw(self, path: Tensor, scenes: Tensor) -> Tensor:
        """path (B, N, 4, 4), a pose a picture, and scenes (B, N, 4) to pictures (B, N, 3, 4, H, W) in [0, 1]."""
        poses = path.float().flatten(0, 2).to(self.device)
        what = scenes[:, :, None].expand(-1, -1, FRAMES_PER_LATENT, -1).flatten(0, 2).to(self.device)
        phase = torch.arange(FRAMES_PER_LATENT, device=self.device).repeat(len(poses) // FRAMES_PER_LATENT)
        return self._rendered(poses, what, phase).unflatten(0, path.shape[:3]).movedim(2, 3)

    def _rendered(self, poses: Tensor, scenes: Tensor, phase: Tensor) -> Tensor:
        """(B, 4), (B, 4) and which of a latent frame's pictures each is, (B,), to (B, 3, H, W) in [0, 1]."""
        drawn = [
            self.renderer.render(
                *(part[first : first + PICTURES_AT_ONCE] for part in (poses, scenes, phase)),
                HEIGHT // self.coarseness,
                WIDTH // self.coarseness,
                oversample=2 if self.coarseness == 1 else 1,
            )
            for first in range(0, len(poses), PICTURES_AT_ONCE)
        ]
        pictures = torch.cat(drawn)
        return pictures.repeat_interleave(self.coarseness, 2).repeat_interleave(self.coarseness, 3)

    def _fade(self, pictures: Tensor, path: Tensor, scenes: Tensor, change: Tensor) -> None:
        """Blend the old scene out of the changing clips' pictures, in place and smoothly."""
        clip = torch.arange(len(change))[:, None]
        at = change[:, None] + torch.arange(FADE_LATENTS)
        old = self._draw(path[clip, at], scenes[clip, 0].expand(-1, FADE_LATENTS, -1))
        count = FADE_LATENTS * FRAMES_PER_LATENT
        share = torch.arange(1, count + 1, device=self.device) / (count + 1)
        share = (share * share * (3 - 2 * share)).view(FADE_LATENTS, 1, FRAMES_PER_LATENT, 1, 1)
        clip, at = clip.to(self.device), at.to(self.device)
        pictures[clip, at] = torch.lerp(old, pictures[clip, at], share)


def walk_many(start: Tensor, held: Tensor) -> Tensor:
    """camera.step for many walkers at once.

    start: (B, 4) x, z, yaw, pitch; held: (B, N, 4) ahead, aside, turn, tilt in -1..1. Returns (B, N, 5, 4): the pose
    before each latent frame and after each of its video frames.
    """
    pose, path = start, []
    for keys in held.double().unbind(1):
        path.append([pose])
        for _ in range(FRAMES_PER_LATENT):
            pose = _step_many(pose, *keys.unbind(-1))
            path[-1].append(pose)
    return torch.stack([torch.stack(poses, dim=1) for poses in path], dim=1)


def _step_many(pose: Tensor, ahead: Tensor, aside: Tensor, turn: Tensor, tilt: Tensor) -> Tensor:
    x, z, yaw, pitch = pose.unbind(-1)
    yaw = yaw + TURN * turn
    pitch = (pitch + TURN * tilt).clamp(-PITCH_LIMIT, PITCH_LIMIT)
    length = STEP / torch.hypot(ahead, aside).clamp(min=1)
    x = x + length * (ahead * yaw.sin() + aside * yaw.cos())
    z = z + length * (ahead * yaw.cos() - aside * yaw.sin())
    return torch.stack((x, z, yaw, pitch), dim=-1)
