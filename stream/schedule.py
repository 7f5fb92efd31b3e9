"""When the next chunk begins: as late as it can and still be in time, for what is pressed until then counts.

Grants say which chunks a session may have, and when its frames are to leave. From how long chunks took lately follows
when the next one must begin, so that its first frames are there `lead` seconds before the first of them leaves; a chunk
that comes late all the same makes that margin larger at once, and it shrinks again slowly. In turns no two chunks can
be made at the same time, so the plan goes backwards from the last one in sight. In a batch and in parallel others come
along who could not wait until the step without them is done. Whoever is begun before its own time for others' sake is
told so (`Step.early`): its clock goes a little faster until it need not be any more (stream/pacer.py).

Plain counting, no processes. All times are in seconds of `clock`, which is the same in all processes of a machine.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.chunk import World
from stream.orders import Grant
from stream.pacer import Pacer

LEAD_SECONDS = 0.01
"""So long before its time a chunk should be there, where nothing else is asked for. It may come a quarter of a frame
after it before the pacer's clock is moved."""
CALM_SECONDS = 3.0
"""In so much time without a late chunk half of what was added to the margin goes."""
MOST_GROWTH = 1 / 8
"""Of a chunk's playing time: so much at most is added for one late chunk, as its reason may never come again. What is
late by a whole chunk waited for something else."""
CROWDED = 0.9
"""The share of the time from which on chunks made in turns cannot get out of each other's way."""
RECENT, GUESSES, UPPER = 20, 10, 0.8
"""So many chunks say how long the next one takes, by this quantile. What was measured before the first of them counts
as so many, so that one slow chunk at the beginning says little."""


def first_frame(world: World, chunk: int) -> int:
    """The session's video frame with which `chunk` begins, both counted from 0."""
    return world.first_chunk_frames + (chunk - 1) * world.chunk_frames if chunk else 0


def grant_of(session: str, next_frame: int, pacer: Pacer | None, world: World, lead: float) -> Grant:
    """How far a session may be made whose frame `next_frame` leaves `pacer` next.

    A chunk may take as long as one plays, and should be there `lead` seconds before its time. The first one waits for
    its viewer, and the next one with it: it could not know what is pressed.
    """
    frames = world.chunk_frames if next_frame else world.first_chunk_frames  # the first chunk may have fewer
    if pacer is None or not pacer.has_begun:
        return Grant(session, next_frame + frames)
    ahead = frames + math.ceil(lead / pacer.period)
    return Grant(session, next_frame + ahead, pacer.due_after(ahead), pacer.late_seconds)


class Durations:
    """An upper bound of how long something takes, from how long it took lately. `guess` is what it may take before."""

    def __init__(self, guess: float) -> None:
        self._recent = deque([guess] * GUESSES, maxlen=RECENT)
        self.upper = guess
        """All but a few took no longer, in seconds."""

    def note(self, seconds: float) -> None:
        """It took so long."""
        self._recent.append(seconds)
        self.upper = sorted(self._recent)[math.ceil(UPPER * len(self._recent)) - 1]


class Margin:
    """How long before its time a chunk is to be there: at least `least` seconds, more after some came late."""

    def __init__(self, least: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._least, self._clock = least, clock
        self._more, self._at = 0.0, clock()

    @property
    def seconds(self) -> float:
        """The margin now."""
        return self._least + self._more * 0.5 ** ((self._clock() - self._at) / CALM_SECONDS)

    def grow(self, by: float, most: float) -> None:
        """A chunk came late: add `by` seconds, up to `most` above the least."""
        self._more, self._at = min(self.seconds - self._least + by, most), self._clock()


@dataclass(eq=False)
class _Session:
    """`first` is the first frame of the next chunk, `granted` the first one that may not be made; that is to leave
    `at`, None for as soon as it is there. `asked` is since when there is credit for the next chunk, `late` how late
    chunks came in all, `ready` how long one takes until its first frames are on their way, by how many are made so.
    """

    first: int
    granted: int
    margin: Margin
    ready: dict[int, Durations]
    asked: float = 0.0
    at: float | None = None
    late: float | None = None

    @property
    def owed(self) -> int:
        """Frames of the next chunk and of those behind it for which there is credit."""
        return self.granted - self.first


class Step(NamedTuple):
    """The next step of the engine: it begins `at` with `sessions`. `early` says how many seconds before its own time
    each is begun."""

    at: float
    sessions: list[str]
    early: dict[str, float]


class Plan:
    """Which sessions make their next chunk, and when. `lead` is in seconds."""

    def __init__(self, world: World, lead: float = LEAD_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._world, self._lead, self._clock = world, lead, clock
        self._sessions: dict[str, _Session] = {}
        self._busy: dict[int, Durations] = {}

    def __contains__(self, session: str) -> bool:
        return session in self._sessions

    # What is told.

    def open(self, session: str, chunk: int = 0) -> None:
        """Count a session from the first frame of `chunk`, new or once more, without credit."""
        first = first_frame(self._world, chunk)
        known = self._sessions.pop(session, None)
        ready = known.ready if known else {}
        margin = known.margin if known else Margin(self._lead, self._clock)
        self._sessions[session] = _Session(first, first, margin, ready, self._clock())

    def place(self, session: str, chunk: int) -> None:
        """Count on from the first frame of `chunk`, with the credit that there is."""
        if known := self._sessions.get(session):
            known.first = first_frame(self._world, chunk)

    def close(self, session: str) -> None:
        """Forget a session; an unknown one is no error."""
        self._sessions.pop(session, None)

    def grant(self, session: str, frame: int, at: float | None = None, late: float = 0.0) -> None:
        """Raise the credit of a session to `frame`; it never sinks. `frame` is to leave `at`, None for at once; `late`
        is how many seconds late its chunks came in all."""
        known = self._sessions.get(session)
        if known is None or frame < known.granted:
            return
        if known.owed <= 0:
            known.asked = self._clock()
        if known.late is not None:
            self._widen(known.margin, late - known.late)
        known.granted, known.at, known.late = frame, at, late

    def _widen(self, margin: Margin, late: float) -> None:
        if 0 < late < self._chunk_seconds:
            margin.grow(min(late, MOST_GROWTH * self._chunk_seconds), self._chunk_seconds)

    def made(self, session: str, frames: int) -> None:
        """Count frames that were made; the session goes behind others as much in need as it is."""
        if known := self._sessions.pop(session, None):
            known.first += frames
            known.asked = self._clock()
            self._sessions[session] = known

    def was_ready(self, session: str, together: int, seconds: float) -> None:
        """The first frames of a chunk went on their way so long after its step began, with `together` sessions."""
        if known := self._sessions.get(session):
            self._ready(known, together).note(seconds)

    def was_busy(self, together: int, seconds: float) -> None:
        """The engine could begin the next step so long after one with `together` sessions began."""
        self._durations(self._busy, together).note(seconds)

    # What follows.

    @property
    def is_idle(self) -> bool:
        """True while no session has credit."""
        return all(known.owed <= 0 for known in self._sessions.values())

    def next(self) -> Step | None:
        """The next step, which may be later than now; None while no session has credit."""
        if self.is_idle:
            return None
        return self._next_turn() if self._world.schedule == "turns" else self._next_together()

    @property
    def _chunk_seconds(self) -> float:
        """How long a chunk plays."""
        return self._world.chunk_frames / self._world.fps

    def _durations(self, known: dict[int, Durations], together: int) -> Durations:
        if together not in known:
            times = self._world.chunk_seconds or (0.0,)
            known[together] = Durations(times[min(together, len(times)) - 1])
        return known[together]

    def _ready(self, session: _Session, together: int) -> Durations:
        return self._durations(session.ready, together)

    def _due(self, session: _Session) -> float:
        """When the first frame of the next chunk is to leave."""
        return -math.inf if session.at is None else session.at - session.owed / self._world.fps

    def _is_watched(self, session: _Session) -> bool:
        """False when its frames have not begun to leave, or leave no more."""
        return self._due(session) >= self._clock()

    def _own(self, name: str, together: int = 1) -> float:
        """When a session would begin if it were for it alone, in a step with so many."""
        session = self._sessions[name]
        if session.at is None:
            return session.asked
        return self._due(session) - session.margin.seconds - self._ready(session, together).upper

    def _by_need(self, names: Iterable[str]) -> list[str]:
        """Those that wait for nothing first, most in need first; then by when they are due."""

        def need(name: str) -> tuple[float, int]:
            session = self._sessions[name]
            return self._due(session), -session.owed

        return sorted(names, key=need)

    # Together: as a batch or in parallel.

    def _next_together(self) -> Step:
        """Who must begin first, and with it who could not wait until that step is done.

        Who is watched and within half a chunk of its credit may come along; of two sessions one is always that near
        when the other is due.
        """
        near = -self._world.chunk_frames / 2
        asked = [name for name, known in self._sessions.items() if known.owed > 0]
        may = [
            name
            for name, known in self._sessions.items()
            if known.owed > 0 or (known.owed > near and self._is_watched(known))
        ]
        group = [min(self._by_need(asked), key=self._own)]
        while True:
            count = len(group)
            at = min(self._own(name, count) for name in group if name in asked)
            end = max(at, self._clock()) + self._durations(self._busy, count).upper
            more = [name for name in may if name not in group and self._own(name) <= end]
            if not more:
                break
            group += more
        # Their clocks and not their margins come together: those change all the time.
        due = {name: self._due(self._sessions[name]) for name in group}
        first = min(due.values())
        early = {name: due[name] - first if due[name] > first > -math.inf else 0.0 for name in group}
        return Step(at, self._by_need(group), early)

    # In turns.

    def _next_turn(self) -> Step:
        """Backwards from the last chunk in sight: each must be done before the one behind it begins.

        What is to begin at once does where it makes no other chunk late, and else when one of them has been made.
        """
        busy, now = self._durations(self._busy, 1).upper, self._clock()
        asked = self._by_need(name for name, known in self._sessions.items() if known.owed > 0)
        at_once = [name for name in asked if self._sessions[name].at is None]
        paced = self._backwards(busy)
        if at_once and (not paced or now + busy <= paced[0][1] or self._has_waited(at_once[0], now)):
            return Step(self._sessions[at_once[0]].asked, at_once[:1], {at_once[0]: 0.0})
        name, at = next((one for one in paced if one[0] in asked), (asked[0], now))
        is_crowded = len(paced) // 2 * busy > CROWDED * self._chunk_seconds
        return Step(at, [name], {name: 0.0 if is_crowded else max(0.0, self._own(name) - max(at, now))})

    def _has_waited(self, name: str, now: float) -> bool:
        """True when a session that is to begin at once has given way to others for long enough."""
        return now - self._sessions[name].asked > self._chunk_seconds

    def _backwards(self, busy: float) -> list[tuple[str, float]]:
        """The next two chunks of each session that is watched, by when they are due, and when each must begin."""
        chunks = []
        for name, session in self._sessions.items():
            if session.at is None or (session.owed <= 0 and not self._is_watched(session)):
                continue
            own, due = self._own(name), self._due(session)
            chunks += [(due + later, own + later, name) for later in (0.0, self._chunk_seconds)]
        begins, behind = [], math.inf
        for _, own, name in sorted(chunks, key=lambda chunk: chunk[0], reverse=True):
            behind = min(own, behind - busy)
            begins.append((name, behind))
        return begins[::-1]
