"""Joins viewers, line and engine: who is live, what the engine is told, and what each viewer hears.

Everything here runs on one thread, waits for nothing and knows no sockets: messages go to the `hear` that
a viewer brought, frames to its pacer, commands to the worker.
"""

import logging
import secrets
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.chunk import KEYS, Chunk, Control, Ended, World
from stream import protocol, worker
from stream.metrics import Metrics
from stream.pacer import Paced, Pacer
from stream.session import Line, Session, State

log = logging.getLogger(__name__)

MAX_WAITING = 100
PICTURE_SECONDS = 15.0
"""A slot whose viewer fetches no picture for this long goes to the next in line."""
STATS_SECONDS = 1.0
LOADING = "The world is being made ready."
FULL = "All places in this world are taken."
DIED = "The world's engine stopped and is starting again."


class Engine(Protocol):
    """The part of a Worker that the hub needs."""

    def send(self, command: worker.Command) -> None: ...


@dataclass(eq=False)
class Viewer:
    """A session with the one who watches it. `fetched` is when its picture was last fetched, in clock seconds."""

    session: Session
    hear: Callable[[protocol.FromServer], None]
    fetched: float
    welcomed: bool = False
    pacer: Pacer | None = None
    applied: int = 0
    scene: tuple[str, tuple[str, ...]] = ("", ())
    told: tuple[int, int, str] | None = None
    sent_at: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    counted: tuple[int, int] = (0, 0)
    ended: Callable[[], None] = lambda: None


class Hub:
    """The one place that knows all viewers. `lead` is in chunks; `clock` in seconds."""

    def __init__(
        self,
        engine: Engine,
        lead: float = 1.0,
        metrics: Metrics | None = None,
        ice_servers: tuple[protocol.IceServer, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._lead, self._clock = engine, lead, clock
        self.metrics = metrics or Metrics()
        self.ice_servers = ice_servers
        self.world: World | None = None
        self._line = Line()
        self._viewers: dict[str, Viewer] = {}
        self._runs: dict[str, Viewer] = {}
        self._reason = LOADING
        self._chunk_seconds: deque[float] = deque(maxlen=16)
        self._stats_at = clock()

    # The viewers' side.

    @property
    def has_room(self) -> bool:
        """True when a newcomer would be live at once."""
        return self._line.has_room

    def enter(self, prompt: str, seed: int | None, hear: Callable[[protocol.FromServer], None]) -> Viewer:
        """A new viewer, live at once or in line. ValueError with a sentence when the line is full."""
        if len(self._line.waiting) >= MAX_WAITING:
            raise ValueError(f"{MAX_WAITING} viewers wait already; try again later")
        session = Session(prompt, secrets.randbelow(2**32) if seed is None else seed)
        viewer = Viewer(session, hear, self._clock())
        self._viewers[session.token] = viewer
        self._line.join(session)
        self._welcome(viewer)
        self._advance()
        return viewer

    def find(self, token: str) -> Viewer | None:
        """The viewer whose secret this is."""
        return self._viewers.get(token)

    def obey(self, viewer: Viewer, message: protocol.FromClient) -> None:
        """Do what a viewer's message says. ProtocolError for a second hello."""
        match message:
            case protocol.Keys(seq=seq, held=held):
                self._steer(viewer, viewer.session.press(seq, frozenset(held), self._clock()))
            case protocol.Prompt(seq=seq, text=text):
                self._steer(viewer, viewer.session.change(seq, text))
            case protocol.Restart():
                self._restart(viewer, message)
            case protocol.Shown(ms=ms):
                self.metrics.shown.observe(ms / 1000)
                return
            case protocol.Leave():
                self.leave(viewer)
                return
            case protocol.Hello():
                raise protocol.ProtocolError("this connection has said hello already; open another for a new viewer")
        viewer.hear(protocol.Received(seq=message.seq))

    def leave(self, viewer: Viewer, reason: str = "You left.") -> None:
        """End a session and free its slot at once; a session that is gone may leave again."""
        if self._viewers.pop(viewer.session.token, None) is None:
            return
        was_live = viewer.session.state is State.LIVE
        self._line.leave(viewer.session)
        if was_live:
            self._stop(viewer)
        viewer.hear(protocol.Ended(reason=reason))
        viewer.ended()
        self._advance()

    def took(self, viewer: Viewer, paced: Paced) -> None:
        """A frame leaves for the viewer: the engine may go as much further."""
        viewer.fetched = self._clock()
        viewer.sent_at.append(viewer.fetched)
        self.metrics.frames.inc()
        if paced.run == viewer.session.engine_name:
            self._engine.send(worker.Grant(paced.run, paced.frame + 1 + self._lead_frames))

    def sent(self, viewer: Viewer, paced: Paced, rtp: int | None) -> None:
        """A frame is on the network with this RTP timestamp: say so if it is the first to obey a control."""
        if paced.run == viewer.session.engine_name and paced.sequence > viewer.applied:
            viewer.applied = paced.sequence
            viewer.hear(protocol.Applied(seq=paced.sequence, chunk=paced.chunk, frame=paced.frame, rtp=rtp))

    def close(self, reason: str) -> None:
        """End every session."""
        for viewer in list(self._viewers.values()):
            self.leave(viewer, reason)

    # The engine's side.

    def happen(self, event: worker.Event) -> None:
        """Take what the engine's process says."""
        match event:
            case worker.Ready(world):
                self._open_doors(world)
            case Chunk():
                self._hand_out(event)
            case Ended(session, reason) | worker.Refused(session, reason):
                if viewer := self._runs.get(session):
                    self.leave(viewer, reason)
            case worker.Died(reason, again):
                if again:
                    log.warning("the engine died and is started again: %s", reason)
                self._close_doors()
            case worker.Progress(done, total):
                log.debug("prewarm: %d of %d", done, total)

    def tick(self) -> None:
        """Four times a second or so: release stale keys, free unused slots, tell how it goes."""
        now = self._clock()
        for session in self._line.live:
            viewer = self._viewers[session.token]
            if control := session.release_stale(now):
                self._engine.send(worker.Steer(session.engine_name, control))
            if not viewer.pacer or not len(viewer.pacer):
                viewer.fetched = now  # it is the engine that is slow, not the viewer
            if now - viewer.fetched > PICTURE_SECONDS:
                self.leave(viewer, f"No picture was fetched for {PICTURE_SECONDS:.0f} seconds.")
        if now - self._stats_at >= STATS_SECONDS:
            self._stats_at = now
            self._tell_stats(now)

    # Inside.

    @property
    def _lead_frames(self) -> int:
        assert self.world is not None, "no world yet"
        return max(1, round(self._lead * self.world.chunk_frames))

    def _open_doors(self, world: World) -> None:
        self.world, self._reason = world, " ".join(filter(None, (FULL, world.limit)))
        self._line.resize(world.slots)
        self.metrics.slots.set(world.slots)
        for viewer in list(self._viewers.values()):
            self._welcome(viewer)
        self._advance()

    def _close_doors(self) -> None:
        """The engine is gone: all who were live stand first in line for the next one."""
        self.metrics.deaths.inc()
        self.metrics.slots.set(0)
        self._reason = DIED
        self._runs.clear()
        self._line.resize(0)
        self._advance()

    def _welcome(self, viewer: Viewer) -> None:
        if self.world is None or viewer.welcomed:
            return
        viewer.welcomed = True
        world, session = self.world, viewer.session
        # Two chunks beyond the lead: only an engine that disregards its credit can fill that.
        capacity = round(self._lead * world.chunk_frames) + 2 * max(world.chunk_frames, world.first_chunk_frames)
        viewer.pacer = Pacer(world.fps, capacity, self._clock)
        viewer.hear(
            protocol.Welcome(
                version=protocol.VERSION,
                session=session.name,
                token=session.token,
                preset=world.preset,
                width=world.width,
                height=world.height,
                fps=world.fps,
                chunk_frames=world.chunk_frames,
                keys=tuple(sorted(KEYS)),
                ice_servers=self.ice_servers,
            )
        )

    def _advance(self) -> None:
        """Fill free slots from the line and tell those whose place changed."""
        for session in self._line.admit():
            self._begin(self._viewers[session.token])
        waiting = self._line.waiting
        for place, session in enumerate(waiting, 1):
            viewer, news = self._viewers[session.token], (place, len(waiting), self._reason)
            if viewer.told != news:
                viewer.told = news
                viewer.hear(protocol.Queued(place=place, waiting=len(waiting), reason=self._reason))
        self.metrics.viewers.set(len(self._line.live))
        self.metrics.waiting.set(len(waiting))

    def _begin(self, viewer: Viewer) -> None:
        """Open the session in the engine, with credit for the first chunks so that they wait for the picture."""
        session = viewer.session
        spec = session.begin()
        name = session.engine_name
        self._runs[name] = viewer
        viewer.fetched, viewer.told, viewer.applied = self._clock(), None, 0
        if viewer.pacer:
            viewer.pacer.flush()
        self._engine.send(worker.Open(name, spec))
        if session.sequence:
            self._engine.send(worker.Steer(name, Control(session.sequence, session.held)))
        self._engine.send(worker.Grant(name, self._lead_frames))
        assert session.slot is not None, "a live session has a slot"
        viewer.hear(protocol.Live(slot=session.slot, seed=session.seed, prompt=session.prompt))

    def _stop(self, viewer: Viewer) -> None:
        name = viewer.session.engine_name
        self._runs.pop(name, None)
        self._engine.send(worker.Close(name))

    def _restart(self, viewer: Viewer, message: protocol.Restart) -> None:
        session = viewer.session
        session.sequence = max(session.sequence, message.seq)
        session.seed = session.seed if message.seed is None else message.seed
        session.prompt = message.prompt or session.prompt
        if session.state is State.LIVE:
            self._stop(viewer)
            self._begin(viewer)

    def _steer(self, viewer: Viewer, control: Control) -> None:
        if viewer.session.state is State.LIVE:
            self._engine.send(worker.Steer(viewer.session.engine_name, control))

    def _hand_out(self, chunk: Chunk) -> None:
        """Frames to the pacer of their viewer; those of a run that is over are no one's."""
        viewer = self._runs.get(chunk.session)
        if viewer is None or viewer.pacer is None:
            return
        self.metrics.chunks.inc()
        for stage, seconds in chunk.seconds.items():
            self.metrics.stage.labels(stage).observe(seconds)
        if "total" in chunk.seconds:
            self._chunk_seconds.append(chunk.seconds["total"])
        if (chunk.scene, chunk.unknown_words) != viewer.scene:
            viewer.scene = chunk.scene, chunk.unknown_words
            viewer.hear(protocol.Scene(text=chunk.scene, unknown_words=chunk.unknown_words))
        viewer.pacer.put(chunk)

    def _tell_stats(self, now: float) -> None:
        chunk_ms = 1000 * statistics.median(self._chunk_seconds) if self._chunk_seconds else 0.0
        live, waiting = len(self._line.live), len(self._line.waiting)
        for session in self._line.live:
            viewer = self._viewers[session.token]
            if viewer.pacer is None:
                continue
            self._count(viewer)
            recent = [at for at in viewer.sent_at if now - at <= 2.0]
            stats = protocol.Stats(
                fps=round(len(recent) / 2.0, 1),
                chunk_ms=round(chunk_ms, 1),
                lead_ms=round(1000 * viewer.pacer.lead_seconds, 1),
                viewers=live,
                waiting=waiting,
                dropped=viewer.pacer.dropped,
                late=viewer.pacer.late,
            )
            viewer.hear(stats)

    def _count(self, viewer: Viewer) -> None:
        """Put what a pacer counted since the last time into the metrics."""
        assert viewer.pacer is not None, "only those with a picture are counted"
        late, dropped = viewer.counted
        viewer.counted = viewer.pacer.late, viewer.pacer.dropped
        self.metrics.late.inc(viewer.pacer.late - late)
        self.metrics.dropped.inc(viewer.pacer.dropped - dropped)
