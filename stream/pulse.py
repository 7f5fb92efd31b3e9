"""Whether a process does anything: the processor time that it used lately, as Linux counts it."""

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

    def forget(self) -> None:
        """It was heard of: begin anew."""
        self._looks.clear()
