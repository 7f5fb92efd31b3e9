"""Chunks on their way: queued on a device, to be waited for by whoever takes the frames.

N video frames in a chunk, H W frame height and width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.chunk import Chunk, Ended


class Frames(NamedTuple):
    """A chunk's pictures (N, H, W, 3) uint8, and whether its latents were finite; on the host once `arrived`."""

    pixels: Tensor
    finite: Tensor
    arrived: torch.cuda.Event | None


@dataclass(frozen=True, eq=False)
class PendingChunk:
    """A chunk in the making: `chunk` is what is known without waiting, `frames` how many frames it will have."""

    chunk: Chunk
    frames: int
    made: Frames
    seconds: Callable[[], dict[str, float]]

    @property
    def session(self) -> str:
        return self.chunk.session

    def result(self) -> Chunk | Ended:
        """The chunk with its frames; Ended where its latents are not finite. Waits for the device; any thread may."""
        if self.made.arrived is not None:
            self.made.arrived.synchronize()
        if not self.made.finite:
            reason = "the world broke down (its latents are not finite); start it again with another seed"
            return Ended(self.session, reason)
        return replace(self.chunk, frames=self.made.pixels.numpy(), seconds=self.seconds())
