"""One viewer's life (queued, live, gone) and the line in front of the slots. No sockets, no tasks."""

import enum
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.chunk import Control, SessionSpec
from stream.protocol import KEYS_HELD_SECONDS


class State(enum.Enum):
    """Where a session is in its life."""

    QUEUED = "queued"
    LIVE = "live"
    GONE = "gone"


LIFE = {
    (State.QUEUED, "admit"): State.LIVE,
    (State.LIVE, "requeue"): State.QUEUED,
    (State.QUEUED, "leave"): State.GONE,
    (State.LIVE, "leave"): State.GONE,
}
"""What may happen to a session, and what it is then. All else is our mistake."""


@dataclass(eq=False)
class Session:
    """What a viewer asked for and holds down. `token` is the viewer's secret, `name` may be shown to all.

    `run` counts how often the world began for it, so that a frame of an earlier one is known as such.
    """

    prompt: str
    seed: int
    name: str = field(default_factory=lambda: secrets.token_hex(4))
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    state: State = State.QUEUED
    slot: int | None = None
    run: int = 0
    sequence: int = 0
    held: frozenset[str] = frozenset()
    held_until: float = 0.0

    def happen(self, event: str) -> None:
        """Go on to the state that LIFE says."""
        assert (self.state, event) in LIFE, f"a session that is {self.state.value} cannot {event}"
        self.state = LIFE[self.state, event]

    @property
    def engine_name(self) -> str:
        """The engine's name for the present run."""
        return f"{self.name}.{self.run}"

    def begin(self) -> SessionSpec:
        """What the engine opens for the next run."""
        self.run += 1
        return SessionSpec(self.engine_name, self.prompt, self.seed)

    def press(self, sequence: int, held: frozenset[str], now: float) -> Control:
        """Take the keys that are held at `now` (seconds); the control that says so."""
        self.sequence = max(self.sequence, sequence)
        self.held, self.held_until = held, now + KEYS_HELD_SECONDS
        return Control(self.sequence, held)

    def change(self, sequence: int, prompt: str) -> Control:
        """Take a new prompt; the control that says so."""
        self.sequence = max(self.sequence, sequence)
        self.prompt = prompt
        return Control(self.sequence, self.held, prompt)

    def release_stale(self, now: float) -> Control | None:
        """Let go of keys that were not sent again in time; the control that says so, or None."""
        if not self.held or now < self.held_until:
            return None
        self.held = frozenset()
        return Control(self.sequence, self.held)


class Line:
    """Who is live in which slot, and who waits in which order. A slot is never held twice."""

    def __init__(self, slots: int = 0) -> None:
        self._slots: list[Session | None] = [None] * slots
        self._waiting: list[Session] = []

    @property
    def live(self) -> list[Session]:
        """The sessions that hold a slot, by slot."""
        return [session for session in self._slots if session]

    @property
    def waiting(self) -> list[Session]:
        """The sessions in line, the next one first."""
        return list(self._waiting)

    @property
    def has_room(self) -> bool:
        """True when a newcomer would be live at once."""
        return None in self._slots and not self._waiting

    def join(self, session: Session) -> None:
        """Stand at the end of the line."""
        self._waiting.append(session)

    def place(self, session: Session) -> int:
        """The place in line, from 1."""
        return self._waiting.index(session) + 1

    def leave(self, session: Session) -> None:
        """Free the slot or the place in line; a session that is gone may leave again."""
        if session.state is State.GONE:
            return
        session.happen("leave")
        if session.slot is None:
            self._waiting.remove(session)
        else:
            self._slots[session.slot] = None
            session.slot = None

    def admit(self) -> list[Session]:
        """Give the free slots to the first in line; those who are live now."""
        admitted = []
        for slot, holder in enumerate(self._slots):
            if holder is None and self._waiting:
                session = self._waiting.pop(0)
                session.happen("admit")
                session.slot = slot
                self._slots[slot] = session
                admitted.append(session)
        return admitted

    def resize(self, slots: int) -> None:
        """Have `slots` free slots; who was live goes to the front of the line, in order."""
        back = self.live
        for session in back:
            session.happen("requeue")
            session.slot = None
        self._waiting[:0] = back
        self._slots = [None] * slots


class Bucket:
    """A rate limit: `rate` a second on average, `burst` at once; `refused` counts those above it in a row."""

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens, self._at = burst, clock()
        self.refused = 0

    def take(self) -> bool:
        """True when one more is within the limit."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            self.refused += 1
            return False
        self._tokens -= 1
        self.refused = 0
        return True
