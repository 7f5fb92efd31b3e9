"""When each control came, and when each frame was made and left: what a server with `--mark` answers at GET /mark.

All times are seconds of time.monotonic(), which the engine's process shares on Linux.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pipeline.chunk import Chunk
from stream.mark import Mark, stamp
from stream.pacer import Paced

REMEMBERED = 8192
"""Frames, and controls: with two viewers at 16 frames/s what happened in the last four minutes."""
KEPT_EVERY, KEPT = 32, 64
"""Of so many frames one picture is kept, to be compared with what a viewer saw of it; and so many at most."""


class FrameTimes(NamedTuple):
    """A frame's way: its chunk was begun (and the control read), took `denoise` and `decode` seconds (None where the
    engine does not say, as of a chunk's first part), arrived in the server, and the frame left the pacer and was given
    to the network.

    `run` is the session's name in the engine, `rtp` the frame's timestamp.
    """

    run: str
    frame: int
    chunk: int
    sequence: int
    begun: float
    denoise: float | None
    decode: float | None
    arrived: float
    took: float = 0.0
    sent: float = 0.0
    rtp: int | None = None


class ControlTime(NamedTuple):
    """A control of a session, by the session's name, and when it came first."""

    session: str
    sequence: int
    came: float


class Trace:
    """Follows frames through one server and stamps them; `clock` is in seconds. Bounded: the oldest is forgotten."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._on_way: dict[tuple[str, int], FrameTimes] = {}
        self._frames: deque[tuple[int, FrameTimes]] = deque(maxlen=REMEMBERED)
        self._controls: deque[tuple[int, ControlTime]] = deque(maxlen=REMEMBERED)
        self._newest: dict[str, int] = {}
        self._pictures: dict[tuple[str, int], np.ndarray] = {}
        self._count = 0

    def came(self, session: str, sequence: int) -> None:
        """A control came; one that is sent again came before."""
        if sequence > self._newest.get(session, -1):
            self._newest[session] = sequence
            _forget_oldest(self._newest, REMEMBERED)
            self._controls.append((self._count, ControlTime(session, sequence, self._clock())))
            self._count += 1

    def arrived(self, chunk: Chunk) -> None:
        """A chunk, or a part of one, is in the server."""
        now, seconds = self._clock(), chunk.seconds
        denoise = seconds["denoise"] + seconds.get("prepare", 0.0) if "denoise" in seconds else None
        for frame in range(chunk.first_frame, chunk.first_frame + len(chunk.frames)):
            self._on_way[chunk.session, frame] = FrameTimes(
                chunk.session, frame, chunk.index, chunk.sequence, chunk.begun, denoise, seconds.get("decode"), now
            )
        _forget_oldest(self._on_way, REMEMBERED)

    def took(self, paced: Paced) -> None:
        """A frame leaves the pacer: it gets its mark."""
        stamp(paced.image, Mark(paced.frame, paced.chunk, paced.sequence))
        key = (paced.run, paced.frame)
        if key in self._on_way:
            self._on_way[key] = self._on_way[key]._replace(took=self._clock())
        if paced.frame % KEPT_EVERY == 0:
            self._pictures[key] = paced.image.copy()
            _forget_oldest(self._pictures, KEPT)

    def sent(self, paced: Paced, rtp: int | None) -> None:
        """A frame has been given to the network."""
        if found := self._on_way.pop((paced.run, paced.frame), None):
            self._frames.append((self._count, found._replace(sent=self._clock(), rtp=rtp)))
            self._count += 1

    def picture(self, run: str, frame: int) -> np.ndarray | None:
        """A frame (H, W, 3) uint8 RGB as it left the pacer; None where it was not kept, or is not any more."""
        return self._pictures.get((run, frame))

    def since(self, count: int) -> dict[str, Any]:
        """What came and was sent after the first `count` of both, as far as remembered, their count, the time now."""
        frames = [way for number, way in self._frames if number >= count]
        controls = [control for number, control in self._controls if number >= count]
        return {"now": self._clock(), "count": self._count, "frames": frames, "controls": controls}


def _forget_oldest(kept: dict[Any, Any], most: int) -> None:
    while len(kept) > most:
        del kept[next(iter(kept))]
