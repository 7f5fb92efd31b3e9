"""A viewer as the hub knows it: the session, the one who hears, and how far the picture is."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.chunk import Session as Data
from stream import protocol
from stream.pacer import Mirror, Paced, Pacer
from stream.session import Bucket, Session, State, new_token

REWINDS_A_SECOND, REWINDS_AT_ONCE = 0.2, 3
"""A rewind writes a session's memory anew, and all others wait for it."""
RESTARTS_A_SECOND, RESTARTS_AT_ONCE = 0.5, 5
"""A beginning costs a first chunk, which takes longer than others, and all others wait for it."""
PICTURES_A_SECOND, PICTURES_AT_ONCE = 0.1, 3
"""A picture costs a process that decodes it."""
FILES_A_SECOND, FILES_AT_ONCE = 0.2, 3
"""A session's file has all that the engine remembers of it, which goes the way of the pictures."""


class Keeper(Protocol):
    """The part of an Archive that the hub needs."""

    count: int
    bytes: int

    def put(self, token: str, data: Data) -> None: ...
    def remove(self, token: str) -> None: ...
    def sweep(self) -> None: ...


class Nowhere:
    """A Keeper that keeps nothing: what is parked is gone."""

    count = bytes = 0

    def put(self, token: str, data: Data) -> None: ...
    def remove(self, token: str) -> None: ...
    def sweep(self) -> None: ...


MAX_STEERED = 64
"""Of so many controls at most that no frame obeys yet is it known when they came."""

Hear = Callable[[protocol.FromServer], None]


def no_one(message: protocol.FromServer) -> None:
    """Hears for a viewer whose connection broke."""


@dataclass(eq=False)
class Viewer:
    """A session with the one who watches it; times are in clock seconds.

    `fetched` is when its picture was last fetched, `active` when something was last steered, `asked` when the viewer
    was asked whether anyone is there. `granted` and `next_frame` are video frames: up to where the engine may go, and
    which one leaves next. `made` counts the world's chunks that came, `oldest` is the first one that the engine was
    given to remember when this run began. With `placing` what comes is still of before a
    rewind. `ticket` is that of the last snapshot asked for. `why` is the reason why it waits in line, if it is its own.
    `watched` is when a frame last left; `wanted` are those who asked for what the session is. `picture` is the one that
    was sent last, ready to begin with. `steered` is when each control came that no frame obeys yet. `audience` are
    those who watch; `newest` is the frame that left last.
    """

    session: Session
    hear: Hear
    fetched: float
    active: float
    welcomed: bool = False
    pacer: Pacer | None = None
    applied: int = 0
    scene: protocol.Scene | None = None
    why: str = ""
    told: protocol.Queued | None = None
    sent_at: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    counted: tuple[int, int, int] = (0, 0, 0)
    ended: Callable[[], None] = lambda: None
    asked: float | None = None
    live_since: float = 0.0
    granted: int = 0
    next_frame: int = 0
    made: int = 0
    oldest: int = 0
    placing: bool = False
    paused: bool = False
    ticket: int = 0
    kept_at: float = 0.0
    kept_made: int = -1
    keep_every: float = 0.0
    suspected_at: float = float("-inf")
    on_probation: bool = False
    watched: float = float("-inf")
    wanted: list[Callable[[Data | None], None]] = field(default_factory=list)
    rewinds: Bucket = field(default_factory=lambda: Bucket(REWINDS_A_SECOND, REWINDS_AT_ONCE))
    restarts: Bucket = field(default_factory=lambda: Bucket(RESTARTS_A_SECOND, RESTARTS_AT_ONCE))
    pictures: Bucket = field(default_factory=lambda: Bucket(PICTURES_A_SECOND, PICTURES_AT_ONCE))
    files: Bucket = field(default_factory=lambda: Bucket(FILES_A_SECOND, FILES_AT_ONCE))
    picture: bytes | None = None
    steered: dict[int, float] = field(default_factory=dict)
    audience: list["Spectator"] = field(default_factory=list)
    newest: Paced | None = None

    @property
    def is_over(self) -> bool:
        """True when there is nothing to show any more."""
        return self.session.state is State.GONE

    def tell(self, message: protocol.FromServer) -> None:
        """Say it to the viewer, and what concerns those who watch to them."""
        self.hear(message)
        self.tell_audience(message)

    def tell_audience(self, message: protocol.FromServer) -> None:
        """Say what concerns those who watch to them."""
        for spectator in list(self.audience):
            spectator.overhear(message)

    def show(self, paced: Paced) -> None:
        """A frame leaves: those who watch see it too."""
        self.newest = paced
        for spectator in self.audience:
            spectator.pacer.put(paced)

    def came(self, sequence: int, now: float) -> None:
        """A control came; one that is sent again came when it was sent first."""
        if sequence > self.applied and len(self.steered) < MAX_STEERED:
            self.steered.setdefault(sequence, now)

    def obeyed(self, sequence: int, now: float) -> list[float]:
        """A frame that obeys all controls up to `sequence` leaves; how many seconds after each of them."""
        self.applied = sequence
        obeyed = [each for each in self.steered if each <= sequence]
        return [now - self.steered.pop(each) for each in obeyed]

    def hand_over(self) -> None:
        """Give what the session was when last kept to all who asked for it."""
        wanted, self.wanted = self.wanted, []
        for take in wanted:
            take(self.session.data)


def buckets(clock: Callable[[], float]) -> dict[str, Bucket]:
    """A Viewer's rate limits, by that clock."""
    return {
        "rewinds": Bucket(REWINDS_A_SECOND, REWINDS_AT_ONCE, clock),
        "restarts": Bucket(RESTARTS_A_SECOND, RESTARTS_AT_ONCE, clock),
        "pictures": Bucket(PICTURES_A_SECOND, PICTURES_AT_ONCE, clock),
        "files": Bucket(FILES_A_SECOND, FILES_AT_ONCE, clock),
    }


OVER = "The walk that you watch is over."
KEPT = "Whoever walks here has put this world away; it may go on."


@dataclass(eq=False)
class Spectator:
    """One who watches a viewer's world and steers nothing; `token` fetches the picture, and is no one else's."""

    viewer: Viewer
    hear: Hear
    token: str = field(default_factory=new_token)
    pacer: Mirror = field(default_factory=Mirror)
    ended: Callable[[], None] = lambda: None

    @property
    def session(self) -> Session:
        """The session that is watched."""
        return self.viewer.session

    @property
    def is_over(self) -> bool:
        """True when there is nothing to show any more."""
        return self not in self.viewer.audience

    def overhear(self, message: protocol.FromServer) -> None:
        """Hear what the viewer hears of the world, and nothing of what is the viewer's own affair."""
        match message:
            case protocol.Live() | protocol.Paused() | protocol.Scene() | protocol.Queued():
                self.hear(message)
            case protocol.Stats():
                self.hear(message.model_copy(update={"turn_seconds": None}))
            case protocol.Parked():
                self.hear(protocol.Parked(reason=KEPT, by_itself=True))
            case protocol.Ended():
                self.hear(protocol.Ended(reason=OVER))
