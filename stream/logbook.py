"""The memory that the server and the engine's process share: blocks for frames, and behind them the logbook."""

import mmap
import threading
from collections.abc import Sequence

from stream.orders import Ready

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


def mapped(handle: int, ready: Ready) -> mmap.mmap:
    """The shared memory behind a file, as `ready` describes it."""
    return mmap.mmap(handle, ready.blocks * ready.block_bytes + LOGBOOK_BYTES)
