"""What crosses the pipe between the server and the engine's process: commands there, events back, and who waits."""

import threading
from typing import NamedTuple

from pipeline.chunk import Chunk, Control, Ended, Session, SessionSpec, World

# Commands, to the engine.


class Open(NamedTuple):
    """Begin a session."""

    session: str
    spec: SessionSpec


class Steer(NamedTuple):
    """What the next chunk of a session must obey."""

    session: str
    control: Control


class Grant(NamedTuple):
    """A session may begin chunks whose first frame is below `frame`.

    That frame is to leave `at`, in monotonic seconds, as many frames later as a second has; None: each as soon as it is
    there. `late` is how many seconds late the viewer's chunks came in all.
    """

    session: str
    frame: int
    at: float | None = None
    late: float = 0.0


class Close(NamedTuple):
    """End a session; its slot is free."""

    session: str


class Snapshot(NamedTuple):
    """Give a session as plain data, as it is between two steps; Snapped answers with the same `ticket`.

    `chunks` bounds the latents as in Engine.snapshot. One that replaces another in the outbox answers for both, so
    tickets rise.
    """

    session: str
    ticket: int
    chunks: int | None = 0


class Resume(NamedTuple):
    """Go on with a session from plain data, under the name `session`; Placed or Refused answers."""

    session: str
    data: Session


class Rewind(NamedTuple):
    """Take a session back to where it had made `chunk` chunks; Placed or Ended answers.

    Its credit ends at its new first frame. What was steered before is forgotten.
    """

    session: str
    chunk: int


class Return(NamedTuple):
    """A block of shared memory has been read and may be written again."""

    block: int


Command = Open | Steer | Grant | Close | Snapshot | Resume | Rewind | Return


# Events, from the engine. Chunk and Ended of pipeline.chunk are two more.


class Progress(NamedTuple):
    """How far the engine is with warming up: `done` of `total` chunks."""

    done: int
    total: int


class Ready(NamedTuple):
    """The engine is warm; `blocks` of `block_bytes` each lie in the shared memory that follows."""

    world: World
    blocks: int
    block_bytes: int


class Made(NamedTuple):
    """A chunk whose frames, of `shape`, lie in `block`; only between the engine's process and the worker."""

    chunk: Chunk
    block: int
    shape: tuple[int, ...]


class Refused(NamedTuple):
    """A session could not be opened; `reason` is a sentence for its viewer."""

    session: str
    reason: str


class Snapped(NamedTuple):
    """A session as plain data, or None and the reason, a sentence."""

    session: str
    ticket: int
    data: Session | None
    reason: str = ""


class Placed(NamedTuple):
    """A session was resumed or rewound: what comes of it from here on begins with `chunk`, at video frame `frame`."""

    session: str
    chunk: int
    frame: int


class Failed(NamedTuple):
    """The engine cannot be built or broke; the process ends. `ours` is False for a user's mistake."""

    reason: str
    ours: bool


class Died(NamedTuple):
    """The engine's process is gone and every session with it; a new one is on its way if `again`.

    `at_work` are the sessions for which it was doing something: one of them may have been too much for it.
    """

    reason: str
    again: bool
    ours: bool = True
    at_work: tuple[str, ...] = ()


Event = Progress | Ready | Chunk | Ended | Refused | Snapped | Placed | Died

Word = Ended | Refused | Snapped | Placed
"""What leaves the engine's process as it is; a chunk's frames go through the shared memory."""


class Outbox:
    """Commands that wait for the pipe: of each kind one a session, which a newer one replaces or joins."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[type, str | int], Command] = {}
        self._changed = threading.Condition()
        self._closed = False

    def put(self, command: Command) -> None:
        """Leave a command, without waiting."""
        key = (type(command), command[0])
        with self._changed:
            waits = self._waiting.get(key)
            if isinstance(command, Steer) and isinstance(waits, Steer):
                command = Steer(command.session, waits.control.then(command.control))
            if isinstance(command, Close | Rewind):  # what came before means nothing to what comes after
                for kind in (Steer, Grant):
                    self._waiting.pop((kind, command.session), None)
            self._waiting[key] = command
            self._changed.notify()

    def take(self) -> list[Command]:
        """All that waits, in order; blocks while nothing does. [] when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            commands = [] if self._closed else list(self._waiting.values())
            self._waiting.clear()
            return commands

    def close(self) -> None:
        """Let take() return [] for good."""
        with self._changed:
            self._closed = True
            self._changed.notify()
