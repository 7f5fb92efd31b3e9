"""The sessions that run in the engine: begun, given credit, steered, kept and stopped. No line, no sockets.

`viewer.granted`, `next_frame`, `made`, `oldest`, `placing`, `ticket`, `kept_at`, `kept_made` and `keep_every` are
written here.
"""

import itertools
import math
from collections.abc import Callable
from typing import Protocol

from pipeline.chunk import Control, World
from stream import worker
from stream.pacer import Pacer
from stream.schedule import grant_of
from stream.viewer import Viewer

KEEP_SECONDS = 3.0
"""A live session is kept so often, to go on from there when the engine dies."""
KEEP_BYTES_A_SECOND = 4 * 2**20
"""A session with a long memory is kept less often: what comes from the engine must not hold up the pictures."""


class Engine(Protocol):
    """The part of a Worker that is needed here."""

    def send(self, command: worker.Command) -> None: ...


class Runs:
    """Whose session has which name in the engine, and what the engine is told of it. `lead` and `clock` are in seconds;
    there is a `world` from the moment at which an engine was ready.
    """

    def __init__(self, engine: Engine, lead: float, clock: Callable[[], float]) -> None:
        self._engine, self._lead, self._clock = engine, lead, clock
        self._tickets = itertools.count(1)
        self._viewers: dict[str, Viewer] = {}
        self.world: World | None = None

    def find(self, name: str) -> Viewer | None:
        """The viewer whose present run has this name in the engine."""
        return self._viewers.get(name)

    @property
    def viewers(self) -> list[Viewer]:
        """Those whose sessions run, or have stopped and owe their last word."""
        return list(self._viewers.values())

    def forget(self) -> None:
        """The engine is gone and every run with it."""
        self._viewers.clear()

    # A run's life.

    def begin(self, viewer: Viewer) -> None:
        """Open the session in the engine, or resume it, with credit for the first chunks so that they wait for the
        picture."""
        session = viewer.session
        spec, data = session.begin(), session.data
        name = session.engine_name
        self._viewers[name] = viewer
        viewer.kept_at, viewer.placing = self._clock(), False
        self._go_on_from(viewer, data.chunk if data else 0)
        viewer.oldest = data.oldest if data else 0
        self._engine.send(worker.Resume(name, data) if data else worker.Open(name, spec))
        control = session.resume_control()
        if control.sequence:
            self._engine.send(worker.Steer(name, control))
        self.grant(viewer)

    def stop(self, viewer: Viewer, keep: bool = False) -> None:
        """Close the session in the engine; with `keep` what it was is asked for first."""
        if keep:
            viewer.session.awaits_data = True
            self.ask(viewer)
        else:
            self._viewers.pop(viewer.session.engine_name, None)
        self._engine.send(worker.Close(viewer.session.engine_name))

    # What it may make and must obey.

    def grant(self, viewer: Viewer) -> None:
        """Let the engine go as far as the lead allows, and say when frames leave; while paused it goes no further."""
        if viewer.paused:
            return
        assert self.world is not None, "no world yet"
        grant = grant_of(viewer.session.engine_name, viewer.next_frame, viewer.pacer, self.world, self._lead)
        viewer.granted = grant.frame
        self._engine.send(grant)

    def steer(self, viewer: Viewer, control: Control) -> None:
        """Tell the engine what the next chunk must obey."""
        self._engine.send(worker.Steer(viewer.session.engine_name, control))

    def rewind(self, viewer: Viewer, chunk: int) -> None:
        """Take a session back to where it had made `chunk` chunks; until place() what comes is of before."""
        session = viewer.session
        self._go_on_from(viewer, chunk)
        viewer.placing = True
        self._engine.send(worker.Rewind(session.engine_name, chunk))
        self.steer(viewer, Control(session.sequence, session.held))
        self.grant(viewer)

    def place(self, name: str) -> None:
        """What comes from here on is of after the rewind."""
        if viewer := self._viewers.get(name):
            viewer.placing = False

    def _go_on_from(self, viewer: Viewer, chunk: int) -> None:
        """What comes next begins with this chunk; what waits is of before."""
        assert self.world is not None, "no world yet"
        viewer.next_frame, viewer.granted = worker.first_frame(self.world, chunk), 0
        viewer.made, viewer.kept_made = chunk, chunk
        if viewer.pacer is not None:
            viewer.pacer.flush()

    def chunk_from(self, frame: int) -> int:
        """The first chunk that begins at `frame` or later."""
        assert self.world is not None, "no world yet"
        return 0 if frame <= 0 else 1 + max(0, -(-(frame - self.world.first_chunk_frames) // self.world.chunk_frames))

    def new_pacer(self) -> Pacer:
        """A clock for the frames of one viewer."""
        assert self.world is not None, "no world yet"
        # Two chunks beyond the lead: only an engine that disregards its credit can fill that.
        longest = max(self.world.chunk_frames, self.world.first_chunk_frames)
        return Pacer(self.world.fps, 3 * longest + math.ceil(self._lead * self.world.fps), self._clock)

    # What it was.

    def ask(self, viewer: Viewer, chunks: int | None = 0) -> None:
        """Ask the engine what a session is now, with so many chunks of latents as in worker.Snapshot."""
        viewer.ticket, viewer.kept_at, viewer.kept_made = next(self._tickets), self._clock(), viewer.made
        self._engine.send(worker.Snapshot(viewer.session.engine_name, viewer.ticket, chunks))

    def ask_if_due(self, viewer: Viewer, now: float) -> None:
        """Keep a live session now and then."""
        if now - viewer.kept_at >= viewer.keep_every and viewer.made > viewer.kept_made and not viewer.placing:
            self.ask(viewer)

    def take(self, snapped: worker.Snapped) -> Viewer | None:
        """Take what a session was; its viewer if it has stopped and this was its last word: the newest answer is."""
        viewer = self._viewers.get(snapped.session)
        if viewer is None:
            return None
        session = viewer.session
        if snapped.data is not None and not viewer.placing:
            session.data = snapped.data
            size = snapped.data.latents.nbytes + snapped.data.first.nbytes + len(snapped.data.spec.image or b"")
            viewer.keep_every = max(KEEP_SECONDS, size / KEEP_BYTES_A_SECOND)
        if snapped.ticket < viewer.ticket:
            return None
        viewer.hand_over()
        if not session.awaits_data:
            return None
        session.awaits_data = False
        self._viewers.pop(snapped.session, None)
        return viewer
