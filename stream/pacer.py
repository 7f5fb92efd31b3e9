"""Bursts of frames become an even clock: frame k leaves at start + k / fps, whenever its chunk came.

The pts of a frame is its place on this clock, not the time of its arrival, so that a burst does not come
out as one. When a chunk is late the last frame stays on the screen and the clock is moved once. When one was begun
before its own time for others' sake, the clock goes a little faster until it need not be any more.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from pipeline.chunk import Chunk

PTS_RATE = 90_000
"""Ticks a second of `pts`: RTP's clock for video."""
HURRY = 0.04
"""By this share sooner each frame leaves while the clock goes faster: no one sees it."""
LEAST_HURRY_SECONDS = 0.008
"""For less than this it is not worth it: chunks that are begun together differ by as much."""


class Paced(NamedTuple):
    """A frame (height, width, 3) uint8 RGB on its way out: its number in the session, its chunk, the newest
    control that it obeys, and its time on the media clock in ticks of 1/90000 s."""

    image: np.ndarray
    frame: int
    chunk: int
    sequence: int
    run: str
    pts: int = 0


class Source(Protocol):
    """Where a picture's frames are fetched from: `listener` is called when frames come."""

    listener: Callable[[], None]

    def delay(self) -> float | None: ...
    def pop(self) -> Paced: ...


class Mirror:
    """The frames that leave for a viewer once more, for someone who watches: each at once, a slow one misses some."""

    CAPACITY = 2

    def __init__(self) -> None:
        self._frames: deque[Paced] = deque(maxlen=self.CAPACITY)
        self.listener: Callable[[], None] = lambda: None

    def put(self, paced: Paced) -> None:
        """A frame leaves; the oldest one that waits gives way to it."""
        self._frames.append(paced)
        self.listener()

    def delay(self) -> float | None:
        """0 when a frame waits, None while none does."""
        return 0.0 if self._frames else None

    def pop(self) -> Paced:
        """The oldest frame that waits."""
        return self._frames.popleft()


class Pacer:
    """A bounded queue with a clock. `capacity` is in frames; a full queue drops its oldest, counted in `dropped`.

    `late` counts how often the clock was moved for a late chunk and `late_seconds` by how much in all, `unfetched` how
    often because no one fetched in time. `listener` is called when frames come.
    """

    def __init__(self, fps: int, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.period, self._clock, self._capacity = 1 / fps, clock, capacity
        self._queue: deque[Paced] = deque()
        self._epoch = clock()
        self._due: float | None = None
        self._early = self.late_seconds = 0.0
        self._rested = False
        self.late = self.unfetched = 0
        self.dropped = 0
        self.listener: Callable[[], None] = lambda: None

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def lead_seconds(self) -> float:
        """How long the queue lasts."""
        return len(self._queue) * self.period

    @property
    def has_begun(self) -> bool:
        """True when it is known when the next frame leaves."""
        return self._due is not None

    def due_after(self, frames: int) -> float:
        """When the frame leaves that has so many before it, in clock seconds, if all are there by then."""
        assert self._due is not None, "the clock has not begun"
        return self._due + frames * self.period - min(self._early, frames * HURRY * self.period)

    def put(self, chunk: Chunk) -> None:
        """Queue the frames of a chunk or a part of one."""
        if not self._queue:
            self._begin_again()
        if chunk.early >= LEAST_HURRY_SECONDS:
            self._early = chunk.early
        for offset, image in enumerate(chunk.frames):
            frame = chunk.first_frame + offset
            self._queue.append(Paced(image, frame, chunk.index, chunk.sequence, chunk.session))
        while len(self._queue) > self._capacity:
            self._queue.popleft()
            self.dropped += 1
        self.listener()

    def flush(self) -> None:
        """Forget what waits: the world begins again. What follows is not late."""
        self._queue.clear()
        self._due, self._early = None, 0.0

    def rested(self) -> None:
        """Nothing was to come for a while: what comes next is not late."""
        self._rested = not self._queue

    def delay(self) -> float | None:
        """Seconds until the next frame leaves, 0 when it is due; None while there is none."""
        if not self._queue:
            return None
        return max(0.0, self._next_due() - self._clock())

    def pop(self) -> Paced:
        """The next frame; the caller has waited for delay() to be 0."""
        due, now = self._next_due(), self._clock()
        if now - due > 2 * self.period:
            # Nobody fetched for a while: go on from here, a burst would help no one.
            due = now
            self.unfetched += 1
        sooner = min(HURRY * self.period, self._early)
        self._early -= sooner
        self._due = due + self.period - sooner
        return self._queue.popleft()._replace(pts=round((due - self._epoch) * PTS_RATE))

    def _next_due(self) -> float:
        if self._due is None:
            self._due = self._clock()
        return self._due

    def _begin_again(self) -> None:
        """Frames come to an empty queue: if that is too late, move the clock, once."""
        now = self._clock()
        if self._due is not None and now - self._due > self.period / 4:
            if not self._rested:
                self.late_seconds += now - self._due
                self.late += 1
            self._due = now
        self._rested = False
