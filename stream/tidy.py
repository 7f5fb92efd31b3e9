"""Memory that is free goes back to the system; the C library would keep it, and in time all that ever was in use."""

import contextlib
import ctypes
import time
from collections.abc import Callable


def trim() -> None:
    """Give it back now. Takes milliseconds, and what is used again costs a little more once."""
    with contextlib.suppress(OSError, AttributeError):  # of glibc alone
        ctypes.CDLL(None).malloc_trim(0)


class Tidy:
    """Trims every `every` seconds, when there is time for it; after twice as long also when there is none."""

    def __init__(self, every: float, needs: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`needs` is how many seconds it may take."""
        self._every, self._needs, self._clock = every, needs, clock
        self._at = clock()

    def rest(self, seconds: float, work: Callable[[], None] = trim) -> None:
        """For so many seconds nothing else is to be done."""
        since = self._clock() - self._at
        if since >= 2 * self._every or (since >= self._every and seconds >= self._needs):
            work()
            self._at = self._clock()
