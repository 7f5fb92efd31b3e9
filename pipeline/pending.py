"""Chunks on their way: queued on a device, to be waited for by whoever takes the frames.

N video frames in a chunk, H W frame height and width.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.chunk import Chunk, Ended


class Frames(NamedTuple):
    """The pictures (N, H, W, 3) uint8 of a part of a chunk, and whether all its latents were finite; on the host once
    `arrived`."""

    pixels: Tensor
    finite: Tensor
    arrived: torch.cuda.Event | None

    def wait(self) -> None:
        """Until they are on the host."""
        if self.arrived is not None:
            self.arrived.synchronize()


@dataclass(frozen=True, eq=False)
class PendingChunk:
    """A chunk in the making: `chunk` is what is known without waiting, `made` its pictures in parts."""

    chunk: Chunk
    made: tuple[Frames, ...]
    seconds: Callable[[], dict[str, float]]

    @property
    def session(self) -> str:
        return self.chunk.session

    @property
    def frames(self) -> int:
        """How many video frames it will have."""
        return sum(len(each.pixels) for each in self.made)

    def parts(self) -> Iterator[Chunk | Ended]:
        """The chunk in parts, each as soon as it is decoded; Ended where its latents are not finite.

        Waits for the device; any thread may.
        """
        first, last = self.chunk.first_frame, len(self.made) - 1
        for number, each in enumerate(self.made):
            each.wait()
            if not each.finite:
                reason = "the world broke down (its latents are not finite); start it again with another seed"
                yield Ended(self.session, reason)
                return
            seconds = self.seconds() if number == last else {}
            yield replace(
                self.chunk, first_frame=first, frames=each.pixels.numpy(), seconds=seconds, more=number < last
            )
            first += len(each.pixels)

    def result(self) -> Chunk | Ended:
        """The whole chunk, or Ended. Waits for the device; any thread may."""
        parts = list(self.parts())
        if isinstance(parts[-1], Ended) or len(parts) == 1:
            return parts[-1]
        frames = np.concatenate([part.frames for part in parts])
        return replace(self.chunk, frames=frames, seconds=parts[-1].seconds)
