"""Clips drawn by a second GPU, in a process of its own, while the first one trains."""

import queue
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from pipeline.tiny import renderer
from pipeline.tiny.clips import ClipMaker
from pipeline.tiny.plan import Plan
from pipeline.tiny.train_vae import encode_clips
from pipeline.tiny.vae import TinyVAE

WAITING = 4
"""Batches that wait to be taken; a full line makes the drawer wait."""


class Drawn(NamedTuple):
    """Latents (B, N, C, h, w) float16, pose (B, N, 2, 4) and scenes (B, N, 4)."""

    latents: Tensor
    pose: Tensor
    scenes: Tensor


@torch.no_grad()
def draw(maker: ClipMaker, vae: TinyVAE, plan: Plan) -> Drawn:
    clips = maker.make(plan.made_at_once, plan.chunks)
    return Drawn(encode_clips(vae, clips.pictures).half(), clips.pose, clips.scenes)


def compile_renderer() -> None:
    """Several times the pictures a second on a GPU, after most of a minute."""
    renderer.shade = torch.compile(renderer.shade, dynamic=False)


class Drawer:
    """The process, and the batches that it has ready."""

    def __init__(self, device: str, vae: TinyVAE, seed: int, plan: Plan):
        spawn = multiprocessing.get_context("spawn")
        self._device = device
        self._waiting = spawn.Queue(WAITING)
        weights = {name: value.cpu() for name, value in vae.state_dict().items()}
        arguments = (device, weights, seed, plan, self._waiting)
        self._process = spawn.Process(target=_fill, args=arguments, daemon=True)
        self._process.start()

    def take(self) -> Drawn | None:
        """The next batch, on the CPU, or None when none is ready. RuntimeError when the process has ended."""
        if not self._process.is_alive():
            raise RuntimeError(f"the process that draws on {self._device} has ended; its own error is above")
        try:
            return self._waiting.get_nowait()
        except queue.Empty:
            return None

    def close(self) -> None:
        self._process.kill()
        self._process.join()


@contextmanager
def drawing(device: str, vae: TinyVAE, seed: int, plan: Plan) -> Iterator[Drawer]:
    """A drawer that ends with the block."""
    drawer = Drawer(device, vae, seed, plan)
    try:
        yield drawer
    finally:
        drawer.close()


def _fill(device: str, weights: dict[str, Tensor], seed: int, plan: Plan, waiting: "queue.Queue[Drawn]") -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that trains; it ends this one
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        compile_renderer()
    vae = TinyVAE().to(device, memory_format=torch.channels_last).requires_grad_(False)
    vae.load_state_dict(weights)
    maker = ClipMaker(seed, device, plan.coarseness)
    while True:
        waiting.put(Drawn(*(part.cpu() for part in draw(maker, vae, plan))))
