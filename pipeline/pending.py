"""Chunks on their way: queued on a device, to be waited for by whoever takes the frames.

N video frames in a chunk or a part of it, H W frame height and width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.chunk import Chunk, Ended


class Frames(NamedTuple):
    """The pictures of one latent frame (N, H, W, 3) uint8, and whether its chunk was finite; here once `arrived`."""

    pixels: Tensor
    finite: Tensor
    arrived: torch.cuda.Event | None


@dataclass(frozen=True, eq=False)
class PendingChunk:
    """A chunk in the making: `chunk` is what is known without waiting, `made` its pictures, a latent frame each.

    The latent frames are decoded one after another, so the first pictures are there well before the last: part() has
    them as they come, result() waits for all. A session whose chunk cannot be shown is Ended in both.
    """

    chunk: Chunk
    made: Sequence[Frames]
    seconds: Callable[[], dict[str, float]]

    @property
    def session(self) -> str:
        return self.chunk.session

    @property
    def frames(self) -> int:
        """How many frames it will have."""
        return sum(self.parts)

    @property
    def parts(self) -> tuple[int, ...]:
        """How many frames each part will have, in the order in which they are shown."""
        return tuple(len(each.pixels) for each in self.made)

    def part(self, number: int) -> np.ndarray | Ended:
        """The frames (N, H, W, 3) uint8 of part `number`. Waits for the device; any thread may."""
        pixels, finite, arrived = self.made[number]
        if arrived is not None:
            arrived.synchronize()
        if not finite:
            reason = "the world broke down (its latents are not finite); start it again with another seed"
            return Ended(self.session, reason)
        return pixels.numpy()

    def result(self) -> Chunk | Ended:
        """The chunk with its frames; Ended where its latents are not finite. Waits for the device; any thread may."""
        parts = [self.part(number) for number in range(len(self.made))]
        ended = next((part for part in parts if isinstance(part, Ended)), None)
        if ended is not None:
            return ended
        frames = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return replace(self.chunk, frames=frames, seconds=self.seconds())

    def arriving(self) -> Iterator[Chunk | Ended]:
        """The chunk part by part, each as soon as it is there; `more` says that others follow, `seconds` come last.

        Ended in place of a part that cannot be shown is the last one. Waits for the device; any thread may.
        """
        first, last = self.chunk.first_frame, len(self.made) - 1
        for number in range(len(self.made)):
            frames = self.part(number)
            if isinstance(frames, Ended):
                yield frames
                return
            seconds = self.seconds() if number == last else {}
            yield replace(self.chunk, first_frame=first, frames=frames, seconds=seconds, more=number < last)
            first += len(frames)
