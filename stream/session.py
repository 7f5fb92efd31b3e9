"""One viewer's life (queued, live, parked, gone) and the line in front of the slots. No sockets, no tasks."""

import base64
import enum
import functools
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline import chunk
from pipeline.chunk import Control, SessionSpec
from stream.prompts import prompts_of
from stream.protocol import KEYS_HELD_SECONDS


class State(enum.Enum):
    """Where a session is in its life."""

    QUEUED = "queued"
    LIVE = "live"
    PARKED = "parked"
    GONE = "gone"


class Step(NamedTuple):
    """What an event makes of a session: the state that follows, and what happens, in words."""

    then: State
    does: str


LIFE = {
    (State.QUEUED, "admit"): Step(State.LIVE, "takes a free slot; the engine opens it, or resumes what it was"),
    (State.QUEUED, "lose"): Step(State.QUEUED, "keeps its place for 10 s, but is passed over"),
    (State.QUEUED, "return"): Step(State.QUEUED, "is where it was in line"),
    (State.QUEUED, "park"): Step(State.PARKED, "gives up its place; what it was is kept"),
    (State.QUEUED, "leave"): Step(State.GONE, "gives up its place"),
    (State.LIVE, "requeue"): Step(State.QUEUED, "the engine died: first in line, in the order of the slots"),
    (State.LIVE, "yield"): Step(State.QUEUED, "its turn is over: frees its slot and stands last in line"),
    (State.LIVE, "lose"): Step(State.LIVE, "keeps its slot for 10 s"),
    (State.LIVE, "return"): Step(State.LIVE, "has the same slot"),
    (State.LIVE, "park"): Step(State.PARKED, "frees its slot; what it was is kept"),
    (State.LIVE, "leave"): Step(State.GONE, "frees its slot"),
    (State.PARKED, "return"): Step(State.QUEUED, "stands last in line, to be resumed"),
    (State.PARKED, "expire"): Step(State.GONE, "what it was is deleted"),
    (State.PARKED, "leave"): Step(State.GONE, "what it was is deleted"),
}
"""What may happen to a session, and what it is then. All else is our mistake."""


def new_token() -> str:
    """A secret that cannot be guessed: 192 random bits."""
    return secrets.token_urlsafe(24)


@dataclass(eq=False)
class Session:
    """What a viewer asked for and holds down. `token` is the viewer's secret, `name` may be shown to all.

    `image` is the picture that it begins with, None for none; with one `prompt` may be empty. `run` counts how often
    the world began or went on for it, so that a frame of an earlier one is known as such. `data` is what it was when it
    was last kept, None for a world that has not begun; with `awaits_data` a newer one is on its way. `lost_at` is since
    when no one is there for it, in clock seconds.
    """

    prompt: str
    seed: int
    name: str = field(default_factory=lambda: secrets.token_hex(4))
    token: str = field(default_factory=new_token)
    state: State = State.QUEUED
    slot: int | None = None
    run: int = 0
    sequence: int = 0
    prompted: int = 0
    held: frozenset[str] = frozenset()
    held_until: float = 0.0
    data: chunk.Session | None = None
    awaits_data: bool = False
    lost_at: float | None = None
    image: bytes | None = None

    @functools.cached_property
    def watch_token(self) -> str:
        """The secret with which others may watch and steer nothing: it follows from `token`, and not the other way."""
        return base64.urlsafe_b64encode(hmac.digest(self.token.encode(), b"watch", "sha256")[:24]).decode()

    def happen(self, event: str) -> None:
        """Go on to the state that LIFE says."""
        assert (self.state, event) in LIFE, f"a session that is {self.state.value} cannot {event}"
        self.state = LIFE[self.state, event].then

    @classmethod
    def parked(cls, token: str, data: chunk.Session) -> "Session":
        """A session that comes from where it was kept."""
        held, spec = data.waiting or data.held, data.spec
        session = cls(prompts_of(data)[-1], spec.seed, token=token, state=State.PARKED, data=data, image=spec.image)
        name, _, run = spec.session.partition(".")
        if run.isdecimal():
            session.name, session.run = name, int(run)
        session.sequence = max(held.sequence, data.held.sequence)
        return session

    @property
    def engine_name(self) -> str:
        """The engine's name for the present run."""
        return f"{self.name}.{self.run}"

    def begin(self) -> SessionSpec:
        """What the engine opens for the next run."""
        self.run += 1
        return SessionSpec(self.engine_name, self.prompt, self.seed, self.image)

    def resume_control(self) -> Control:
        """What the next run must obey of what `data` does not know: the keys, and a prompt that came after it."""
        data = self.data
        known = 0 if data is None else max(data.held.sequence, data.waiting.sequence if data.waiting else 0)
        return Control(self.sequence, self.held, self.prompt if data and self.prompted > known else None)

    def press(self, sequence: int, held: frozenset[str], now: float) -> Control:
        """Take the keys that are held at `now` (seconds); the control that says so."""
        self.sequence = max(self.sequence, sequence)
        self.held, self.held_until = held, now + KEYS_HELD_SECONDS
        return Control(self.sequence, held)

    def change(self, sequence: int, prompt: str) -> Control:
        """Take a new prompt; the control that says so."""
        self.sequence = self.prompted = max(self.sequence, sequence)
        self.prompt = prompt
        return Control(self.sequence, self.held, prompt)

    def release_stale(self, now: float) -> Control | None:
        """Let go of keys that were not sent again in time; the control that says so, or None."""
        if not self.held or now < self.held_until:
            return None
        self.held = frozenset()
        return Control(self.sequence, self.held)


class Line:
    """Who is live in which slot, and who waits in which order. A slot is never held twice.

    Its methods are the events of LIFE; each asserts that the event may happen to the session.
    """

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
        """A new session, or a parked one that comes back, stands at the end of the line."""
        if session.state is State.PARKED:
            session.happen("return")
        assert session.state is State.QUEUED, f"a session that is {session.state.value} cannot join"
        session.lost_at = None
        self._waiting.append(session)

    def place(self, session: Session) -> int:
        """The place in line, from 1."""
        return self._waiting.index(session) + 1

    def lose(self, session: Session, now: float) -> None:
        """No one is there for the session since `now`; it keeps what it has."""
        session.happen("lose")
        session.lost_at = now

    def return_(self, session: Session) -> None:
        """Someone is there again for a session that is in line or live."""
        session.happen("return")
        session.lost_at = None

    def park(self, session: Session) -> None:
        """Free the slot or the place in line; the session can come back."""
        session.happen("park")
        self._remove(session)

    def leave(self, session: Session) -> None:
        """Free the slot or the place in line; a session that is gone may leave again."""
        if session.state is State.GONE:
            return
        was_parked = session.state is State.PARKED
        session.happen("leave")
        if not was_parked:
            self._remove(session)

    def yield_(self, session: Session) -> None:
        """Free the slot and stand at the end of the line."""
        session.happen("yield")
        self._remove(session)
        self._waiting.append(session)

    def admit(self, may: Callable[[Session], bool] = lambda session: True) -> list[Session]:
        """Give the free slots to the first in line who are there and who `may`; those who are live now."""
        admitted = []
        for slot, holder in enumerate(self._slots):
            candidates = (each for each in self._waiting if each.lost_at is None and not each.awaits_data and may(each))
            if holder is None and (session := next(candidates, None)):
                self._waiting.remove(session)
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

    def _remove(self, session: Session) -> None:
        if session.slot is None:
            self._waiting.remove(session)
        else:
            self._slots[session.slot] = None
            session.slot = None


class Bucket:
    """A rate limit: `rate` a second on average, `burst` at once; `refused` counts those above it, less those within."""

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
        self.refused = max(0, self.refused - 1)
        return True
