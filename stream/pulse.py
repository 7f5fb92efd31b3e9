"""Whether a process does anything, and whether it may: its processor time and its waiting for it, as Linux counts."""

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

IDLE_SHARE = 0.05
"""Of one processor: a process that uses less does nothing, though threads of its libraries may turn now and then."""


def processor_seconds(pid: int) -> float | None:
    """What a process used since it began; None where that cannot be known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def waited_seconds(pid: int) -> float:
    """How long those of its threads that live have waited for a processor, in all; 0 where that cannot be known."""
    waited = 0
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError, IndexError):  # a thread may end meanwhile
                waited += int((thread / "schedstat").read_text().split()[1])
    return waited / 1e9


class Pulse:
    """Looks at what a process uses over the last `span` seconds. `used` and `clock` are in seconds."""

    def __init__(
        self, used: Callable[[], float | None], span: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._used, self._span, self._clock = used, span, clock
        self._looks: deque[tuple[float, float]] = deque()

    def stands_still(self) -> bool:
        """True when it was looked at for `span` seconds and did nothing. To be asked some times in each span."""
        used, now = self._used(), self._clock()
        if used is None:
            return False
        while len(self._looks) > 1 and now - self._looks[1][0] >= self._span:
            self._looks.popleft()
        self._looks.append((now, used))
        since, before = self._looks[0]
        return now - since >= self._span and used - before < IDLE_SHARE * (now - since)


class Silence:
    """How long a process has said nothing though it could: what a busy machine kept it from does not count.

    To be asked `every` so many seconds. It could not speak while its threads waited for a processor (`waited` is how
    long they have, in all), nor where the question itself came late, for then the whole machine stood still. All are
    in seconds.
    """

    def __init__(self, waited: Callable[[], float], every: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._waited, self._every, self._clock = waited, every, clock
        self._at, self._lost = clock(), 0.0
        self._before: float | None = None  # it is made for every silence, and most are short

    def counted(self, silent: float) -> float:
        """What counts of `silent` seconds until now."""
        now, waited = self._clock(), self._waited()
        before = waited if self._before is None else self._before
        passed, kept = now - self._at, max(0.0, waited - before)
        late = max(0.0, passed - 2 * self._every)  # a busy server of ours may be late by a little
        self._lost = min(self._lost + min(late + kept, passed), silent)
        self._at, self._before = now, waited
        return silent - self._lost
