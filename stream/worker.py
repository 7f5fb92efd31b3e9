"""The engine in its own process: commands in, frames out through shared memory, restarted when it dies.

A `Worker` lives in the server's process and a `_Servant` in the engine's. Commands and events are small
and cross a pipe; frames cross in blocks of one piece of anonymous shared memory. It has no name, so there
is nothing to unlink and nothing is left behind, however either process ends, and Docker's small /dev/shm
does not bound it. Each process ends itself when it sees the other's end of the pipe closed.

Pacing is by credit: `grant(session, frame)` lets a session be made up to that video frame, and a session
without credit costs nothing. So a viewer who does not look is not drawn for, and no one's lead grows.
"""

import atexit
import contextlib
import ctypes
import dataclasses
import importlib
import logging
import mmap
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import reduction, resource_tracker
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np

from pipeline.chunk import NO_FRAMES, Chunk, Control, Ended, Pending, Session, SessionSpec, World, WorldFull
from stream.prompts import Prompts
from stream.pulse import Pulse, processor_seconds
from stream.session import prompts_of

log = logging.getLogger(__name__)

HANG_SECONDS, HANG_CHUNKS = 1.5, 5
"""An engine that owes a chunk of a session whose last one came without trouble, and says nothing for this long, or
for so many times its measured chunk if that is more, is taken for dead; also one that does nothing meanwhile."""
PATIENCE_SECONDS = 20.0
"""It has so long for what takes an unknown time, such as a new prompt, while it is at work. Loading has no limit, for a
large model may compile for many minutes."""
LOOK_SECONDS = 0.25

SHORTEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
"""Between two starts, but none after an engine that worked for a while."""
WORKED_SECONDS = 10.0
PR_SET_PDEATHSIG = 1
RESUME_WINDOWS = 1
"""How far before its window a session's memory is written again when it comes back: each window costs as much again,
and all other viewers wait for it."""


class Engine(Protocol):
    """What the process runs; pipeline.engine.Engine is one."""

    world: World

    def prewarm(self, progress: Callable[[int, int], None]) -> World: ...
    def open(self, spec: SessionSpec) -> None: ...
    def control(self, session: str, control: Control) -> None: ...
    def close(self, session: str) -> None: ...
    def snapshot(self, session: str, chunks: int | None = None) -> Session: ...
    def resume(self, data: Session, name: str | None = None, windows: int | None = None) -> None: ...
    def rewind(self, session: str, chunk: int, windows: int | None = None) -> None: ...
    def begin(self, sessions: Sequence[str] | None = None) -> list[Pending | Ended]: ...
    def wait(self) -> None: ...


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
    """A session may begin chunks whose first frame is below `frame`."""

    session: str
    frame: int


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
    """A chunk whose frames, of `shape`, lie in `block`; only inside this module."""

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


def first_frame(world: World, chunk: int) -> int:
    """The session's video frame with which `chunk` begins, both counted from 0."""
    return world.first_chunk_frames + (chunk - 1) * world.chunk_frames if chunk else 0


LOGBOOK_BYTES = 4096


class Logbook:
    """Whom the engine works for, at the end of the shared memory, so that it can be read after its death.

    Written by the engine's threads, read by the server.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory, self._start = memory, len(memory) - LOGBOOK_BYTES
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}

    def begin(self, *sessions: str) -> None:
        """Work for these sessions begins."""
        self._count(sessions, 1)

    def end(self, *sessions: str) -> None:
        """It is done, without harm."""
        self._count(sessions, -1)

    def _count(self, sessions: Sequence[str], by: int) -> None:
        with self._lock:
            for session in sessions:
                self._open[session] = self._open.get(session, 0) + by
                if self._open[session] <= 0:
                    del self._open[session]
            text = "\n".join(self._open).encode()[: LOGBOOK_BYTES - 1]
            self._memory[self._start : self._start + len(text) + 1] = text + b"\0"

    def read(self) -> tuple[str, ...]:
        """The sessions whose work had begun and not ended."""
        text = self._memory[self._start :].partition(b"\0")[0].decode(errors="replace")
        return tuple(text.split("\n")) if text else ()


Word = Ended | Refused | Snapped | Placed
"""What leaves the engine's process as it is; a chunk's frames go through the shared memory."""


class Credit:
    """Which sessions may make their next chunk now. Plain counting, no processes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._next: dict[str, int] = {}
        self._granted: dict[str, int] = {}

    def __contains__(self, session: str) -> bool:
        return session in self._next

    def open(self, session: str, chunk: int = 0) -> None:
        """Count a session from the first frame of `chunk`, new or once more, without credit."""
        self._next[session] = self._granted[session] = first_frame(self._world, chunk)

    def place(self, session: str, chunk: int) -> None:
        """Count on from the first frame of `chunk`, with the credit that there is."""
        if session in self._next:
            self._next[session] = first_frame(self._world, chunk)

    def close(self, session: str) -> None:
        """Forget a session; an unknown one is no error."""
        self._next.pop(session, None)
        self._granted.pop(session, None)

    def grant(self, session: str, frame: int) -> None:
        """Raise the credit of a session; it never sinks."""
        if session in self._granted:
            self._granted[session] = max(self._granted[session], frame)

    def made(self, session: str, frames: int) -> None:
        """Count frames that were made; the session goes behind others as much in need as it is."""
        if session in self._next:
            self._next[session] = self._next.pop(session) + frames

    def due(self) -> list[str]:
        """The sessions of the next step, least lead first: one alone in turns, else all that need it.

        Who is within half a chunk of its credit comes along: of two sessions one is always that near when
        the other is due, so that they stay in step at the price of one.
        """
        owed = {session: self._granted[session] - first for session, first in self._next.items()}
        order = sorted(owed, key=lambda session: -owed[session])
        if not order or owed[order[0]] <= 0:
            return []
        if self._world.schedule == "turns":
            return order[:1]
        return [session for session in order if owed[session] > -self._world.chunk_frames / 2]


class Outbox:
    """Commands that wait for the pipe. Bounded: a newer command of a session replaces or joins the one that waits."""

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


class Worker:
    """The engine's process as the server sees it. Any thread may call; no call waits for the engine.

    `factory` is "module:function" and is imported in the process only; it is called with `options` and
    returns an `Engine`. `deliver` gets each event, in a thread of the worker's.
    """

    def __init__(
        self,
        factory: str,
        options: Mapping[str, Any],
        deliver: Callable[[Event], None],
        hang_seconds: float = HANG_SECONDS,
    ) -> None:
        self._factory, self._options, self._deliver, self._hang_seconds = factory, dict(options), deliver, hang_seconds
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
        run = _Run(self._context, self._factory, self._options)
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
        if not self._stopping.is_set():
            self._deliver(event)


class _Run:
    """One life of the engine's process."""

    def __init__(self, context: Any, factory: str, options: dict[str, Any]) -> None:
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, factory, options, os.getpid()), name="chunkcast-engine"
        )
        self.process.start()
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
        """Since when the engine has been warm; None if it never was."""
        return None if self._ready_at is None else time.monotonic() - self._ready_at

    @property
    def at_work(self) -> tuple[str, ...]:
        """The sessions for which something is being done, or was when the process ended."""
        return Logbook(self._memory).read() if self._memory else ()

    def send(self, command: Command) -> None:
        """Leave a command for this process."""
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
                while not self._pipe.poll(LOOK_SECONDS):
                    if reason := self._hangs(quick, pulse):
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

    def _hangs(self, quick: float, pulse: Pulse) -> str | None:
        """Why the engine is taken for dead, None while it is not. To be asked every LOOK_SECONDS while it is silent."""
        stands_still, silent = pulse.stands_still(), self._owed.seconds()
        patience = quick if self._owed.is_routine else max(PATIENCE_SECONDS, 2 * quick)
        if silent > patience + 2 * self._chunk_seconds * self._owed.replayed:
            return f"the engine did not answer for {silent:.0f} seconds"
        if silent > quick and stands_still:
            return f"the engine did nothing for {silent:.0f} seconds"
        return None

    def _received(self, event: Any) -> Event:
        self._owed.heard(event)
        if isinstance(event, Ready):
            self._chunk_seconds = max(event.world.chunk_seconds, default=0.0)
            self._ready_at = time.monotonic()
            handle = reduction.recv_handle(self._pipe)
            self._memory, self._block_bytes = _mapped(handle, event), event.block_bytes
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
    """Since when the engine owes a chunk and says nothing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._credit: Credit | None = None
        self._since = 0.0
        self._moving: dict[str, int] = {}
        self._unsure: dict[str, int] = {}

    def note(self, command: Command) -> None:
        """Count what a command allows; the wait begins when the first session is due."""
        with self._lock:
            if self._credit is None:
                return
            idle = not self._credit.due()
            match command:
                case Open(session):
                    self._credit.open(session)
                    self._unsure[session] = SURE_CHUNKS
                case Steer(session, control) if control.prompt and session in self._credit:
                    self._unsure[session] = SURE_CHUNKS
                case Grant(session, frame):
                    self._credit.grant(session, frame)
                case Resume(session, data):
                    self._move(session, data.chunk)
                case Rewind(session, chunk) if session in self._credit:
                    self._move(session, chunk)
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
                    self._credit = Credit(world)
                case Made(chunk, _, shape) if self._credit:
                    self._credit.made(chunk.session, shape[0])
                    self._note_made(chunk.session)
                case Ended(session) | Refused(session) if self._credit:
                    self._forget(session)
                case Placed(session, chunk) if self._credit:
                    self._moving.pop(session, None)
                    self._credit.place(session, chunk)

    def _move(self, session: str, chunk: int) -> None:
        assert self._credit is not None, "nothing is counted before the engine is ready"
        self._credit.open(session, chunk)
        self._moving[session], self._unsure[session] = chunk, SURE_CHUNKS

    def _note_made(self, session: str) -> None:
        if session in self._unsure:
            self._unsure[session] -= 1
            if not self._unsure[session]:
                del self._unsure[session]

    def _forget(self, session: str) -> None:
        assert self._credit is not None, "nothing is counted before the engine is ready"
        self._credit.close(session)
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
            return self._clock() - self._since if self._credit and self._credit.due() else 0.0


def _mapped(handle: int, ready: Ready) -> mmap.mmap:
    return mmap.mmap(handle, ready.blocks * ready.block_bytes + LOGBOOK_BYTES)


def _how(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-exitcode).name}"
    return f"with code {exitcode}"


# The engine's process.


class _Mouth:
    """The end of the pipe to speak into: one thread at a time, or the server would understand none of them."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()

    def send(self, said: Any) -> None:
        """Say something. Raises OSError when no one listens any more."""
        with self._lock:
            self._pipe.send(said)

    def send_with_handle(self, said: Any, handle: int) -> None:
        """Say something, and hand over a file."""
        with self._lock:
            self._pipe.send(said)
            reduction.send_handle(self._pipe, handle, os.getppid())


def _die_with(parent: int) -> None:
    """Let the kernel end this process with its parent, even while it hangs and sees no pipe close. Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _serve(pipe: Connection, factory: str, options: dict[str, Any], parent: int) -> None:
    """The process: build, warm, then step whenever a session is due, until the pipe closes."""
    _die_with(parent)
    # The server ends this process by the pipe; a Ctrl-C in its terminal is not meant for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Read when torch is imported: its threads sleep while they wait, and leave the cores to the encoders.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    prompts = Prompts()
    prompts.guard_logs()
    inbox: queue.SimpleQueue[Command] = queue.SimpleQueue()
    blocks: queue.SimpleQueue[int] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, inbox, blocks), daemon=True).start()
    mouth = _Mouth(pipe)
    try:
        engine = _build(factory, options)
        world = engine.prewarm(lambda done, total: mouth.send(Progress(done, total)))
        _Servant(mouth, inbox, blocks, engine, world, prompts).run()
    except (BrokenPipeError, ConnectionResetError):
        os._exit(0)
    except Exception as error:  # whatever a model can raise: the server must hear of it in words
        _confess(mouth, error, prompts)


def _build(factory: str, options: dict[str, Any]) -> Engine:
    module, _, name = factory.partition(":")
    return getattr(importlib.import_module(module), name)(**options)


def _confess(mouth: _Mouth, error: Exception, prompts: Prompts) -> NoReturn:
    """Say why, and end at once: what is left of an engine that broke may take its time."""
    users = isinstance(error, ValueError | FileNotFoundError)
    if not users:
        log.exception("the engine broke")
    reason = str(error) if users else f"the engine broke: {type(error).__name__}: {error}"
    with contextlib.suppress(OSError):
        mouth.send(Failed(prompts.masked(reason), not users))
    os._exit(1)


def _listen(pipe: Connection, inbox: "queue.SimpleQueue[Command]", blocks: "queue.SimpleQueue[int]") -> None:
    """Take commands off the pipe at once; the server's end closed means that this process has no one left."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            command = pipe.recv()
            if isinstance(command, Return):
                blocks.put(command.block)
            else:
                inbox.put(command)
    os._exit(0)


class _Servant:
    """The loop of the engine's process. Idle, it blocks on its inbox.

    What leaves goes through a thread of its own, which waits for the device and copies frames while the loop
    already begins the next chunk.
    """

    def __init__(
        self,
        mouth: _Mouth,
        inbox: "queue.SimpleQueue[Command]",
        blocks: "queue.SimpleQueue[int]",
        engine: Engine,
        world: World,
        prompts: Prompts,
    ) -> None:
        """`blocks` are those of the shared memory that are free; filled here, and as the server gives them back."""
        self._mouth, self._inbox, self._free, self._engine = mouth, inbox, blocks, engine
        self._world, self._credit, self._prompts = world, Credit(world), prompts
        self._block_bytes = max(world.chunk_frames, world.first_chunk_frames) * world.height * world.width * 3
        self._leaving: queue.SimpleQueue[Pending | Word] = queue.SimpleQueue()
        self._memory = self._share(world, blocks=world.slots + 1)
        self._logbook = Logbook(self._memory)
        threading.Thread(target=self._ship, name="frames", daemon=True).start()

    def _share(self, world: World, blocks: int) -> mmap.mmap:
        """Make the shared memory and hand it over with the news that the engine is ready."""
        for block in range(blocks):
            self._free.put(block)
        handle = os.memfd_create("chunkcast-frames")
        os.ftruncate(handle, blocks * self._block_bytes + LOGBOOK_BYTES)
        ready = Ready(world, blocks, self._block_bytes)
        self._mouth.send_with_handle(ready, handle)
        memory = _mapped(handle, ready)
        os.close(handle)
        return memory

    def run(self) -> None:
        """Obey what has come, begin what is due; without either, wait."""
        while True:
            self._obey_all(wait=not self._credit.due())
            if due := self._credit.due():
                self._logbook.begin(*due)
                for begun in self._engine.begin(due):
                    self._count(begun)
                    self._leaving.put(begun)
                self._engine.wait()

    def _count(self, begun: Pending | Ended) -> None:
        if isinstance(begun, Ended):
            self._credit.close(begun.session)
        else:
            self._credit.made(begun.session, begun.frames)

    def _obey_all(self, wait: bool) -> None:
        if wait:
            self._obey(self._inbox.get())
        with contextlib.suppress(queue.Empty):
            while True:
                self._obey(self._inbox.get_nowait())

    def _obey(self, command: Command) -> None:
        match command:
            case Open(session) | Resume(session) | Rewind(session):
                self._logbook.begin(session)
                self._place_as_told(command)
                self._logbook.end(session)
            case Steer(session, control) if session in self._credit:
                self._prompts.note(session, control.prompt)
                self._engine.control(session, control)
            case Grant(session, frame):
                self._credit.grant(session, frame)
            case Close(session):
                self._engine.close(session)
                self._credit.close(session)
            case Snapshot(session, ticket, chunks):
                self._leaving.put(self._snapshot(session, ticket, chunks))

    def _place_as_told(self, command: Open | Resume | Rewind) -> None:
        match command:
            case Open(session, spec):
                self._open(session, spec)
            case Resume(session, data):
                self._resume(session, data)
            case Rewind(session, chunk) if session in self._credit:
                self._rewind(session, chunk)

    def _open(self, session: str, spec: SessionSpec) -> None:
        self._prompts.note(session, spec.prompt)
        try:
            self._engine.open(spec)
        except (ValueError, WorldFull) as error:
            self._leaving.put(Refused(session, str(error)))
        else:
            self._credit.open(session)

    def _snapshot(self, session: str, ticket: int, chunks: int | None) -> Snapped:
        try:
            return Snapped(session, ticket, self._engine.snapshot(session, chunks))
        except ValueError as error:
            return Snapped(session, ticket, None, str(error))

    def _resume(self, session: str, data: Session) -> None:
        for prompt in prompts_of(data):
            self._prompts.note(session, prompt)
        try:
            self._engine.resume(data, session, RESUME_WINDOWS)
        except (ValueError, WorldFull) as error:
            self._leaving.put(Refused(session, str(error)))
        else:
            self._place(session, data.chunk)

    def _rewind(self, session: str, chunk: int) -> None:
        try:
            self._engine.rewind(session, chunk, RESUME_WINDOWS)
        except ValueError as error:
            self._engine.close(session)
            self._credit.close(session)
            self._leaving.put(Ended(session, str(error)))
        else:
            self._place(session, chunk)

    def _place(self, session: str, chunk: int) -> None:
        self._credit.open(session, chunk)
        self._leaving.put(Placed(session, chunk, first_frame(self._world, chunk)))

    # The thread of what leaves.

    def _ship(self) -> None:
        try:
            while True:
                self._send(self._leaving.get())
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)
        except Exception as error:  # whatever a device can raise: the server must hear of it in words
            _confess(self._mouth, error, self._prompts)

    def _send(self, leaving: "Pending | Word") -> None:
        result = None if isinstance(leaving, Word) else leaving.result()
        if not isinstance(leaving, Refused | Snapped | Placed):
            # Before the server hears of it: whatever comes next is not this session's fault.
            self._logbook.end(leaving.session)
        if result is None:
            self._mouth.send(leaving)
            return
        if isinstance(result, Ended):
            self._inbox.put(Close(result.session))
            self._mouth.send(result)
            return
        block, frames = self._free.get(), result.frames
        assert frames.nbytes <= self._block_bytes, f"a chunk of {frames.nbytes} bytes for {self._block_bytes}"
        room = np.frombuffer(self._memory, np.uint8, frames.size, block * self._block_bytes)
        room.reshape(frames.shape)[...] = frames
        self._mouth.send(Made(dataclasses.replace(result, frames=NO_FRAMES), block, frames.shape))
