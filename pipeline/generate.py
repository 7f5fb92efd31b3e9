"""One session from the command line into a video file."""

import contextlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipeline.chunk import Chunk, Ended, SessionSpec
from pipeline.engine import Engine

CONTAINERS = (".mp4", ".mkv", ".mov")
CONSTANT_RATE_FACTOR = "18"


def generate(
    engine: Engine, spec: SessionSpec, frames: int, out: Path, progress: Callable[[Chunk], None] = lambda chunk: None
) -> int:
    """Write the session's first `frames` video frames to `out` and return how many there are.

    Frames reach the file as their chunk is made; KeyboardInterrupt ends the session early and leaves a
    playable file. Raises ValueError for a file name, a number of frames or a session that cannot be.
    """
    check_output(out)
    if frames < 1:
        raise ValueError(f"{frames} frames were asked for; it must be at least 1")
    engine.open(spec)
    written = 0
    try:
        size = engine.preset.height, engine.preset.width
        with VideoFile(out, engine.preset.fps, *size) as video, contextlib.suppress(KeyboardInterrupt):
            for chunk in _chunks(engine, spec.session, frames):
                video.write(chunk.frames[: frames - written])
                written = min(frames, written + len(chunk.frames))
                progress(chunk)
    finally:
        engine.close(spec.session)
    return written


def check_output(out: Path) -> None:
    """Raise ValueError unless `out` is a video file's name in a folder that is there."""
    if out.suffix.lower() not in CONTAINERS:
        raise ValueError(f"{out} is no video file's name; end it with one of {', '.join(CONTAINERS)}")
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} for the video")


def _chunks(engine: Engine, session: str, frames: int) -> Iterator[Chunk]:
    """The session's chunks until `frames` video frames are there. Raises ValueError when it ends before."""
    made = 0
    while made < frames:
        (result,) = engine.step([session])
        if isinstance(result, Ended):
            raise ValueError(result.reason)
        made += len(result.frames)
        yield result


class VideoFile:
    """An H.264 file that is playable whenever it is closed."""

    def __init__(self, path: Path, fps: int, height: int, width: int):
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps))
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = "yuv420p"
        self._stream.options = {"crf": CONSTANT_RATE_FACTOR}

    def write(self, frames: np.ndarray) -> None:
        """frames: (N, H, W, 3) uint8 RGB."""
        for pixels in frames:
            self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(av.error.EOFError):
            self._container.mux(self._stream.encode(None))
        self._container.close()
