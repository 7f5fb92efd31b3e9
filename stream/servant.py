"""The engine's process: it obeys, makes each chunk as late as it can, and puts its frames where the server reads."""

import contextlib
import ctypes
import dataclasses
import importlib
import logging
import math
import mmap
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np

from pipeline.chunk import NO_FRAMES, Chunk, Control, Ended, Pending, Session, SessionSpec, World, WorldFull
from stream.logbook import LOGBOOK_BYTES, Logbook, mapped
from stream.orders import (
    Close,
    Command,
    Failed,
    Grant,
    Made,
    Open,
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
    Word,
)
from stream.prompts import Prompts, prompts_of
from stream.schedule import Plan, Step, first_frame
from stream.tidy import Tidy

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
TIDY_SECONDS, TIDY_NEEDS_SECONDS = 20.0, 0.05
"""So often, and so long before the next step at the latest. Without it the engine's memory grows for as long as it
runs; benchmarks.soak looks at it."""
RESUME_WINDOWS = 1
"""How far before its window a session's memory is written again when it comes back: each window costs as much again,
and all other viewers wait for it."""


class Engine(Protocol):
    """What the process runs; pipeline.engine.Engine is one."""

    world: World

    def prewarm(self, progress: Callable[[int, int], None], before: World | None = None) -> World: ...
    def open(self, spec: SessionSpec) -> None: ...
    def control(self, session: str, control: Control) -> None: ...
    def close(self, session: str) -> None: ...
    def snapshot(self, session: str, chunks: int | None = None) -> Session: ...
    def resume(self, data: Session, name: str | None = None, windows: int | None = None) -> None: ...
    def rewind(self, session: str, chunk: int, windows: int | None = None) -> None: ...
    def begin(self, sessions: Sequence[str] | None = None) -> Iterable[Pending | Ended]: ...
    def wait(self) -> None: ...


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


class _Timed(NamedTuple):
    """The first frames of a session's chunk are on their way, `seconds` after its step began, with `together`."""

    session: str
    together: int
    seconds: float


class _Begun(NamedTuple):
    """A chunk that was begun in `step` at `at`."""

    pending: Pending
    step: Step
    at: float


def serve(
    pipe: Connection, parent: int, factory: str, options: dict[str, Any], lead: float, before: World | None
) -> None:
    """The process: build, warm, then step whenever a session is due, until the pipe closes.

    `lead` is Plan's; `before` is what the engine before this one said, None for the first.
    """
    _die_with(parent)
    # The server ends this process by the pipe; a Ctrl-C in its terminal is not meant for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Read when torch is imported: its threads sleep while they wait, and leave the cores to the encoders.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    prompts = Prompts()
    prompts.guard_logs()
    inbox: queue.SimpleQueue[Command | _Timed] = queue.SimpleQueue()
    blocks: queue.SimpleQueue[int] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, inbox, blocks), daemon=True).start()
    mouth = _Mouth(pipe)
    try:
        engine = _build(factory, options)
        # An engine that is started again may find a busy machine: no viewer who was let in is to wait for that, and
        # none for what is known to be measured again.
        world = engine.prewarm(lambda done, total: mouth.send(Progress(done, total)), before)
        _Servant(mouth, inbox, blocks, engine, Plan(world, lead), world, prompts).run()
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


def _listen(pipe: Connection, inbox: "queue.SimpleQueue[Command | _Timed]", blocks: "queue.SimpleQueue[int]") -> None:
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
    """The loop of the engine's process. Until a step must begin, it blocks on its inbox.

    What leaves goes through a thread of its own, which waits for the device and copies frames while the loop
    already begins the next chunk.
    """

    def __init__(
        self,
        mouth: _Mouth,
        inbox: "queue.SimpleQueue[Command | _Timed]",
        blocks: "queue.SimpleQueue[int]",
        engine: Engine,
        plan: Plan,
        world: World,
        prompts: Prompts,
    ) -> None:
        """`blocks` are those of the shared memory that are free; filled here, and as the server gives them back."""
        self._mouth, self._inbox, self._free, self._engine = mouth, inbox, blocks, engine
        self._world, self._plan, self._prompts = world, plan, prompts
        self._block_bytes = max(world.chunk_frames, world.first_chunk_frames) * world.height * world.width * 3
        self._leaving: queue.SimpleQueue[_Begun | Word] = queue.SimpleQueue()
        self._memory = self._share(world, blocks=world.slots + 1)
        self._logbook = Logbook(self._memory)
        self._tidy = Tidy(TIDY_SECONDS, TIDY_NEEDS_SECONDS)
        threading.Thread(target=self._ship, name="frames", daemon=True).start()

    def _share(self, world: World, blocks: int) -> mmap.mmap:
        """Make the shared memory and hand it over with the news that the engine is ready."""
        for block in range(blocks):
            self._free.put(block)
        handle = os.memfd_create("chunkcast-frames")
        os.ftruncate(handle, blocks * self._block_bytes + LOGBOOK_BYTES)
        ready = Ready(world, blocks, self._block_bytes)
        self._mouth.send_with_handle(ready, handle)
        memory = mapped(handle, ready)
        os.close(handle)
        return memory

    def run(self) -> None:
        """Obey what comes until a step must begin, then make it: what came up to that moment counts."""
        while True:
            self._obey_all()
            step = self._plan.next()
            wait = None if step is None else step.at - time.monotonic()
            if wait is None or wait > 0:
                self._obey_within(wait)
            else:
                self._make(step)
                self._rest()

    def _rest(self) -> None:
        """Between two steps: each leaves memory behind, which is in pieces that fit nothing."""
        step = self._plan.next()
        self._tidy.rest(math.inf if step is None else step.at - time.monotonic())

    def _make(self, step: Step) -> None:
        self._logbook.begin(*step.sessions)
        began, together = time.monotonic(), len(step.sessions)
        for begun in self._engine.begin(step.sessions):
            if isinstance(begun, Ended):
                self._plan.close(begun.session)
                self._leaving.put(begun)
            else:
                self._plan.made(begun.session, begun.frames)
                self._leaving.put(_Begun(begun, step, began))
        self._engine.wait()
        self._plan.was_busy(together, time.monotonic() - began)

    def _obey_within(self, seconds: float | None) -> None:
        """Obey one command if it comes in time; None waits for ever."""
        with contextlib.suppress(queue.Empty):
            self._obey(self._inbox.get(timeout=seconds))

    def _obey_all(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._obey(self._inbox.get_nowait())

    def _obey(self, command: Command | _Timed) -> None:
        match command:
            case _Timed(session, together, seconds):
                self._plan.was_ready(session, together, seconds)
            case Open(session) | Resume(session) | Rewind(session):
                self._logbook.begin(session)
                self._place_as_told(command)
                self._logbook.end(session)
            case Steer(session, control) if session in self._plan:
                self._prompts.note(session, control.prompt)
                self._engine.control(session, control)
            case Grant(session, frame, at, late):
                self._plan.grant(session, frame, at, late)
            case Close(session):
                self._engine.close(session)
                self._plan.close(session)
            case Snapshot(session, ticket, chunks):
                self._leaving.put(self._snapshot(session, ticket, chunks))

    def _place_as_told(self, command: Open | Resume | Rewind) -> None:
        match command:
            case Open(session, spec):
                self._open(session, spec)
            case Resume(session, data):
                self._resume(session, data)
            case Rewind(session, chunk) if session in self._plan:
                self._rewind(session, chunk)

    def _open(self, session: str, spec: SessionSpec) -> None:
        self._prompts.note(session, spec.prompt)
        try:
            self._engine.open(spec)
        except (ValueError, WorldFull) as error:
            self._leaving.put(Refused(session, str(error)))
        else:
            self._plan.open(session)

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
            self._plan.close(session)
            self._leaving.put(Ended(session, str(error)))
        else:
            self._place(session, chunk)

    def _place(self, session: str, chunk: int) -> None:
        self._plan.open(session, chunk)
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

    def _send(self, leaving: "_Begun | Word") -> None:
        if isinstance(leaving, _Begun):
            self._send_chunk(leaving)
            return
        if isinstance(leaving, Ended):
            self._logbook.end(leaving.session)
        self._mouth.send(leaving)

    def _send_chunk(self, begun: _Begun) -> None:
        """Its frames, as they come, and how long the first of them took."""
        session, is_first = begun.pending.session, True
        for part in begun.pending.arriving():
            is_last = isinstance(part, Ended) or not part.more
            if is_last:
                # Before the server hears of it: whatever comes next is not this session's fault.
                self._logbook.end(session)
            if isinstance(part, Ended):
                self._inbox.put(Close(session))
                self._mouth.send(part)
                return
            self._send_frames(dataclasses.replace(part, early=begun.step.early[session] if is_first else 0.0))
            if is_first:
                self._inbox.put(_Timed(session, len(begun.step.sessions), time.monotonic() - begun.at))
            is_first = False

    def _send_frames(self, part: Chunk) -> None:
        block, frames = self._free.get(), part.frames
        assert frames.nbytes <= self._block_bytes, f"a chunk of {frames.nbytes} bytes for {self._block_bytes}"
        room = np.frombuffer(self._memory, np.uint8, frames.size, block * self._block_bytes)
        room.reshape(frames.shape)[...] = frames
        self._mouth.send(Made(dataclasses.replace(part, frames=NO_FRAMES), block, frames.shape))
