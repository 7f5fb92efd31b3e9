"""Parked sessions on disk: bounded in number and bytes, oldest dropped first, deleted after a day.

A file is named by the hash of its viewer's token: who reads the folder cannot come back as that viewer. Writing and
deleting happen on a thread of the archive's own, in order; what is still to be written is read from memory.
"""

import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.chunk import Session

log = logging.getLogger(__name__)

MAX_SESSIONS = 200
MAX_BYTES = 2 * 2**30
MAX_SECONDS = 24 * 3600.0
_OURS = re.compile(r"[0-9a-f]{64}\.session|\.[0-9a-f]{64}\.session\..*")


class Archive:
    """A folder of parked sessions. Any thread may call. `clock` is in seconds since the epoch, as file times are."""

    def __init__(
        self,
        folder: Path,
        max_sessions: int = MAX_SESSIONS,
        max_bytes: int = MAX_BYTES,
        max_seconds: float = MAX_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises OSError when the folder cannot be made or written."""
        self._folder, self._clock = Path(folder), clock
        self._max_sessions, self._max_bytes, self._max_seconds = max_sessions, max_bytes, max_seconds
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._pending: dict[str, Session | None] = {}
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, "archive")
        self.count = self.bytes = 0
        for unfinished in self._folder.glob(".*.session.*"):
            if _OURS.fullmatch(unfinished.name):
                unfinished.unlink(missing_ok=True)
        self._clear()

    def put(self, token: str, data: Session) -> None:
        """Keep a session for the viewer with this token, in place of an earlier one. Does not wait."""
        self._change(token, data)

    def remove(self, token: str) -> None:
        """Delete a session; one that is not there is no error. Does not wait."""
        self._change(token, None)

    def get(self, token: str) -> Session | None:
        """The session of this token; None when there is none, or it is too old or damaged. Reads the disk."""
        name = _name(token)
        with self._lock:
            if name in self._pending:
                return self._pending[name]
        path = self._folder / name
        try:
            if self._clock() - path.stat().st_mtime > self._max_seconds:
                return None
            return Session.load(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("a parked session cannot be read: %s", error)
            return None

    def sweep(self) -> None:
        """Delete what is too old; to be called every minute or so. Does not wait."""
        self._writer.submit(self._clear)

    def flush(self) -> None:
        """Wait until all is on disk."""
        self._writer.submit(lambda: None).result()

    def close(self) -> None:
        """Write what is still to be written, and end."""
        self._writer.shutdown()

    # On the archive's thread.

    def _change(self, token: str, data: Session | None) -> None:
        name = _name(token)
        with self._lock:
            self._pending[name] = data
        self._writer.submit(self._store, name)

    def _store(self, name: str) -> None:
        with self._lock:
            if name not in self._pending:
                return  # a newer one was written in its place
            data = self._pending[name]
        try:
            if data is None:
                (self._folder / name).unlink(missing_ok=True)
            else:
                data.save(self._folder / name)
        except OSError as error:
            log.error("a session cannot be kept: %s", error)
        with self._lock:
            if self._pending.get(name) is data:
                self._pending.pop(name, None)
        self._clear()

    def _clear(self) -> None:
        """Delete what is beyond the bounds, oldest first, and count the rest."""
        kept, total, now = 0, 0, self._clock()
        for changed, size, path in sorted(self._files(), reverse=True):
            kept, total = kept + 1, total + size
            if kept > self._max_sessions or total > self._max_bytes or now - changed > self._max_seconds:
                path.unlink(missing_ok=True)
                kept, total = kept - 1, total - size
        self.count, self.bytes = kept, total

    def _files(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self._folder.glob("*.session"):
            if _OURS.fullmatch(path.name) and path.is_file():
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found


def _name(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest() + ".session"
