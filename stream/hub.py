"""Joins viewers, line and engine: who is live, what the engine is told, and what each viewer hears.

Everything here runs on one thread, waits for nothing and knows no sockets: messages go to the `hear` that
a viewer brought, frames to its pacer, commands to the worker.
"""

import itertools
import logging
import secrets
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from pipeline.chunk import KEYS, Chunk, Control, Ended, World
from pipeline.chunk import Session as Data
from stream import protocol, worker
from stream.fairness import ASKED_SECONDS, Fairness, Stays
from stream.metrics import Metrics
from stream.pacer import Paced, Pacer
from stream.session import Bucket, Line, Session, State, new_token
from stream.viewer import REWINDS_A_SECOND, REWINDS_AT_ONCE, Hear, Keeper, Nowhere, Viewer, no_one

log = logging.getLogger(__name__)

MAX_WAITING = 100
SWEEP_SECONDS = 60.0
PICTURE_SECONDS = 15.0
"""A slot whose viewer fetches no picture for this long goes to the next in line."""
GRACE_SECONDS = 10.0
"""A viewer whose connection broke keeps slot or place for so long; then the session is parked."""
KEEP_SECONDS = 3.0
"""A live session is kept so often, to go on from there when the engine dies."""
KEEP_BYTES_A_SECOND = 4 * 2**20
"""A session with a long memory is kept less often: what comes from the engine must not hold up the pictures."""
FORGIVEN_SECONDS = 60.0
"""A session that was at work when the engine died, twice within this time, is ended."""
PROBATION_SECONDS = 10.0
"""A session that was at work when the engine died comes back alone: until it has a chunk, or so long, no one enters."""
STATS_SECONDS = 1.0
LOADING = "The world is being made ready."
FULL = "All places in this world are taken."
DIED = "The world's engine stopped and is starting again."
TURN_OVER = "Your turn is over, for others wait; your world goes on when it is your turn again."


class Engine(Protocol):
    """The part of a Worker that the hub needs."""

    def send(self, command: worker.Command) -> None: ...


class Hub:
    """The one place that knows all viewers. `lead` is in chunks; `clock` in seconds.

    `archive` keeps what is parked; `fairness` says what is done when others wait.
    """

    def __init__(
        self,
        engine: Engine,
        lead: float = 1.0,
        metrics: Metrics | None = None,
        ice_servers: tuple[protocol.IceServer, ...] = (),
        clock: Callable[[], float] = time.monotonic,
        archive: Keeper | None = None,
        fairness: Fairness | None = None,
    ) -> None:
        self._engine, self._lead, self._clock = engine, lead, clock
        self._archive = Nowhere() if archive is None else archive
        self._fairness = fairness or Fairness()
        self._stays = Stays()
        self._tickets = itertools.count(1)
        self.metrics = metrics or Metrics()
        self.ice_servers = ice_servers
        self.world: World | None = None
        self._line = Line()
        self._viewers: dict[str, Viewer] = {}
        self._runs: dict[str, Viewer] = {}
        self._reason = LOADING
        self._closing: str | None = None
        self._chunk_seconds: deque[float] = deque(maxlen=16)
        self._stats_at = self._swept_at = clock()

    # The viewers' side.

    @property
    def has_room(self) -> bool:
        """True when a newcomer would be live at once."""
        return self._line.has_room and self._closing is None

    def enter(self, prompt: str, seed: int | None, hear: Hear) -> Viewer:
        """A new viewer, live at once or in line. ValueError with a sentence when no one else can be taken."""
        return self._join(Session(prompt, secrets.randbelow(2**32) if seed is None else seed), hear)

    def resume(self, token: str, data: Data, hear: Hear) -> Viewer:
        """A viewer who comes back for a session that was parked, or whose session is put here. Raises as enter()."""
        assert token not in self._viewers, "a session that is here is returned to, not resumed"
        return self._join(Session.parked(token, data), hear)

    def resume_copy(self, data: Data) -> Viewer:
        """A session of its own that goes on from the data of another; it waits for its viewer. Raises as enter()."""
        session = Session.parked(new_token(), replace(data, spec=replace(data.spec, session="copy")))
        return self._wait_for_viewer(self._join(session, no_one))

    def begin(self, prompt: str, seed: int | None) -> Viewer:
        """As enter(), but the session waits for its viewer to come by return_() or to fetch the picture."""
        return self._wait_for_viewer(self.enter(prompt, seed, no_one))

    def _wait_for_viewer(self, viewer: Viewer) -> Viewer:
        self._line.lose(viewer.session, self._clock())
        return viewer

    def poll(self, viewer: Viewer) -> None:
        """Someone asks for a session that waits for its viewer: it waits on, and is live if there is room now."""
        if viewer.session.lost_at is not None and viewer.session.state is not State.PARKED:
            self._line.return_(viewer.session)
            self._advance()
            self._line.lose(viewer.session, self._clock())

    def describe_place(self, viewer: Viewer) -> dict[str, int | None]:
        """The place in line, of how many, and the wait to be expected."""
        place = self._line.place(viewer.session)
        return {"place": place, "waiting": len(self._line.waiting), "wait_seconds": self._wait(place)}

    def fetch(self, viewer: Viewer, take: Callable[[Data | None], None]) -> None:
        """Hand what a session is now to `take`, as soon as the engine has given it; None where it has not begun."""
        if viewer.session.state is State.LIVE and not viewer.placing:
            self._snapshot(viewer, chunks=None)
            viewer.wanted.append(take)
        elif viewer.session.awaits_data:
            viewer.wanted.append(take)
        else:
            take(viewer.session.data)

    def find(self, token: str) -> Viewer | None:
        """The viewer whose secret this is."""
        return self._viewers.get(token)

    def return_(self, viewer: Viewer, hear: Hear) -> None:
        """The viewer is there again, on another connection: all is as it was. ValueError when the line is full."""
        session = viewer.session
        if session.lost_at is None and viewer.hear is not no_one:
            viewer.hear(protocol.Ended(reason="This world is watched from another connection now."))
        viewer.hear, viewer.welcomed, viewer.told = hear, False, None
        if session.state is State.PARKED:  # what it was is on its way from the engine
            self._check_line()
            self._line.join(session)
        elif session.lost_at is not None:
            self._line.return_(session)
        viewer.fetched = viewer.active = self._clock()
        self._welcome(viewer)
        if session.state is State.LIVE:
            self._tell_live(viewer)
        self._advance()

    def lose(self, viewer: Viewer, hear: Hear) -> None:
        """The connection that hears by `hear` broke; slot or place stay for a while, if it is still the viewer's."""
        if viewer.hear != hear or viewer.session.state not in (State.QUEUED, State.LIVE):
            return
        viewer.hear = no_one
        self._line.lose(viewer.session, self._clock())

    def obey(self, viewer: Viewer, message: protocol.FromClient) -> None:
        """Do what a viewer's message says. ProtocolError for a second hello, and for what cannot be done now."""
        if not isinstance(message, protocol.Shown) and not (isinstance(message, protocol.Keys) and not message.held):
            viewer.active, viewer.asked = self._clock(), None
        match message:
            case protocol.Keys(seq=seq, held=held):
                self._steer(viewer, viewer.session.press(seq, frozenset(held), self._clock()))
            case protocol.Prompt(seq=seq, text=text):
                self._steer(viewer, viewer.session.change(seq, text))
            case protocol.Restart():
                self._restart(viewer, message)
            case protocol.Rewind():
                self._rewind(viewer, message)
            case protocol.Pause(seq=seq) | protocol.Unpause(seq=seq):
                self._pause(viewer, seq, isinstance(message, protocol.Pause))
                return
            case protocol.Shown(ms=ms):
                self.metrics.shown.observe(ms / 1000)
                return
            case protocol.Park():
                self.park(viewer, "You parked this world.")
                return
            case protocol.Leave():
                self.leave(viewer)
                return
            case protocol.Hello():
                raise protocol.ProtocolError("this connection has said hello already; open another for a new viewer")
        viewer.hear(protocol.Received(seq=message.seq))

    def leave(self, viewer: Viewer, reason: str = "You left.") -> None:
        """End a session for good and free its slot at once; a session that is gone may leave again."""
        if self._viewers.pop(viewer.session.token, None) is None:
            return
        if viewer.session.state is State.LIVE:
            self._stop(viewer)
        self._line.leave(viewer.session)
        self._archive.remove(viewer.session.token)
        viewer.hand_over()
        viewer.hear(protocol.Ended(reason=reason))
        viewer.ended()
        self._advance()

    def park(self, viewer: Viewer, reason: str) -> None:
        """Free the slot or the place and keep what the session was; with its token the viewer comes back.

        What has not begun is not worth keeping: it is left.
        """
        session = viewer.session
        was_live = session.state is State.LIVE
        if not was_live and session.data is None:
            self.leave(viewer, reason)
            return
        if was_live:
            self._stop(viewer, keep=True)
        self._line.park(session)
        viewer.hear(protocol.Parked(reason=reason))
        viewer.hear = no_one
        viewer.ended()
        if not session.awaits_data:
            self._store(viewer)
        self._advance()

    def took(self, viewer: Viewer, paced: Paced) -> None:
        """A frame leaves for the viewer: the engine may go as much further."""
        viewer.fetched = viewer.watched = self._clock()
        viewer.sent_at.append(viewer.fetched)
        self.metrics.frames.inc()
        if paced.run == viewer.session.engine_name and not viewer.placing:
            viewer.next_frame = paced.frame + 1
            self._grant(viewer)

    def sent(self, viewer: Viewer, paced: Paced, rtp: int | None) -> None:
        """A frame is on the network with this RTP timestamp: say so if it is the first to obey a control."""
        if paced.run == viewer.session.engine_name and paced.sequence > viewer.applied:
            viewer.applied = paced.sequence
            viewer.hear(protocol.Applied(seq=paced.sequence, chunk=paced.chunk, frame=paced.frame, rtp=rtp))

    def drain(self, reason: str, take: Callable[[Data | None], None]) -> int:
        """Let no one in any more, and ask the engine what each live session is now; how many `take` will hear of."""
        self._closing = reason
        asked = [viewer for viewer in self._viewers.values() if viewer.session.state is State.LIVE]
        asked = [viewer for viewer in asked if not viewer.placing]
        for viewer in asked:
            self._snapshot(viewer)
            viewer.wanted.append(take)
        return len(asked)

    def close(self, reason: str) -> None:
        """End every session here; what was kept of them can be come back to while the archive lasts."""
        for viewer in list(self._viewers.values()):
            if viewer.session.data is not None:
                self._archive.put(viewer.session.token, viewer.session.data)
                viewer.hear(protocol.Parked(reason=reason, by_itself=True))
                viewer.hear = no_one
                self._viewers.pop(viewer.session.token)
                viewer.ended()
            else:
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
            case worker.Snapped():
                self._keep(event)
            case worker.Placed(session, made):
                self._place(session, made)
            case worker.Died(reason, again, _, at_work):
                if again:
                    log.warning("the engine died and is started again: %s", reason)
                self._close_doors(reason, at_work)
            case worker.Progress(done, total):
                log.debug("prewarm: %d of %d", done, total)

    def tick(self) -> None:
        """Four times a second or so: see to what time brings, and tell how it goes."""
        now = self._clock()
        for viewer in list(self._viewers.values()):
            self._see_to(viewer, now)
        if now - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = now
            self._archive.sweep()
        if now - self._stats_at >= STATS_SECONDS:
            self._stats_at = now
            self._tell_stats(now)
            self._advance()

    def _see_to(self, viewer: Viewer, now: float) -> None:
        """Stale keys are released, who is not there is parked, and who holds up others makes room."""
        session = viewer.session
        if session.state is State.PARKED:
            return  # what it was is on its way
        if session.lost_at is not None and now - max(session.lost_at, viewer.watched) > GRACE_SECONDS:
            self.park(viewer, "The connection broke off.")
        elif session.state is State.LIVE:
            self._see_to_live(viewer, now)

    def _see_to_live(self, viewer: Viewer, now: float) -> None:
        session = viewer.session
        if control := session.release_stale(now):
            self._engine.send(worker.Steer(session.engine_name, control))
        if viewer.pacer is None or not len(viewer.pacer) or viewer.paused or session.lost_at is not None:
            viewer.fetched = now  # it is the engine that is slow, not the viewer; or no one is there, which is seen to
        if viewer.on_probation and now - viewer.live_since > PROBATION_SECONDS:
            viewer.on_probation = False
            self._advance()
        if now - viewer.fetched > PICTURE_SECONDS:
            self.leave(viewer, f"No picture was fetched for {PICTURE_SECONDS:.0f} seconds.")
        elif self._others_wait and self._fairness.turn_is_over(now - viewer.live_since):
            self._end_turn(viewer)
        elif self._others_wait and self._fairness.is_idle(now - viewer.active):
            self._ask(viewer, now)
        elif now - viewer.kept_at >= viewer.keep_every and viewer.made > viewer.kept_made and not viewer.placing:
            self._snapshot(viewer)

    @property
    def _others_wait(self) -> bool:
        return any(session.lost_at is None for session in self._line.waiting)

    def _end_turn(self, viewer: Viewer) -> None:
        self._stop(viewer, keep=True)
        self._line.yield_(viewer.session)
        viewer.told, viewer.why = None, TURN_OVER
        viewer.ended()
        self._advance()

    def _ask(self, viewer: Viewer, now: float) -> None:
        if viewer.asked is None:
            viewer.asked = now
            viewer.hear(protocol.Asked(seconds=round(ASKED_SECONDS)))
        elif now - viewer.asked > ASKED_SECONDS:
            self.park(viewer, "Nothing was steered for a while, and others wait.")

    # Inside.

    @property
    def _lead_frames(self) -> int:
        assert self.world is not None, "no world yet"
        return max(1, round(self._lead * self.world.chunk_frames))

    def _join(self, session: Session, hear: Hear) -> Viewer:
        self._check_line()
        viewer = Viewer(session, hear, self._clock(), self._clock(), rewinds=self._rewinds())
        viewer.applied = session.data.held.sequence if session.data else 0
        viewer.keep_every = KEEP_SECONDS
        self._viewers[session.token] = viewer
        self._line.join(session)
        self._welcome(viewer)
        self._advance()
        return viewer

    def _rewinds(self) -> Bucket:
        return Bucket(REWINDS_A_SECOND, REWINDS_AT_ONCE, self._clock)

    def _check_line(self) -> None:
        if self._closing is not None:
            raise ValueError(self._closing)
        if len(self._line.waiting) >= MAX_WAITING:
            raise ValueError(f"{MAX_WAITING} viewers wait already; try again later")

    def _open_doors(self, world: World) -> None:
        self.world, self._reason = world, " ".join(filter(None, (FULL, world.limit)))
        self._line.resize(world.slots)
        self.metrics.slots.set(world.slots)
        for viewer in list(self._viewers.values()):
            self._welcome(viewer)
        self._advance()

    def _close_doors(self, reason: str, at_work: tuple[str, ...]) -> None:
        """The engine is gone: all who were live stand first in line for the next one, and go on from what was kept."""
        self.metrics.deaths.inc()
        self.metrics.slots.set(0)
        self._reason = DIED
        suspects = [viewer for name in at_work if (viewer := self._runs.get(name))]
        # One that came back alone is to blame rather than those who were there already.
        suspects = [viewer for viewer in suspects if viewer.on_probation] or suspects
        self._runs.clear()
        self._line.resize(0)
        for viewer in list(self._viewers.values()):
            viewer.placing = viewer.on_probation = False
            self._give_up_waiting(viewer)
        for viewer in suspects:
            self._suspect(viewer, reason)
        self._advance()

    def _suspect(self, viewer: Viewer, reason: str) -> None:
        """The engine died at work for this viewer: once may be chance, but not twice."""
        now = self._clock()
        if now - viewer.suspected_at <= FORGIVEN_SECONDS:
            self.leave(viewer, f"This world broke the engine twice: {reason}.")
        viewer.suspected_at = now
        viewer.on_probation = True

    def _give_up_waiting(self, viewer: Viewer) -> None:
        """No snapshot comes any more; what was kept before must do."""
        session = viewer.session
        viewer.hand_over()
        if session.awaits_data:
            session.awaits_data = False
            if session.state is State.PARKED:
                self._store(viewer)

    def _welcome(self, viewer: Viewer) -> None:
        if self.world is None or viewer.welcomed:
            return
        viewer.welcomed = True
        world, session = self.world, viewer.session
        # Two chunks beyond the lead: only an engine that disregards its credit can fill that.
        capacity = round(self._lead * world.chunk_frames) + 2 * max(world.chunk_frames, world.first_chunk_frames)
        if viewer.pacer is None:  # who comes back keeps the frames that wait, and the track that fetches them
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
                seq=session.sequence or None,
            )
        )

    def _advance(self) -> None:
        """Fill free slots from the line and tell those whose place changed."""
        for session in self._line.admit(self._may_enter):
            viewer = self._viewers[session.token]
            viewer.live_since, viewer.why = self._clock(), ""
            self._begin(viewer)
        waiting = self._line.waiting
        for place, session in enumerate(waiting, 1):
            self._tell_place(self._viewers[session.token], place, len(waiting))
        self.metrics.viewers.set(len(self._line.live))
        self.metrics.waiting.set(len(waiting))
        self.metrics.parked.set(self._archive.count)
        self.metrics.parked_bytes.set(self._archive.bytes)

    def _may_enter(self, session: Session) -> bool:
        """Who was at work when the engine died comes back alone, so that one can tell whose fault the next death is."""
        return self._closing is None and not any(self._viewers[live.token].on_probation for live in self._line.live)

    def _tell_place(self, viewer: Viewer, place: int, waiting: int) -> None:
        wait = self._wait(place)
        reason = viewer.why if viewer.why and self._reason not in (DIED, LOADING) else self._reason
        news = (place, waiting, reason, wait)
        if viewer.told == news:
            return
        viewer.told = news
        restoring = True if viewer.session.data is not None or viewer.live_since else None
        viewer.hear(
            protocol.Queued(place=place, waiting=waiting, reason=reason, wait_seconds=wait, restoring=restoring)
        )

    def _wait(self, place: int) -> int | None:
        live = [self._clock() - self._viewers[session.token].live_since for session in self._line.live]
        return self._fairness.wait(place, live, self._stays.mean)

    def _begin(self, viewer: Viewer) -> None:
        """Open the session in the engine, or resume it, with credit for the first chunks so that they wait for the
        picture."""
        session, now = viewer.session, self._clock()
        spec, data = session.begin(), session.data
        name = session.engine_name
        self._runs[name] = viewer
        viewer.fetched = viewer.active = viewer.kept_at = now
        viewer.told, viewer.asked, viewer.placing = None, None, False
        self._go_on_from(viewer, data.chunk if data else 0)
        self._engine.send(worker.Resume(name, data) if data else worker.Open(name, spec))
        control = session.resume_control()
        if control.sequence:
            self._engine.send(worker.Steer(name, control))
        self._grant(viewer)
        self._tell_live(viewer)

    def _tell_live(self, viewer: Viewer) -> None:
        session = viewer.session
        assert session.slot is not None, "a live session has a slot"
        viewer.hear(protocol.Live(slot=session.slot, seed=session.seed, prompt=session.prompt))

    def _go_on_from(self, viewer: Viewer, chunk: int) -> None:
        """What comes next begins with this chunk; what waits is of before."""
        assert self.world is not None, "no world yet"
        viewer.next_frame, viewer.granted = worker.first_frame(self.world, chunk), 0
        viewer.made, viewer.kept_made = chunk, chunk
        if viewer.pacer is not None:
            viewer.pacer.flush()

    def _grant(self, viewer: Viewer) -> None:
        """Let the engine go as far as the lead allows; while paused it goes no further."""
        if not viewer.paused:
            viewer.granted = viewer.next_frame + self._lead_frames
            self._engine.send(worker.Grant(viewer.session.engine_name, viewer.granted))

    def _stop(self, viewer: Viewer, keep: bool = False) -> None:
        """Close the session in the engine; with `keep` what it was is asked for first."""
        name = viewer.session.engine_name
        if keep:
            viewer.session.awaits_data = True
            self._snapshot(viewer)
            self._engine.send(worker.Close(name))
        else:
            self._close_run(name)
        self._stays.note(self._clock() - viewer.live_since)

    def _close_run(self, name: str) -> None:
        self._runs.pop(name, None)
        self._engine.send(worker.Close(name))

    def _snapshot(self, viewer: Viewer, chunks: int | None = 0) -> None:
        viewer.ticket, viewer.kept_at, viewer.kept_made = next(self._tickets), self._clock(), viewer.made
        self._engine.send(worker.Snapshot(viewer.session.engine_name, viewer.ticket, chunks))

    def _keep(self, snapped: worker.Snapped) -> None:
        """Take what a session was. The newest answer to a session that stopped is its last."""
        viewer = self._runs.get(snapped.session)
        if viewer is None:
            return
        session = viewer.session
        if snapped.data is not None and not viewer.placing:
            session.data = snapped.data
            size = snapped.data.latents.nbytes + snapped.data.first.nbytes
            viewer.keep_every = max(KEEP_SECONDS, size / KEEP_BYTES_A_SECOND)
        if snapped.ticket < viewer.ticket:
            return
        viewer.hand_over()
        if not session.awaits_data:
            return
        session.awaits_data = False
        self._runs.pop(snapped.session, None)
        if session.state is State.PARKED:
            self._store(viewer)
        self._advance()

    def _store(self, viewer: Viewer) -> None:
        """Put a parked session onto the disk and forget it here."""
        session = viewer.session
        self._viewers.pop(session.token, None)
        if session.data is not None:
            self._archive.put(session.token, session.data)

    def _restart(self, viewer: Viewer, message: protocol.Restart) -> None:
        session = viewer.session
        session.sequence = max(session.sequence, message.seq)
        session.seed = session.seed if message.seed is None else message.seed
        session.prompt = message.prompt or session.prompt
        session.data, session.awaits_data, viewer.paused = None, False, False
        if session.run:
            self._close_run(session.engine_name)
        if session.state is State.LIVE:
            self._begin(viewer)
        else:
            self._advance()

    def _rewind(self, viewer: Viewer, message: protocol.Rewind) -> None:
        session, chunk = viewer.session, message.chunk
        self._check_rewind(viewer, message)
        session.sequence, session.prompted = max(session.sequence, message.seq), 0
        self._go_on_from(viewer, chunk)
        viewer.placing, viewer.paused = True, False
        self._engine.send(worker.Rewind(session.engine_name, chunk))
        self._engine.send(worker.Steer(session.engine_name, Control(session.sequence, session.held)))
        self._grant(viewer)

    def _check_rewind(self, viewer: Viewer, message: protocol.Rewind) -> None:
        if viewer.session.state is not State.LIVE or viewer.placing:
            raise protocol.ProtocolError("only a world that is live can go back; wait until it is", message.seq)
        if message.chunk > viewer.made:
            raise protocol.ProtocolError(
                f"the world has {viewer.made} chunks; it can go back to 0 up to {viewer.made}, not {message.chunk}",
                message.seq,
            )
        assert self.world is not None, "a live viewer has a world"
        back, kept = viewer.made - message.chunk, self.world.kept_chunks
        if kept and back > kept - self.world.resume_chunks:
            raise protocol.ProtocolError(
                f"the world remembers {kept - self.world.resume_chunks} chunks; it cannot go back {back}", message.seq
            )
        if not viewer.rewinds.take():
            raise protocol.ProtocolError(
                f"a world can go back {REWINDS_AT_ONCE} times in a row, then every {1 / REWINDS_A_SECOND:.0f} seconds",
                message.seq,
            )

    def _place(self, name: str, chunk: int) -> None:
        """What comes from here on is of after the rewind."""
        if viewer := self._runs.get(name):
            viewer.placing = False

    def _pause(self, viewer: Viewer, seq: int, paused: bool) -> None:
        if viewer.session.state is not State.LIVE:
            raise protocol.ProtocolError("only a world that is live can be paused; wait until it is", seq)
        viewer.hear(protocol.Received(seq=seq))
        viewer.session.sequence = max(viewer.session.sequence, seq)
        viewer.paused = paused
        if paused:
            viewer.hear(protocol.Paused(seq=seq, chunk=self._chunk_from(viewer.granted)))
        else:
            self._steer(viewer, Control(viewer.session.sequence, viewer.session.held))
            self._grant(viewer)

    def _chunk_from(self, frame: int) -> int:
        """The first chunk that begins at `frame` or later."""
        assert self.world is not None, "no world yet"
        return 0 if frame <= 0 else 1 + max(0, -(-(frame - self.world.first_chunk_frames) // self.world.chunk_frames))

    def _steer(self, viewer: Viewer, control: Control) -> None:
        if viewer.session.state is State.LIVE:
            self._engine.send(worker.Steer(viewer.session.engine_name, control))

    def _hand_out(self, chunk: Chunk) -> None:
        """Frames to the pacer of their viewer; those of a run that is over are no one's."""
        viewer = self._runs.get(chunk.session)
        if viewer is None or viewer.pacer is None or viewer.placing or viewer.session.state is not State.LIVE:
            return
        viewer.made = chunk.index + 1
        if viewer.on_probation:
            viewer.on_probation = False
            self._advance()
        self.metrics.chunks.inc()
        for stage, seconds in chunk.seconds.items():
            self.metrics.stage.labels(stage).observe(seconds)
        if "total" in chunk.seconds:
            self._chunk_seconds.append(chunk.seconds["total"])
        scene = protocol.Scene(
            text=chunk.scene, unknown_words=chunk.unknown_words, guessed_words=chunk.guessed_words or None
        )
        if scene != viewer.scene:
            viewer.scene = scene
            viewer.hear(scene)
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
                chunk=viewer.made,
            )
            viewer.hear(stats)

    def _count(self, viewer: Viewer) -> None:
        """Put what a pacer counted since the last time into the metrics."""
        assert viewer.pacer is not None, "only those with a picture are counted"
        late, dropped = viewer.counted
        viewer.counted = viewer.pacer.late, viewer.pacer.dropped
        self.metrics.late.inc(viewer.pacer.late - late)
        self.metrics.dropped.inc(viewer.pacer.dropped - dropped)
