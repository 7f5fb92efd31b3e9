"""The engine in its own process: commands in, frames out through shared memory, restarted when it dies.

A `Worker` lives in the server's process and a `_Servant` in the engine's. Commands and events are small
and cross a pipe; frames cross in blocks of one piece of anonymous shared memory. It has no name, so there
is nothing to unlink and nothing is left behind, however either process ends, and Docker's small /dev/shm
does not bound it. Each process ends itself when it sees the other's end of the pipe closed.

Pacing is by credit: a `Grant` lets a session be made up to that video frame, and a session without credit costs
nothing. So a viewer who does not look is not drawn for, and no one's lead grows. Within it a chunk begins as late as it
can (stream/schedule.py). The process itself is in stream/servant.py, what crosses the pipe in stream/orders.py.
"""

import atexit
import contextlib
import dataclasses
import logging
import mmap
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing import reduction, resource_tracker
from typing import Any

import numpy as np

from pipeline.chunk import Chunk, Ended, World
from stream.logbook import Logbook, mapped
from stream.orders import (
    Close,
    Command,
    Died,
    Event,
    Failed,
    Grant,
    Made,
    Open,
    Outbox,
    Placed,
    Progress,
    Ready,
    Refused,
    Resume,
    Return,
    Rewind,
    Snapped,
    Snapshot,
    Steer,
)
from stream.pulse import Pulse, Silence, processor_seconds, waited_seconds
from stream.schedule import LEAD_SECONDS, Plan, first_frame
from stream.servant import RESUME_WINDOWS, serve

__all__ = [
    "RESUME_WINDOWS",
    "Close",
    "Command",
    "Died",
    "Event",
    "Grant",
    "Open",
    "Placed",
    "Progress",
    "Ready",
    "Refused",
    "Resume",
    "Rewind",
    "Snapped",
    "Snapshot",
    "Steer",
    "Worker",
    "first_frame",
]

log = logging.getLogger(__name__)

HANG_SECONDS, HANG_CHUNKS = 1.5, 5
"""An engine that owes a chunk of a session whose last one came without trouble, and says nothing for this long, or
for so many times its measured chunk if that is more, is taken for dead; also one that does nothing meanwhile. Time in
which it waits for a processor does not count: where others keep the machine busy, a sound engine is slow."""
LONGEST_WAITS = 10
"""It is taken for dead after so many times as long, however busy the machine is."""
PATIENCE_SECONDS = 20.0
"""It has so long for what takes an unknown time, such as a new prompt, while it is at work. Loading has no limit, for a
large model may compile for many minutes."""
LOOK_SECONDS = 0.25

SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
"""Between two starts, but none after an engine that worked for a while."""
WORKED_SECONDS = 10.0


class Worker:
    """The engine's process as the server sees it. Any thread may call; no call waits for the engine.

    `factory` is "module:function" and is imported in the process only; it is called with `options` and
    returns an `Engine`. `deliver` gets each event, in a thread of the worker's. `lead` is in seconds, see Plan.
    """

    def __init__(
        self,
        factory: str,
        options: Mapping[str, Any],
        deliver: Callable[[Event], None],
        hang_seconds: float = HANG_SECONDS,
        lead: float = LEAD_SECONDS,
    ) -> None:
        self._arguments = (factory, dict(options), lead)
        self._world: World | None = None
        self._deliver, self._hang_seconds = deliver, hang_seconds
        self._context = multiprocessing.get_context("spawn")
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._run: _Run | None = None
        self._been_ready = False
        self._thread = threading.Thread(target=self._keep_alive, name="engine", daemon=True)

    @property
    def pid(self) -> int | None:
        """The process id of the engine, None between two of them."""
        run = self._run
        return run.process.pid if run else None

    def start(self) -> None:
        """Start the process; Ready comes as an event."""
        atexit.register(self.stop)
        self._thread.start()

    def send(self, command: Command) -> None:
        """Leave a command for the engine; without an engine it is forgotten, as the engine's sessions are."""
        with self._lock:
            if self._run:
                self._run.send(command)

    def stop(self, timeout: float = 0.5) -> None:
        """End the process, by force if it has not gone within `timeout` seconds. It leaves nothing."""
        atexit.unregister(self.stop)
        self._stopping.set()
        with self._lock:
            run = self._run
        if run:
            run.end(timeout)
        if self._thread.is_alive():
            self._thread.join()

    def _keep_alive(self) -> None:
        # Signals meant for the server stay with its main thread, and the child inherits this mask, so that
        # Ctrl-C in a terminal does not break into its start. Starting multiprocessing's tracker ends by
        # unblocking both, so it comes first.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        pause = SHORTEST_PAUSE_SECONDS
        while not self._stopping.is_set():
            died, worked = self._live_once()
            if self._stopping.is_set():
                break
            self._deliver(died)
            if not died.again:
                break
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS) if worked is None else SHORTEST_PAUSE_SECONDS
            if worked is None or worked < WORKED_SECONDS:
                self._stopping.wait(pause)

    def _live_once(self) -> tuple[Died, float | None]:
        """Start one process and hand on its events until it is gone; how it ended, and the seconds for which it was
        ready, None for never."""
        try:
            run = _Run(self._context, (*self._arguments, self._world))
        except OSError as error:  # no memory or no files, for now
            return Died(f"the engine's process cannot be started: {error}", self._been_ready), None
        with self._lock:
            self._run = run
        if self._stopping.is_set():
            run.end(0)
        try:
            failed = run.read(self._handle, self._hang_seconds)
        finally:
            with self._lock:
                self._run = None
            run.end(1.0)
            run.close()
        self._been_ready |= run.ready_seconds is not None
        reason = failed.reason if failed else f"the engine's process ended {_how(run.process.exitcode)}"
        # What fails before it ever worked would fail again.
        return Died(reason, self._been_ready, failed.ours if failed else True, run.at_work), run.ready_seconds

    def _handle(self, event: Event) -> None:
        if isinstance(event, Ready):
            self._world = event.world
        if not self._stopping.is_set():
            self._deliver(event)


class _Run:
    """One life of the engine's process."""

    def __init__(self, context: Any, arguments: tuple[str, dict[str, Any], float, World | None]) -> None:
        """`arguments` are the engine's factory, its options, the lead, and what the engine before this one said."""
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, os.getpid(), *arguments), name="chunkcast-engine")
        try:
            self.process.start()
        except OSError:
            self._pipe.close()
            raise
        finally:
            theirs.close()
        self._outbox = Outbox()
        self._memory: mmap.mmap | None = None
        self._block_bytes = 0
        self._chunk_seconds = 0.0
        self._owed = _Owed()
        self._ready_at: float | None = None
        self._ending = threading.Lock()
        self._writer = threading.Thread(target=self._write, name="engine-commands", daemon=True)
        self._writer.start()

    @property
    def ready_seconds(self) -> float | None:
        """For how long the engine has been warm; None if it never was."""
        return None if self._ready_at is None else time.monotonic() - self._ready_at

    @property
    def at_work(self) -> tuple[str, ...]:
        """The sessions for which something is being done, or was when the process ended."""
        return Logbook(self._memory).read() if self._memory else ()

    def send(self, command: Command) -> None:
        """Leave a command for this process. Before it is ready it has no sessions: what comes is meant for the one
        before it, whose end no one has heard of yet."""
        if self._ready_at is None:
            return
        self._owed.note(command)
        self._outbox.put(command)

    def read(self, handle: Callable[[Event], None], hang_seconds: float) -> Failed | None:
        """Hand on events until the process is gone or hangs; what it said of its end, if it did."""
        pid = self.process.pid
        assert pid is not None, "the process was started"
        with contextlib.suppress(EOFError, OSError):
            while True:
                quick = max(hang_seconds, HANG_CHUNKS * self._chunk_seconds)
                pulse = Pulse(lambda: processor_seconds(pid), quick)
                silence = Silence(lambda: waited_seconds(pid), LOOK_SECONDS)
                while not self._pipe.poll(LOOK_SECONDS):
                    if reason := self._hangs(quick, pulse, silence):
                        self.process.kill()
                        return Failed(reason, ours=True)
                try:
                    event = self._pipe.recv()
                except pickle.UnpicklingError as error:
                    return Failed(f"the engine died while it spoke: {error}", ours=True)
                if isinstance(event, Failed):
                    return event
                handle(self._received(event))
        return None

    def _hangs(self, quick: float, pulse: Pulse, silence: Silence) -> str | None:
        """Why the engine is taken for dead, None while it is not. To be asked every LOOK_SECONDS while it is silent."""
        stands_still, silent = pulse.stands_still(), self._owed.seconds()
        counted = silence.counted(silent)
        patience = quick if self._owed.is_routine else max(PATIENCE_SECONDS, 2 * quick)
        patience += 2 * self._chunk_seconds * self._owed.replayed
        if counted > patience or silent > LONGEST_WAITS * patience:
            return f"the engine did not answer for {silent:.0f} seconds"
        if counted > quick and stands_still:
            return f"the engine did nothing for {silent:.0f} seconds"
        return None

    def _received(self, event: Any) -> Event:
        self._owed.heard(event)
        if isinstance(event, Ready):
            self._chunk_seconds = max(event.world.chunk_seconds, default=0.0)
            self._ready_at = time.monotonic()
            handle = reduction.recv_handle(self._pipe)
            self._memory, self._block_bytes = mapped(handle, event), event.block_bytes
            os.close(handle)
        if isinstance(event, Made):
            return self._copied(event)
        return event

    def _copied(self, made: Made) -> Chunk:
        """The chunk with frames of its own, so that its block goes back at once."""
        assert self._memory is not None, "a chunk came before the memory it lies in"
        offset, count = made.block * self._block_bytes, int(np.prod(made.shape))
        frames = np.frombuffer(self._memory, np.uint8, count, offset).reshape(made.shape).copy()
        self.send(Return(made.block))
        return dataclasses.replace(made.chunk, frames=frames)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while commands := self._outbox.take():
                for command in commands:
                    self._pipe.send(command)

    def end(self, timeout: float) -> None:
        """Close the pipe, which ends the process, and see that it has gone."""
        self._outbox.close()
        with self._ending:
            self._shut()
            self.process.join(timeout)
            if self.process.is_alive():
                self.process.kill()
                self.process.join()

    def close(self) -> None:
        """Give back the pipe; after end(), by the thread that reads."""
        self._writer.join()
        self._pipe.close()

    def _shut(self) -> None:
        # close() alone would leave a thread that waits in poll() or send() waiting; shutdown() wakes both.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._pipe.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)


SURE_CHUNKS = 3
"""So many chunks after a beginning or a new prompt the next one takes as long as any: the first may have begun before
it."""


class _Owed:
    """Since when the engine owes a chunk and says nothing. It owes none before the chunk must begin."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._plan: Plan | None = None
        self._needed = 0  # chunks whose latents the next one needs
        self._since = 0.0
        self._moving: dict[str, int] = {}
        self._unsure: dict[str, int] = {}

    def note(self, command: Command) -> None:
        """Count what a command allows; the wait begins when the first session is due."""
        with self._lock:
            if self._plan is None:
                return
            idle = self._plan.is_idle
            match command:
                case Open(session):
                    self._plan.open(session)
                    self._unsure[session] = SURE_CHUNKS
                case Steer(session, control) if control.prompt and session in self._plan:
                    self._unsure[session] = SURE_CHUNKS
                case Grant(session, frame, at, late):
                    self._plan.grant(session, frame, at, late)
                case Resume(session, data):
                    self._move(session, data.chunk, len(data.latents))
                case Rewind(session, chunk) if session in self._plan:
                    self._move(session, chunk, chunk)
                case Close(session):
                    self._forget(session)
            if idle:
                self._since = self._clock()

    def heard(self, event: Any) -> None:
        """Count what an event gives; the wait begins anew."""
        with self._lock:
            self._since = self._clock()
            match event:
                case Ready(world):
                    self._plan, self._needed = Plan(world, clock=self._clock), world.resume_chunks
                case Made(chunk, _, shape) if self._plan:
                    self._plan.made(chunk.session, shape[0])
                    if not chunk.more:
                        self._note_made(chunk.session)
                case Ended(session) | Refused(session) if self._plan:
                    self._forget(session)
                case Placed(session, chunk) if self._plan:
                    self._moving.pop(session, None)
                    self._plan.place(session, chunk)

    def _move(self, session: str, chunk: int, kept: int) -> None:
        """A session goes on with `chunk`: what it needs of its past is made again, all of it where too little of it is
        `kept`. Counting more would leave an engine that hangs over a long walk alone for hours."""
        assert self._plan is not None, "nothing is counted before the engine is ready"
        self._plan.open(session, chunk)
        needed = min(chunk, self._needed)
        self._moving[session], self._unsure[session] = needed if kept >= needed else chunk, SURE_CHUNKS

    def _note_made(self, session: str) -> None:
        if session in self._unsure:
            self._unsure[session] -= 1
            if not self._unsure[session]:
                del self._unsure[session]

    def _forget(self, session: str) -> None:
        assert self._plan is not None, "nothing is counted before the engine is ready"
        self._plan.close(session)
        self._moving.pop(session, None)
        self._unsure.pop(session, None)

    @property
    def is_routine(self) -> bool:
        """True when every session's next chunk is one like those that came before."""
        with self._lock:
            return not self._unsure

    @property
    def replayed(self) -> int:
        """How many chunks the engine may have to make once more for sessions that it takes back or resumes."""
        with self._lock:
            return sum(self._moving.values())

    def seconds(self) -> float:
        """How long the engine has been silent with a chunk due; 0 when it owes none."""
        with self._lock:
            step = self._plan.next() if self._plan else None
            return max(0.0, self._clock() - max(self._since, step.at)) if step else 0.0


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-exitcode).name}"
    return f"with code {exitcode}"
