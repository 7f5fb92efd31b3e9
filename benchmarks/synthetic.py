"""A server whose frames cost next to nothing, to see what the rest of it costs: a texture that slides, 256x256.

`python -m benchmarks.synthetic --slots 8` serves it on a free port of this machine.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

import stream.hub
from pipeline.chunk import Chunk, Control, Ended, Session, SessionSpec, World, WorldFull
from stream.audience import SPECTATORS
from stream.schedule import LEAD_SECONDS
from stream.serve import listening, serve

SIZE, FPS, CHUNK_FRAMES = 256, 16, 4
SLIDING, TURNING = 2, 8
"""Pixels a frame: by itself, and while a key for turning is held."""
NO_LATENTS = np.empty((0, 1, 1, 1, 1), np.float32)


@dataclass
class Run:
    """One session: what it was opened with, and how many chunks it made."""

    spec: SessionSpec
    chunk: int = 0
    control: Control = field(default_factory=Control)
    slid: int = 0


@dataclass(frozen=True)
class Done:
    """A chunk that nobody has to wait for."""

    chunk: Chunk

    @property
    def session(self) -> str:
        return self.chunk.session

    @property
    def frames(self) -> int:
        return len(self.chunk.frames)

    def arriving(self) -> Iterator[Chunk]:
        yield self.chunk


class Engine:
    """As stream.worker.Engine; which way the texture slides depends on the keys for turning, and on nothing else."""

    def __init__(self, slots: int) -> None:
        self.world = World("synthetic", SIZE, SIZE, FPS, slots, CHUNK_FRAMES, CHUNK_FRAMES, (0.01,), "batch")
        texture = np.random.default_rng(1).integers(60, 200, (SIZE // 4, SIZE // 2, 3), np.uint8)
        self._texture = texture.repeat(4, 0).repeat(4, 1)
        self._runs: dict[str, Run] = {}

    def prewarm(self, progress, before: World | None = None) -> World:
        return self.world

    def open(self, spec: SessionSpec) -> None:
        if len(self._runs) == self.world.slots:
            raise WorldFull
        self._runs[spec.session] = Run(spec)

    def control(self, session: str, control: Control) -> None:
        self._runs[session].control = self._runs[session].control.then(control)

    def close(self, session: str) -> None:
        self._runs.pop(session, None)

    def snapshot(self, session: str, chunks: int | None = None) -> Session:
        run = self._runs[session]
        made, held = run.chunk, replace(run.control, prompt=None)
        return Session("synthetic", run.spec, made, made * CHUNK_FRAMES, (), NO_LATENTS, NO_LATENTS, held)

    def resume(self, data: Session, name: str | None = None, windows: int | None = None) -> None:
        spec = replace(data.spec, session=name or data.spec.session)
        self.open(spec)
        self._runs[spec.session] = Run(spec, data.chunk, data.held)

    def rewind(self, session: str, chunk: int, windows: int | None = None) -> None:
        self._runs[session].chunk = chunk

    def begin(self, sessions=None) -> list[Done | Ended]:
        return [Done(self._make(session)) for session in (sessions or list(self._runs))]

    def wait(self) -> None:
        """Nothing is under way."""

    def _make(self, session: str) -> Chunk:
        run = self._runs[session]
        first, index = run.chunk * CHUNK_FRAMES, run.chunk
        run.chunk += 1
        speed, begun = TURNING * (("l" in run.control.keys) - ("j" in run.control.keys)) or SLIDING, time.monotonic()
        frames = np.stack([self.draw(run.slid + speed * offset) for offset in range(1, CHUNK_FRAMES + 1)])
        run.slid += speed * CHUNK_FRAMES
        seconds = {"denoise": 0.0, "total": 0.01}
        return Chunk(session, index, first, frames, run.control.sequence, "a texture", seconds=seconds, begun=begun)

    def draw(self, slid: int) -> np.ndarray:
        """The texture after it slid so many pixels to the left, (256, 256, 3) uint8."""
        return self._texture[:, slid % SIZE :][:, :SIZE]


def build(**options) -> Engine:
    """The factory that a Worker is given."""
    return Engine(**options)


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.synthetic", description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=2, help="live sessions (default: 2)")
    parser.add_argument(
        "--line", type=int, default=stream.hub.MAX_WAITING, help="sessions in line (default: the limit)"
    )
    parser.add_argument("--spectators", type=int, default=SPECTATORS, help="of one session (default: the limit)")
    parser.add_argument("--sessions", type=Path, metavar="DIR", help="keep parked worlds here")
    parser.add_argument("--mark", action="store_true", help="as chunkcast serve's")
    parser.add_argument("--lead", type=float, default=1000 * LEAD_SECONDS, metavar="MS", help="as of chunkcast serve")
    options = parser.parse_args(argv)
    stream.hub.MAX_WAITING = options.line
    with listening("127.0.0.1", 0) as listener:
        kept = {"sessions": options.sessions, "spectators": options.spectators}
        settings = {**kept, "lead": options.lead / 1000, "marks": options.mark}
        return serve(listener, "benchmarks.synthetic:build", {"slots": options.slots}, **settings)


if __name__ == "__main__":
    sys.exit(main())
