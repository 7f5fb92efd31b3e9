"""An H.264 file in the making, of what is generated or watched. It knows no torch, so that who watches needs none.

N frames, H W their height and width.
"""

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

CONTAINERS = (".mp4", ".mkv", ".mov")
CONSTANT_RATE_FACTOR = "18"


def check_output(out: Path) -> None:
    """Raise ValueError unless `out` is a video file's name in a folder that is there."""
    if out.suffix.lower() not in CONTAINERS:
        raise ValueError(f"{out} is no video file's name; end it with one of {', '.join(CONTAINERS)}")
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} for the video")


class VideoFile:
    """Playable whenever it is closed. What the disk refuses is a ValueError, from the beginning on."""

    def __init__(self, path: Path, fps: int, height: int, width: int, time_base: Fraction | None = None):
        """`time_base` is that of the frames that add() gets, in seconds; without one they follow each other."""
        self._path = path
        with self._writing():
            self._container = av.open(str(path), "w")
            self._stream = self._container.add_stream("libx264", rate=Fraction(fps))
            self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
            if time_base is not None:
                self._stream.codec_context.time_base = time_base
            self._stream.options = {"crf": CONSTANT_RATE_FACTOR}
            self._container.start_encoding()

    def write(self, frames: np.ndarray) -> None:
        """frames: (N, H, W, 3) uint8 RGB."""
        for pixels in frames:
            self.add(av.VideoFrame.from_ndarray(pixels, format="rgb24"))

    def add(self, frame: av.VideoFrame) -> None:
        """A frame of the file's size, with its time in `time_base` where the file has one."""
        with self._writing():
            self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.suppress(ValueError) if kind else contextlib.nullcontext():
            self.close()  # what went wrong first is what is said

    def close(self) -> None:
        with self._writing():
            try:
                with contextlib.suppress(av.error.EOFError):
                    self._container.mux(self._stream.encode(None))
            finally:
                self._container.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, av.error.FFmpegError) as error:
            reason = error.strerror or str(error)
            raise ValueError(f"{self._path} cannot be written ({reason}): give it another name or more room") from None
