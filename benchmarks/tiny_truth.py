"""The renderer as the benchmark's truth: what stands at a pose in a scene, at the stream's size or the probes'.

N pictures; poses are (N, 4) x, z, yaw, pitch; scenes (N, 4) indexes as in pipeline.tiny.scene.Scene.
"""

import hashlib
import os
import shutil
import sysconfig
import time
from pathlib import Path

import torch
from torch import Tensor

from pipeline.camera import FRAMES_PER_LATENT, STEP, TURN
from pipeline.tiny import landscape, renderer
from pipeline.tiny.clips import HEIGHT, WIDTH
from pipeline.tiny.drawer import compile_renderer
from pipeline.tiny.renderer import PHASES, Renderer

REDUCTION = 2
"""The probes see pictures so many times smaller."""
SMALL = (HEIGHT // REDUCTION, WIDTH // REDUCTION)
LAST_PHASE = PHASES - 1
RAYS_AT_ONCE = {"cuda": 64 * 2 * HEIGHT * 2 * WIDTH, "cpu": HEIGHT // 2 * WIDTH // 2}
"""A GPU is filled by a batch as training draws it, a CPU's cache by one small picture."""
REPORT_SECONDS = 5.0


def draw_quickly(device: torch.device) -> None:
    """Compile the renderer where that can be done: a CPU draws ten times as quickly, off by one of 255 at the most."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if device.type == "cuda" or (headers.exists() and shutil.which(os.environ.get("CXX", "g++"))):
        compile_renderer()


class Truth:
    """Draws pictures on one device."""

    def __init__(self, device: torch.device | str, rays: int = 2):
        """`rays` a pixel and axis: 2 as the training data are drawn; 1 is four times as quick."""
        self.device = torch.device(device)
        self.renderer = Renderer(device)
        self.oversample = rays

    def full(self, poses: Tensor, scenes: Tensor, phases: Tensor | None = None) -> Tensor:
        """(N, 3, H, W) uint8 as a video frame is; `phases` are (N,), without them each is a chunk's last frame."""
        return self._draw(poses, scenes, (HEIGHT, WIDTH), phases)

    def small(self, poses: Tensor, scenes: Tensor) -> Tensor:
        """The same at the probes' size."""
        return self._draw(poses, scenes, SMALL, None)

    @torch.no_grad()
    def _draw(self, poses: Tensor, scenes: Tensor, size: tuple[int, int], phases: Tensor | None) -> Tensor:
        phases = torch.full((len(poses),), LAST_PHASE) if phases is None else phases
        poses, scenes, phases = poses.float().to(self.device), scenes.to(self.device), phases.to(self.device)
        at_once = max(1, RAYS_AT_ONCE[self.device.type] // (size[0] * size[1] * self.oversample**2))
        drawn = torch.empty(len(poses), 3, *size, dtype=torch.uint8, device=self.device)
        reported = time.monotonic()
        for first in range(0, len(poses), at_once):
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                print(f"the renderer: {first} of {len(poses)} pictures", flush=True)
            count = len(poses[first : first + at_once])
            # Always full batches: the compiled renderer is made for one shape.
            rows = torch.arange(first, first + at_once, device=self.device).clamp(max=len(poses) - 1)
            rows = rows if self.device.type == "cuda" else rows[:count]
            made = self.renderer.render(poses[rows], scenes[rows], phases[rows], *size, oversample=self.oversample)
            drawn[first : first + count] = made[:count].mul(255).round().byte()
        return drawn


def fingerprint() -> str:
    """Of everything that the pictures follow from: another one, and what was learnt from them does not hold."""
    files = (Path(module.__file__).read_bytes() for module in (landscape, renderer))
    return hashlib.sha256(b"".join(files)).hexdigest()[:16]


def motion(before: Tensor, after: Tensor) -> Tensor:
    """The camera's motion between poses (..., 4): (..., 4) ahead, aside, turn, tilt; 1 is a key held a latent frame.

    Ahead and aside are along and across the heading halfway.
    """
    dx, dz, turn, tilt = (after - before).unbind(-1)
    heading = before[..., 2] + turn / 2
    length, angle = STEP * FRAMES_PER_LATENT, TURN * FRAMES_PER_LATENT
    ahead = (dx * heading.sin() + dz * heading.cos()) / length
    aside = (dx * heading.cos() - dz * heading.sin()) / length
    return torch.stack((ahead, aside, turn / angle, tilt / angle), dim=-1)


def moved(before: Tensor, motion: Tensor) -> Tensor:
    """The pose after `motion`, the other way round; pitch is left where it falls."""
    ahead, aside, turn, tilt = motion.unbind(-1)
    length, angle = STEP * FRAMES_PER_LATENT, TURN * FRAMES_PER_LATENT
    x, z, yaw, pitch = before.unbind(-1)
    heading = yaw + turn * angle / 2
    x = x + length * (ahead * heading.sin() + aside * heading.cos())
    z = z + length * (ahead * heading.cos() - aside * heading.sin())
    return torch.stack((x, z, yaw + turn * angle, pitch + tilt * angle), dim=-1)
