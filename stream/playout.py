"""How long a receiver may hold a frame before it shows it: the playout-delay extension of RTP headers.

Source: http://www.webrtc.org/experiments/rtp-hdrext/playout-delay. Two numbers of 12 bits, the least and the
most delay in steps of 10 ms, travel with each packet. At 0-0 a frame is shown when it is decoded, which is
quickest and shows every hiccup of the link; so that is sent only while the link has none.
"""

import re
import time
from collections.abc import Callable
from typing import NamedTuple

from aiortc import RTCRtpReceiver, RTCRtpSender, RTCRtpTransceiver
from aiortc.rtcrtpparameters import RTCRtpHeaderExtensionParameters
from aiortc.rtp import HeaderExtensions, HeaderExtensionsMap, pack_header_extensions, unpack_header_extensions
from aiortc.sdp import MediaDescription

URI = "http://www.webrtc.org/experiments/rtp-hdrext/playout-delay"
STEP_MS = 10
LONGEST_MS = 4095 * STEP_MS
UNEVEN_SECONDS = 0.015
"""A receiver that reports more jitter than this gets time to even it out."""

CALM_SECONDS = 10.0
"""So long a link must be even before frames are shown at once again."""


class Bounds(NamedTuple):
    """The least and the most delay, in milliseconds. On an even link the receiver is held to the least;
    on an uneven one it may take what it needs, up to the most."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> "Bounds | None":
        """The bounds in "0-200", None for "off". ValueError says what is wrong."""
        if text == "off":
            return None
        match = re.fullmatch(r"(\d{1,6})-(\d{1,6})", text, re.ASCII)
        if not match or not (least := int(match[1])) <= (most := int(match[2])) <= LONGEST_MS:
            raise ValueError(
                f"the playout delay is {text!r}; it must be off, or milliseconds like 0-200, at most {LONGEST_MS}"
            )
        return cls(least, most)


class PlayoutDelay:
    """What is asked of one receiver, from the bounds and from what it reports. `clock` is in seconds."""

    def __init__(self, bounds: Bounds, clock: Callable[[], float] = time.monotonic) -> None:
        self._bounds, self._clock = bounds, clock
        self._uneven_until = float("-inf")

    def hear(self, jitter: float, lost: float) -> None:
        """Take a report of the receiver: jitter in seconds, the share of packets that were lost."""
        if jitter > UNEVEN_SECONDS or lost > 0:
            self._uneven_until = self._clock() + CALM_SECONDS

    @property
    def now(self) -> Bounds:
        """The bounds to send now."""
        if self._clock() >= self._uneven_until:
            return Bounds(self._bounds.least, self._bounds.least)
        # A least of 0 would mean: show at once, whatever is missing.
        return Bounds(min(max(self._bounds.least, STEP_MS), self._bounds.most), self._bounds.most)


def packed(bounds: Bounds) -> bytes:
    """The extension's three bytes."""
    return (bounds.least // STEP_MS << 12 | bounds.most // STEP_MS).to_bytes(3, "big")


class _WithPlayoutDelay(HeaderExtensionsMap):
    """aiortc's writer of header extensions, with one more."""

    def __init__(self, number: int, delay: PlayoutDelay) -> None:
        super().__init__()
        self._number, self._delay = number, delay

    def set(self, values: HeaderExtensions) -> tuple[int, bytes]:
        others = unpack_header_extensions(*super().set(values))
        return pack_header_extensions([*others, (self._number, packed(self._delay.now))])


def agree(transceiver: RTCRtpTransceiver, offered: MediaDescription, delay: PlayoutDelay) -> bool:
    """Take the extension into the answer and into each packet, if the offer has it. False if it has not.

    To be called between an offer and its answer: aiortc knows of no such extension, and these are the two
    places where it keeps those it knows.
    """
    numbers = [extension.id for extension in offered.rtp.headerExtensions if extension.uri == URI]
    if not numbers:
        return False
    sender = transceiver.sender
    assert isinstance(sender, RTCRtpSender) and isinstance(transceiver.receiver, RTCRtpReceiver)
    assert isinstance(transceiver._headerExtensions, list), "aiortc has changed: its transceiver has no extensions"
    name = "_RTCRtpSender__rtp_header_extensions_map"
    assert isinstance(getattr(sender, name, None), HeaderExtensionsMap), "aiortc has changed: its sender has no map"
    # A new list: aiortc's own may be shared between connections.
    extension = RTCRtpHeaderExtensionParameters(id=numbers[0], uri=URI)
    transceiver._headerExtensions = [*transceiver._headerExtensions, extension]
    setattr(sender, name, _WithPlayoutDelay(numbers[0], delay))
    return True
