"""What strangers send as pictures becomes a picture of the world's size, in a process of its own, one at a time.

The decoders of picture formats are the part of a service that broken bytes get the furthest in: here they take nothing
along but the one answer. The engine never sees the bytes that came, and no chunk waits while they are decoded.
"""

import asyncio
import contextlib
import hashlib
import sys
from pathlib import Path
from typing import IO

FIT_SECONDS = 20.0
PATIENCE_SECONDS = 30.0
"""So long a picture waits for those before it."""
_BROKE = "the image could not be read: it broke the decoder or took too long; send another one"
_ROOT = Path(__file__).resolve().parent.parent


class Busy(Exception):
    """Too many pictures wait; the text says so."""


class Fitter:
    """Fits pictures, one at a time."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def fit(self, file: IO[bytes], height: int, width: int) -> bytes:
        """The picture in an open file as a PNG of that size.

        ValueError, with a sentence, for what is no picture or too large a one; Busy.
        """
        try:
            await asyncio.wait_for(self._turn.acquire(), PATIENCE_SECONDS)
        except TimeoutError:
            raise Busy("many pictures wait: try again in a moment") from None
        try:
            return await _fit(file, height, width)
        finally:
            self._turn.release()


async def _fit(file: IO[bytes], height: int, width: int) -> bytes:
    command = (sys.executable, "-m", "pipeline.picture", str(height), str(width))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=file, stdout=pipe, stderr=pipe, cwd=_ROOT)
    try:
        made, said = await asyncio.wait_for(process.communicate(), FIT_SECONDS)
    except TimeoutError:
        raise ValueError(_BROKE) from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    if process.returncode == 2:
        raise ValueError(said.decode(errors="replace").strip())
    if process.returncode != 0:
        raise ValueError(_BROKE)
    return made


def name_of(picture: bytes) -> str:
    """What a message calls a picture: it is that of its contents."""
    return hashlib.sha256(picture).hexdigest()[:16]
