"""Joins viewers, line and engine: who comes, who is live, who must go, and what each viewer hears.

Everything here runs on one thread, waits for nothing and knows no sockets: messages go to the `hear` that
a viewer brought, frames to its pacer. What the engine is told is in runs.py, what steering does in steering.py, the
words are in news.py.
"""

import hmac
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace

from pipeline.chunk import Chunk, Ended, World
from pipeline.chunk import Session as Data
from stream import news, protocol, worker
from stream.audience import SPECTATORS, UNKNOWN, Audience
from stream.fairness import ASKED_SECONDS, Fairness, Stays
from stream.metrics import Metrics
from stream.pacer import Paced
from stream.pictures import Pictures
from stream.prompts import Prompts
from stream.runs import KEEP_SECONDS, Engine, Runs
from stream.schedule import LEAD_SECONDS
from stream.session import Line, Session, State, new_token
from stream.steering import Steering
from stream.viewer import (
    RESTARTS_A_SECOND,
    RESTARTS_AT_ONCE,
    Hear,
    Keeper,
    Nowhere,
    Spectator,
    Viewer,
    buckets,
    no_one,
)

log = logging.getLogger(__name__)

MAX_WAITING = 100
SWEEP_SECONDS = 60.0
PICTURE_SECONDS = 15.0
"""A slot whose viewer fetches no picture for this long goes to the next in line."""
GRACE_SECONDS = 10.0
"""A viewer whose connection broke keeps slot or place for so long; then the session is parked."""
FORGIVEN_SECONDS = 60.0
"""A session that was at work when the engine died, twice within this time, is ended."""
PROBATION_SECONDS = 10.0
"""A session that was at work when the engine died comes back alone: until it has a chunk, or so long, no one enters."""
STATS_SECONDS = 1.0
LINE_SECONDS = 1.0
"""Everyone in line hears of its changes so often at most, or a line of n that comes at once would be told n times n
things. Who was told nothing yet hears at once."""


class Hub:
    """The one place that knows all viewers. `lead` and `clock` are in seconds.

    `archive` keeps what is parked; `fairness` says what is done when others wait; `prompts` knows what is not logged;
    so many `spectators` may watch one session.
    """

    def __init__(
        self,
        engine: Engine,
        lead: float = LEAD_SECONDS,
        metrics: Metrics | None = None,
        ice_servers: tuple[protocol.IceServer, ...] = (),
        clock: Callable[[], float] = time.monotonic,
        archive: Keeper | None = None,
        fairness: Fairness | None = None,
        prompts: Prompts | None = None,
        spectators: int = SPECTATORS,
    ) -> None:
        self._clock = clock
        self._prompts = prompts or Prompts()
        self._archive = Nowhere() if archive is None else archive
        self._fairness = fairness or Fairness()
        self._stays = Stays()
        self.metrics = metrics or Metrics()
        self.audience = Audience(spectators, self.metrics)
        self.ice_servers = ice_servers
        self._line = Line()
        self._viewers: dict[str, Viewer] = {}
        self._runs = Runs(engine, lead, clock)
        self._steering = Steering(self._runs, clock)
        self._pictures = Pictures(self._runs, self.metrics, clock)
        self._reason = news.LOADING
        self._closing: str | None = None
        self._stats_at = self._swept_at = clock()
        self._line_told_at, self._line_changed = float("-inf"), False

    # Who comes.

    @property
    def world(self) -> World | None:
        """What is served; None until an engine was ready."""
        return self._runs.world

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

    def _join(self, session: Session, hear: Hear) -> Viewer:
        self.check_line()
        viewer = Viewer(session, hear, self._clock(), self._clock(), **buckets(self._clock))
        viewer.applied = session.data.held.sequence if session.data else 0
        viewer.keep_every = KEEP_SECONDS
        self._prompts.note(session.name, session.prompt)
        self._viewers[session.token] = viewer
        self._line.join(session)
        self._welcome(viewer)
        self._advance()
        return viewer

    def check_line(self) -> None:
        """Raise ValueError, with a sentence, when no one else can be taken: to be asked before much is done for one."""
        if self._closing is not None:
            self.metrics.refuse("closing")
            raise ValueError(self._closing)
        if len(self._line.waiting) >= MAX_WAITING:
            self.metrics.refuse("line")
            raise ValueError(f"{MAX_WAITING} viewers wait already; try again later")

    def _welcome(self, viewer: Viewer) -> None:
        if self.world is None or viewer.welcomed:
            return
        viewer.welcomed = True
        if viewer.pacer is None:  # who comes back keeps the frames that wait, and the track that fetches them
            viewer.pacer = self._runs.new_pacer()
        viewer.hear(news.welcome(viewer, self.world, self.ice_servers, self.audience.is_allowed))

    def poll(self, viewer: Viewer) -> None:
        """Someone asks for a session that waits for its viewer in line: it waits on, and is live if there is room now.

        A slot is not held by asking: others wait for it, and GRACE_SECONDS are enough to fetch the picture.
        """
        if viewer.session.lost_at is not None and viewer.session.state is State.QUEUED:
            self._line.return_(viewer.session)
            self._advance()
            self._line.lose(viewer.session, self._clock())

    def describe_place(self, viewer: Viewer) -> dict[str, int | None]:
        """The place in line, of how many, and the wait to be expected."""
        place = self._line.place(viewer.session)
        return {"place": place, "waiting": len(self._line.waiting), "wait_seconds": self._wait(place)}

    def find(self, token: str) -> Viewer | None:
        """The viewer whose secret this is."""
        return self._viewers.get(token)

    def find_watcher(self, token: str) -> Viewer | Spectator | None:
        """Whose picture this token fetches."""
        return self._viewers.get(token) or self.audience.find(token)

    def spectate(self, watch_token: str, hear: Hear) -> Spectator:
        """One who watches the session of this link. ValueError with a sentence when there is none, or too many do."""
        asked = watch_token.encode("utf-8", "surrogatepass")
        viewers = [viewer for viewer in self._viewers.values() if viewer.session.state is not State.PARKED]
        viewer = next((each for each in viewers if hmac.compare_digest(each.session.watch_token.encode(), asked)), None)
        if viewer is None or self.world is None or self._closing is not None:
            raise ValueError(UNKNOWN)
        spectator = self.audience.join(viewer, hear)
        paused_from = self._runs.chunk_from(viewer.granted)
        for message in news.glimpse(spectator, self.world, self.ice_servers, paused_from):
            hear(message)
        return spectator

    def dismiss(self, watcher: Viewer | Spectator) -> None:
        """Whoever saw a picture is gone for good: a viewer with the session, a spectator alone."""
        if isinstance(watcher, Spectator):
            self.audience.leave(watcher)
        else:
            self.leave(watcher)

    def return_(self, viewer: Viewer, hear: Hear) -> None:
        """The viewer is there again, on another connection: all is as it was. ValueError when the line is full."""
        session = viewer.session
        if session.state is State.PARKED:
            self.check_line()
        if session.lost_at is None and viewer.hear is not no_one:
            viewer.hear(protocol.Ended(reason="This world is watched from another connection now."))
        viewer.hear, viewer.welcomed, viewer.told = hear, False, None
        if session.state is State.PARKED:  # what it was is on its way from the engine
            self._line.join(session)
        elif session.lost_at is not None:
            self._line.return_(session)
        viewer.fetched = viewer.active = self._clock()
        self._welcome(viewer)
        if session.state is State.LIVE:
            self._tell_how_it_is(viewer)
        else:
            viewer.scene = None  # this connection has not heard it: it is told anew with the next chunk
        self._advance()

    def _tell_how_it_is(self, viewer: Viewer) -> None:
        """What a connection that was not there before does not know of a live world."""
        viewer.hear(news.live(viewer))
        if viewer.scene:
            viewer.hear(viewer.scene)
        if viewer.paused:
            self._steering.tell_paused(viewer, viewer.session.sequence)

    def lose(self, viewer: Viewer, hear: Hear) -> None:
        """The connection that hears by `hear` broke; slot or place stay for a while, if it is still the viewer's."""
        if viewer.hear != hear or viewer.session.state not in (State.QUEUED, State.LIVE):
            return
        viewer.hear = no_one
        self._line.lose(viewer.session, self._clock())

    def look(self, viewer: Viewer) -> None:
        """The picture is fetched: who does that is there, also without a connection that steers."""
        if viewer.session.lost_at is not None and viewer.session.state in (State.QUEUED, State.LIVE):
            self._line.return_(viewer.session)
            self._advance()

    def look_away(self, viewer: Viewer) -> None:
        """No picture is fetched any more; who has no connection that steers either is lost."""
        is_here = viewer.session.lost_at is None and viewer.session.state in (State.QUEUED, State.LIVE)
        if viewer.hear is no_one and is_here:
            self._line.lose(viewer.session, self._clock())

    # What a viewer does.

    def obey(self, viewer: Viewer, message: protocol.FromClient) -> None:
        """Do what a viewer's message says. ProtocolError for a second hello, and for what cannot be done now."""
        if not isinstance(message, protocol.Shown) and not (isinstance(message, protocol.Keys) and not message.held):
            viewer.active, viewer.asked = self._clock(), None
        if isinstance(message, protocol.Keys | protocol.Prompt | protocol.Restart | protocol.Rewind | protocol.Unpause):
            viewer.came(message.seq, self._clock())
        match message:
            case protocol.Restart():
                self._restart(viewer, message)
            case protocol.Shown(ms=ms):
                self.metrics.shown.observe(ms / 1000)
            case protocol.Park():
                self.park(viewer, "You parked this world.")
            case protocol.Leave():
                self.leave(viewer)
            case protocol.Hello():
                raise protocol.ProtocolError("this connection has said hello already; open another for a new viewer")
            case _:
                self._steering.obey(viewer, message)
        if isinstance(message, protocol.Prompt | protocol.Restart):
            self._prompts.note(viewer.session.name, viewer.session.prompt)

    def _restart(self, viewer: Viewer, message: protocol.Restart) -> None:
        session = viewer.session
        if not viewer.restarts.take():
            often = f"{RESTARTS_AT_ONCE} times in a row, then every {1 / RESTARTS_A_SECOND:.0f} seconds"
            raise protocol.ProtocolError(f"a world can begin again {often}", message.seq)
        session.prompt, session.image = self._steering.beginning(viewer, message)
        session.sequence = max(session.sequence, message.seq)
        session.seed = session.seed if message.seed is None else message.seed
        session.data, session.awaits_data, viewer.paused, viewer.told = None, False, False, None
        if session.run:
            self._runs.stop(viewer)
        if session.state is State.LIVE:
            self._begin(viewer)
        else:
            self._advance()
        viewer.hear(protocol.Received(seq=message.seq))

    def fetch(self, viewer: Viewer, take: Callable[[Data | None], None]) -> None:
        """Hand what a session is now to `take`, as soon as the engine has given it; None where it has not begun."""
        if viewer.session.state is State.LIVE and not viewer.placing:
            self._runs.ask(viewer, chunks=None)
            viewer.wanted.append(take)
        elif viewer.session.awaits_data:
            viewer.wanted.append(take)
        else:
            take(viewer.session.data)

    def leave(self, viewer: Viewer, reason: str = "You left.") -> None:
        """End a session for good and free its slot at once; a session that is gone may leave again."""
        if self._viewers.pop(viewer.session.token, None) is None:
            return
        if viewer.session.state is State.LIVE:
            self._stop(viewer)
        self._line.leave(viewer.session)
        self._archive.remove(viewer.session.token)
        viewer.hand_over()
        viewer.tell(protocol.Ended(reason=reason))
        viewer.ended()
        self.audience.dismiss(viewer)
        self._advance()

    def park(self, viewer: Viewer, reason: str) -> None:
        """Free the slot or the place and keep what the session was; with its token the viewer comes back.

        What has not begun is not worth keeping: it is left.
        """
        session = viewer.session
        was_live = session.state is State.LIVE
        if session.state in (State.PARKED, State.GONE):
            return
        if not was_live and session.data is None and not session.awaits_data:
            self.leave(viewer, reason)
            return
        if was_live:
            self._stop(viewer, keep=True)
        self._line.park(session)
        viewer.tell(protocol.Parked(reason=reason))
        viewer.hear = no_one
        viewer.ended()
        self.audience.dismiss(viewer)
        if not session.awaits_data:
            self._store(viewer)
        self._advance()

    def _stop(self, viewer: Viewer, keep: bool = False) -> None:
        """Close a live session in the engine; with `keep` what it was is asked for first."""
        self._runs.stop(viewer, keep)
        self._stays.note(self._clock() - viewer.live_since)

    def _store(self, viewer: Viewer) -> None:
        """Put a parked session onto the disk and forget it here."""
        session = viewer.session
        self._viewers.pop(session.token, None)
        if session.data is not None:
            self._archive.put(session.token, session.data)

    def took(self, viewer: Viewer, paced: Paced) -> None:
        """A frame leaves for the viewer: the engine may go as much further."""
        self._pictures.took(viewer, paced)

    def sent(self, viewer: Viewer, paced: Paced, rtp: int | None) -> None:
        """A frame is on the network with this RTP timestamp."""
        self._pictures.sent(viewer, paced, rtp)

    # The server ends.

    def drain(self, reason: str, take: Callable[[Data | None], None]) -> int:
        """Let no one in any more, and ask the engine what each live session is now; how many `take` will hear of, those
        included of which it is still to say what they were."""
        self._closing = reason
        owing = [viewer for viewer in self._viewers.values() if viewer.session.awaits_data]
        for viewer in self._viewers.values():
            if viewer.session.state is State.LIVE and not viewer.placing:
                self._runs.ask(viewer)
                owing.append(viewer)
        for viewer in owing:
            viewer.wanted.append(take)
        return len(owing)

    def close(self, reason: str, keeps: bool = True) -> None:
        """End every session here; with `keeps` what was kept of them is put away, to be come back to."""
        for viewer in list(self._viewers.values()):
            if keeps and viewer.session.data is not None:
                self._put_away(viewer, reason, by_itself=True)
            else:
                self.leave(viewer, reason)

    def _put_away(self, viewer: Viewer, reason: str, by_itself: bool | None = None) -> None:
        """Free the slot or the place; what the session was is found on the disk, by the next server too."""
        session = viewer.session
        self._viewers.pop(session.token)
        self._line.leave(session)
        self._archive.put(session.token, session.data)
        viewer.hand_over()
        viewer.tell(protocol.Parked(reason=reason, by_itself=by_itself))
        viewer.hear = no_one
        viewer.ended()
        self.audience.dismiss(viewer)

    # The engine's side.

    def happen(self, event: worker.Event) -> None:
        """Take what the engine's process says."""
        match event:
            case worker.Ready(world):
                self._open_doors(world)
            case Chunk():
                self._hand_out(event)
            case Ended(session, reason):
                if viewer := self._runs.find(session):
                    self.leave(viewer, reason)
            case worker.Refused(session, reason):
                if viewer := self._runs.find(session):
                    self._refuse(viewer, reason)
            case worker.Snapped():
                self._keep(event)
            case worker.Placed(session):
                self._runs.place(session)
            case worker.Died(reason, again, _, at_work):
                if again:
                    log.warning("the engine died and is started again: %s", reason)
                self._close_doors(reason, at_work)
            case worker.Progress(done, total):
                log.debug("prewarm: %d of %d", done, total)

    def _hand_out(self, chunk: Chunk) -> None:
        """Frames to the pacer of their viewer; those of a run that is over are no one's."""
        viewer = self._runs.find(chunk.session)
        if viewer is None or viewer.pacer is None or viewer.placing or viewer.session.state is not State.LIVE:
            return
        if viewer.on_probation:
            viewer.on_probation = False
            self._advance()
        self._pictures.put(viewer, chunk)

    def _keep(self, snapped: worker.Snapped) -> None:
        """Take what a session was; one that stopped can be stored or enter again."""
        if viewer := self._runs.take(snapped):
            if viewer.session.state is State.PARKED:
                self._store(viewer)
            self._advance()

    def _open_doors(self, world: World) -> None:
        self.metrics.restarts.inc(self.world is not None)
        self._runs.world, self._reason = world, " ".join(filter(None, (news.FULL, world.limit)))
        self._line.resize(world.slots)
        self._line_told_at = float("-inf")  # all in line hear of it at once
        self.metrics.slots.set(world.slots)
        for viewer in list(self._viewers.values()):
            self._welcome(viewer)
        self._advance()

    def _close_doors(self, reason: str, at_work: tuple[str, ...]) -> None:
        """The engine is gone: all who were live stand first in line for the next one, and go on from what was kept."""
        self.metrics.deaths.inc()
        self.metrics.slots.set(0)
        self._reason = news.DIED
        suspects = [viewer for name in at_work if (viewer := self._runs.find(name))]
        # One that came back alone is to blame rather than those who were there already.
        suspects = [viewer for viewer in suspects if viewer.on_probation] or suspects
        self._runs.forget()
        self._line.resize(0)
        self._line_told_at = float("-inf")
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

    def _refuse(self, viewer: Viewer, reason: str) -> None:
        """The engine does not take this session. A world that was kept stays so: another engine may go on with it."""
        if viewer.session.data is None:
            self.leave(viewer, reason)
            return
        self._runs.stop(viewer)
        self._put_away(viewer, reason)
        self._advance()

    def _give_up_waiting(self, viewer: Viewer) -> None:
        """No snapshot comes any more; what was kept before must do."""
        session = viewer.session
        viewer.hand_over()
        if session.awaits_data:
            session.awaits_data = False
            if session.state is State.PARKED:
                self._store(viewer)

    # Time.

    def tick(self) -> None:
        """Four times a second or so: see to what time brings, and tell how it goes."""
        now = self._clock()
        for viewer in list(self._viewers.values()):
            try:
                self._see_to(viewer, now)
            except Exception:  # a mistake of ours over one viewer is none of the others' affair
                log.exception("a viewer cannot be seen to")
        if now - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = now
            self._archive.sweep()
        if now - self._stats_at >= STATS_SECONDS:
            self._stats_at = now
            live = [self._viewers[session.token] for session in self._line.live]
            turn_left = self._fairness.left if self._others_wait else lambda seconds: None
            self._pictures.tell_stats(live, len(self._line.waiting), turn_left)
            self._advance()
        elif self._line_changed:
            self._tell_line()

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
        self._steering.release_stale(viewer, now)
        if not self._others_wait:
            viewer.asked = None  # who comes next asks anew
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
        else:
            self._runs.ask_if_due(viewer, now)

    @property
    def _others_wait(self) -> bool:
        return any(session.lost_at is None and not self._lacks_picture(session) for session in self._line.waiting)

    def _end_turn(self, viewer: Viewer) -> None:
        self._stop(viewer, keep=True)
        self._line.yield_(viewer.session)
        viewer.told, viewer.why = None, news.TURN_OVER
        viewer.ended()
        self._advance()

    def _ask(self, viewer: Viewer, now: float) -> None:
        if viewer.asked is None:
            viewer.asked = now
            viewer.hear(protocol.Asked(seconds=round(ASKED_SECONDS)))
        elif now - viewer.asked > ASKED_SECONDS:
            self.park(viewer, "Nothing was steered for a while, and others wait.")

    # The line.

    def _advance(self) -> None:
        """Fill free slots from the line and tell those whose place changed, at once or soon."""
        for session in self._line.admit(self._may_enter):
            viewer = self._viewers[session.token]
            viewer.live_since, viewer.why = self._clock(), ""
            self._begin(viewer)
        self._tell_line()
        self.metrics.viewers.set(len(self._line.live))
        self.metrics.waiting.set(len(self._line.waiting))
        self.metrics.parked.set(self._archive.count)
        self.metrics.parked_bytes.set(self._archive.bytes)

    def _begin(self, viewer: Viewer) -> None:
        """The viewer is live: the world begins in the engine, or goes on."""
        viewer.fetched = viewer.active = self._clock()
        viewer.told, viewer.asked = None, None
        self._runs.begin(viewer)
        viewer.tell(news.live(viewer))
        if viewer.paused:  # as it was when it lost its place
            self._steering.tell_paused(viewer, viewer.session.sequence)

    def _may_enter(self, session: Session) -> bool:
        """Who was at work when the engine died comes back alone, so that one can tell whose fault the next death is."""
        if self._closing is not None or self._lacks_picture(session):
            return False
        return not any(self._viewers[live.token].on_probation for live in self._line.live)

    def _lacks_picture(self, session: Session) -> bool:
        needs = self.world is not None and self.world.image == "required"
        return needs and session.image is None and session.data is None

    def _tell_line(self) -> None:
        """Tell all in line how it is, or those who know nothing yet, where all were told a moment ago."""
        now, waiting = self._clock(), self._line.waiting
        self._line_changed = now - self._line_told_at < LINE_SECONDS
        for place, session in enumerate(waiting, 1):
            viewer = self._viewers[session.token]
            if viewer.told is None or not self._line_changed:
                self._tell_place(viewer, place, len(waiting))
        if not self._line_changed:
            self._line_told_at = now

    def _tell_place(self, viewer: Viewer, place: int, waiting: int) -> None:
        lacks = self._lacks_picture(viewer.session)
        told = news.queued(viewer, place, waiting, self._reason, self._wait(place), lacks)
        if viewer.told != told:
            viewer.told = told
            viewer.tell(told)

    def _wait(self, place: int) -> int | None:
        live = [self._clock() - self._viewers[session.token].live_since for session in self._line.live]
        return self._fairness.wait(place, live, self._stays.mean)
