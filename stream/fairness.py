"""What is done when others wait: turns of a bounded length, idle viewers, and how long the line will take."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

ASKED_SECONDS = 30.0
"""An idle viewer who was asked has so long to do something."""
WAIT_STEP_SECONDS = 5
"""Expected waits are told in these steps: they are no more exact, and each step is a message."""


@dataclass(frozen=True)
class Fairness:
    """Limits that hold only while others wait, in seconds; None for no limit. Raises ValueError unless positive."""

    turn: float | None = None
    idle: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("turn", self.turn), ("idle", self.idle)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}; it must be more than 0")

    def turn_is_over(self, live: float) -> bool:
        """For a session that has been live so many seconds."""
        return self.turn is not None and live >= self.turn

    def left(self, live: float) -> int | None:
        """Whole seconds that are left of a turn of which so many have passed; None where turns have no limit."""
        return None if self.turn is None else max(0, round(self.turn - live))

    def is_idle(self, since: float) -> bool:
        """For a viewer who steered nothing for so many seconds."""
        return self.idle is not None and since >= self.idle

    def wait(self, place: int, live: Sequence[float], mean_stay: float | None) -> int | None:
        """The wait to be expected at `place` in line, in whole seconds; None where one cannot tell.

        `live`: how many seconds each live session has been so. With a limit each slot is free when its turn is over,
        at the latest; without one, slots are free once in a mean stay each.
        """
        if not live:
            return None
        if self.turn is not None:
            rounds, nth = divmod(place - 1, len(live))
            left = sorted(max(0.0, self.turn - seconds) for seconds in live)
            wait = rounds * self.turn + left[nth]
        elif mean_stay is not None:
            wait = place * mean_stay / len(live)
        else:
            return None
        return WAIT_STEP_SECONDS * round(wait / WAIT_STEP_SECONDS)


class Stays:
    """How long the last viewers were live."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=32)

    def note(self, seconds: float) -> None:
        """A viewer was live so long."""
        self._seconds.append(seconds)

    @property
    def mean(self) -> float | None:
        """Seconds; None before the first has left."""
        return sum(self._seconds) / len(self._seconds) if self._seconds else None
