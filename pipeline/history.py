"""What a live session has been, and how its key-value cache comes back from that.

C latent channels, T latent frames in a chunk, h w latent height and width.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from pipeline.chunk import Control, Event
from pipeline.steering import Walked


@dataclass(frozen=True)
class Sight:
    """How far a chunk sees back: `chunk` T, `window` and `sink` are latent frames, as in a preset."""

    chunk: int
    window: int
    sink: int

    @property
    def sink_chunks(self) -> int:
        """How many chunks have a latent frame in the sink."""
        return -(-self.sink // self.chunk)

    def oldest(self, chunk: int) -> int:
        """The first chunk, beside the sink's, of which `chunk` sees a latent frame."""
        return max(0, ((chunk + 1) * self.chunk - (self.window - self.sink)) // self.chunk)

    def past(self, chunk: int) -> list[int]:
        """All chunks of which `chunk` sees a latent frame, itself left out."""
        oldest = self.oldest(chunk)
        return [*range(min(self.sink_chunks, oldest, chunk)), *range(oldest, chunk)]

    @property
    def span(self) -> int:
        """How many chunks a chunk sees back, the sink left out, once the window is full."""
        return -((self.sink - self.window) // self.chunk) - 1


def by_chunk(events: Sequence[Event], made: int) -> Iterator[tuple[int, Event]]:
    """Each of the first `made` chunks with the event in force; one that is the chunk's own has its number."""
    coming = deque(events)
    held = Event(0)
    for chunk in range(made):
        while coming and coming[0].chunk <= chunk:
            held = coming.popleft()
        yield chunk, held


class Pass(NamedTuple):
    """A context pass: writes keys and values of `chunk` under the session's prompt number `prompt` (0 is its first).

    It sees the sink and the chunks from `oldest`. `alone`: by itself, else beside the next chunk's first pass.
    """

    chunk: int
    prompt: int
    oldest: int
    alone: bool


class Stale(NamedTuple):
    """Chunks of the past to be written anew under a new prompt, `pace` of them before each coming chunk."""

    chunks: tuple[int, ...] = ()
    pace: int = 0

    def due(self, sight: Sight, chunk: int) -> "tuple[tuple[int, ...], Stale]":
        """What is to be written before `chunk`, and what is left; what it does not see any more is forgotten."""
        if not self.chunks:
            return (), self
        seen = set(sight.past(chunk))
        chunks = tuple(each for each in self.chunks if each in seen)
        return chunks[: self.pace], Stale(chunks[self.pace :], self.pace)


class Rebuild(NamedTuple):
    """What brings a cache back: passes in their order, the last chunk's own where it is still owed, and what a new
    prompt left to be written anew."""

    passes: tuple[Pass, ...]
    owed: Pass | None
    stale: Stale


def stale_after(sight: Sight, chunk: int, owed: bool) -> tuple[int, ...]:
    """What a new prompt from `chunk` on makes stale. A pass that is still owed takes the new prompt by itself."""
    return tuple(each for each in sight.past(chunk) if not (owed and each == chunk - 1))


def plan_rebuild(events: Sequence[Event], made: int, sight: Sight, kept: int, depth: int, settles: bool) -> Rebuild:
    """The context passes of the run that made `made` chunks, as far as they matter to the next one.

    Latents are there of the chunks from `kept` on and of the sink's. The plan begins `depth` chunks before the oldest
    one that the next chunk sees, or later where a new prompt had all of the past written anew: nothing from before that
    is left. `settles` says that a chunk's context pass follows it at once rather than beside the next chunk.
    """
    prompts = {event.chunk: event for event in events if event.prompt is not None}
    first = begin = max(kept, sight.oldest(made) - depth, 0)
    for chunk, event in prompts.items():
        at_once = 0 < len(stale_after(sight, chunk, not settles)) <= event.rewrites
        if at_once and sight.oldest(chunk) >= first:
            first, begin = sight.oldest(chunk), chunk
    run = _Run(sight, settles)
    for chunk in range(made):
        run.step(chunk, prompts.get(chunk))
    before = {one.chunk: one for step, one in run.passes if step < begin and one.chunk < min(sight.sink_chunks, first)}
    after = [one for step, one in run.passes if step >= begin and (one.chunk >= first or one.chunk < sight.sink_chunks)]
    passes = (*before.values(), *(one._replace(oldest=max(one.oldest, first)) for one in after))
    owed = None if settles or not made else run.owed._replace(oldest=max(run.owed.oldest, first))
    return Rebuild(passes, owed, run.stale)


class _Run:
    """The order in which an engine writes the cache, replayed on chunk numbers alone: (step, pass)."""

    def __init__(self, sight: Sight, settles: bool):
        self.sight, self.settles = sight, settles
        self.passes: list[tuple[int, Pass]] = []
        self.prompt = 0
        self.owed: Pass | None = None
        self.stale = Stale()

    def step(self, chunk: int, event: Event | None) -> None:
        if event is not None:
            self._change(chunk, event)
        due, self.stale = self.stale.due(self.sight, chunk)
        for each in due:
            self.passes.append((chunk, Pass(each, self.prompt, self.sight.oldest(chunk), alone=True)))
        if self.owed is not None:
            self.passes.append((chunk, self.owed))
        own = Pass(chunk, self.prompt, 0, alone=self.settles)
        if self.settles:
            self.passes.append((chunk, own))
        else:
            self.owed = own

    def _change(self, chunk: int, event: Event) -> None:
        self.prompt += 1
        self.stale = Stale()
        if event.rewrites:
            self.stale = Stale(stale_after(self.sight, chunk, not self.settles), event.rewrites)
            if self.owed is not None:
                self.owed = self.owed._replace(prompt=self.prompt, oldest=self.sight.oldest(chunk))


class Made(NamedTuple):
    """A chunk of the past: its clean latents (C, T, h, w) on the engine's device, and the walk through it."""

    latents: Tensor
    walked: Walked


SHELF_CHUNKS = 64


class Shelf:
    """Where latents are kept, `chunks` of them in one piece of memory.

    One by one they would lie between what comes and goes with each chunk, and hold all of it: the C library can give a
    piece of memory back only where nothing behind it is in use.
    """

    def __init__(self, chunks: int = SHELF_CHUNKS) -> None:
        self._chunks = chunks
        self._free: list[Tensor] = []

    def put(self, latents: Tensor) -> Tensor:
        """A copy that stays."""
        if not self._free:
            self._free = list(latents.new_empty(self._chunks, *latents.shape).unbind())
        kept = self._free.pop()
        kept.copy_(latents)
        return kept


class History:
    """One live session's past: all events, and what was made in the stream's first and its newest chunks.

    Bounded: of each session `kept` chunks stay and the first `sink_chunks`; only the events grow.
    """

    def __init__(self, sink_chunks: int, kept: int):
        self.events: list[Event] = []
        self.count = 0
        self._sink_chunks = sink_chunks
        self._first: list[Made] = []
        self._newest: deque[Made] = deque(maxlen=kept)
        self._shelf = Shelf(min(SHELF_CHUNKS, kept))  # large latents are few, and an unfilled piece is lost memory

    @property
    def oldest(self) -> int:
        """The first chunk from which on all are kept."""
        return self.count - len(self._newest)

    def obey(self, chunk: int, control: Control, rewrites: int) -> None:
        """Note what holds from `chunk` on, where it differs from what held before."""
        keys = self.events[-1].keys if self.events else frozenset()
        if control.prompt is not None or control.keys != keys:
            self.events.append(Event(chunk, control.keys, control.prompt, rewrites))

    def keep(self, made: Made) -> None:
        """Add the next chunk, whose latents are copied; the oldest one goes where there is no room."""
        made = made._replace(latents=self._shelf.put(made.latents))
        if self.count < self._sink_chunks:
            self._first.append(made)
        self._newest.append(made)
        self.count += 1

    def skip(self, count: int) -> None:
        """Begin the newest chunks at `count`; what lies between the first ones and those is not kept."""
        self.count = count
        self._newest.clear()

    def made(self, chunk: int) -> Made:
        """The kept chunk of that number; IndexError for one that is not kept."""
        if chunk < len(self._first):
            return self._first[chunk]
        if not self.oldest <= chunk < self.count:
            raise IndexError(f"chunk {chunk} is not kept: there are those from {self.oldest} to {self.count - 1}")
        return self._newest[chunk - self.oldest]

    def latents(self) -> tuple[list[Tensor], list[Tensor]]:
        """Of the first chunks, and of the newest ones."""
        return [made.latents for made in self._first], [made.latents for made in self._newest]
