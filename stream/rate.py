"""How many bits a second a viewer's link takes, from what its receiver reports. No sockets, no codecs.

Two voices are heard. A receiver that estimates the link itself says so (REMB). Every receiver reports the
packets that it missed, which speaks for the players that estimate nothing. The lower one counts.
"""

import math
import time
from collections.abc import Callable

START_BITRATE = 1_500_000
"""Before anything is known of a link: enough for a good picture, little enough not to flood a slow one."""

FEW, MANY = 0.02, 0.10
"""Below FEW lost packets in a report the rate rises, above MANY it falls; in between it stays."""

GROWTH = 1.08
MOST_ABOVE = 1.15
"""So much of its estimate a calm link may be sent."""

FALL = 0.75
"""An estimate below so much of what was sent tells of a link that has become narrow, whose own queue is full."""

CALM_REPORTS, MOST_REPORTS = 5, 80
"""So many reports in a row without losses make a link calm: more after each time that more was too much."""


class Rate:
    """The target between `floor` and `ceiling`, all in bits a second.

    `fell_at` is when the estimate last fell at once, by `clock` in seconds.
    """

    def __init__(self, floor: int, ceiling: int, clock: Callable[[], float] = time.monotonic) -> None:
        assert 0 < floor <= ceiling, f"no rate is between {floor} and {ceiling}"
        self.floor, self.ceiling, self._clock = floor, ceiling, clock
        self._by_loss = float(self._clamp(START_BITRATE))
        self._by_estimate, self._above = math.inf, 1.0
        self._good_reports = self._patience = CALM_REPORTS
        self.fell_at = -math.inf

    @property
    def target(self) -> int:
        """What to send now."""
        return self._clamp(min(self._by_loss, self._above * self._by_estimate))

    @property
    def is_calm(self) -> bool:
        """True when no packets were lost lately and the estimate did not fall."""
        return self._good_reports >= self._patience

    def hear_estimate(self, bitrate: int) -> None:
        """Take the receiver's own estimate of its link."""
        if bitrate < FALL * min(self.target, self._by_estimate) and self._by_estimate < math.inf:
            self.fell_at = self._clock()
        if bitrate < 0.95 * self._by_estimate < math.inf:
            self._back_off()
        self._by_estimate = bitrate

    def hear_loss(self, fraction: float) -> None:
        """Take one report, which comes about once a second: the share of packets that were lost, 0 to 1."""
        if fraction < FEW:
            self._by_loss *= GROWTH
            self._hear_good()
        else:
            self._by_loss = self.target * (1 - fraction / 2) if fraction > MANY else self._by_loss
            self._back_off()
        self._by_loss = float(self._clamp(self._by_loss))

    def hear_flood(self) -> None:
        """Take it that more packets were asked for again than the link has room for.

        Chromium reports a packet as lost only when it did not come in the end, and counts what was sent again
        in its estimate: on a link that is full of those it reports no loss and a rising estimate.
        """
        self.hear_loss(5 * MANY)

    def _hear_good(self) -> None:
        self._good_reports += 1
        if self.is_calm and self._by_estimate < math.inf:
            self._above = min(self._above * GROWTH, MOST_ABOVE)
        if self._good_reports >= 2 * self._patience:
            self._patience = CALM_REPORTS

    def _back_off(self) -> None:
        if self._above > 1:
            self._patience = min(2 * self._patience, MOST_REPORTS)
        self._good_reports, self._above = 0, 1.0

    def _clamp(self, bitrate: float) -> int:
        return round(max(self.floor, min(bitrate, self.ceiling)))
