"""Which lost packets are sent again. Without a bound a link that has become narrow gets nothing else.

A receiver asks for what it lacks again and again, and aiortc sends all of it: on a link that has become narrow
the picture stands still until the link is wide again (`python -m benchmarks.picture --link` shows what happens with
the bound). What is not sent again is made up for by a key frame, before the receiver gives up and asks for one.
"""

import time
from collections import OrderedDict
from collections.abc import Callable

from aiortc import RTCRtpSender, clock
from aiortc.rtp import RTP_HISTORY_SIZE, RtpPacket

from stream.codec import LiveEncoder
from stream.rate import Rate

SHARE = 0.35
"""Of the link's bits, at most, go into packets that are sent again."""

BURST_SECONDS = 1.0
AGAIN_SECONDS = 0.1
OLDEST_SECONDS = 1.0
"""A live picture has no use for what is older."""

FALL_SECONDS = 1.0
"""So long after a link became narrow a lost packet is the sign that a key frame is quicker."""
KEY_SECONDS = 1.0
"""So long lies at least between two key frames for packets that were not sent again."""


class Resends:
    """Says which packets to send again, within a share of `rate`'s target; calls `want_key` where it gives up.

    `keyed` says when the last key frame was made; `now` is a clock in seconds, and `rate`'s is the same one.
    """

    def __init__(
        self,
        rate: Rate,
        want_key: Callable[[], None],
        now: Callable[[], float] = time.monotonic,
        keyed: Callable[[], float] = lambda: float("-inf"),
    ) -> None:
        self._rate, self._want_key, self._now, self._keyed = rate, want_key, now, keyed
        self._bits, self._at = 0.0, now() - BURST_SECONDS
        self._sent: OrderedDict[int, float] = OrderedDict()
        self._key_at = float("-inf")

    def allow(self, sequence: int, size: int, age: float) -> bool:
        """True when the packet of `size` bytes, first sent `age` seconds ago, is to be sent again now."""
        now = self._now()
        share = SHARE * self._rate.target
        self._bits = min(self._bits + (now - self._at) * share, BURST_SECONDS * share)
        self._at = now
        key_at = max(self._key_at, self._keyed())
        # Who gets a key frame needs nothing from before it.
        if now - age < key_at or now - self._sent.get(sequence, float("-inf")) < AGAIN_SECONDS:
            return False
        if self._rate.fell_at > max(key_at, now - FALL_SECONDS):
            # The rest would come too late: a key frame with few bits is through sooner.
            self._key_at = now
            self._want_key()
            return False
        if age > OLDEST_SECONDS or self._bits <= 0:
            self._give_up(now)
            return False
        self._bits -= 8 * size
        self._sent[sequence] = now
        self._sent.move_to_end(sequence)
        if len(self._sent) > RTP_HISTORY_SIZE:
            self._sent.popitem(last=False)
        return True

    def _give_up(self, now: float) -> None:
        if now - self._key_at >= KEY_SECONDS:
            self._key_at = now
            self._rate.hear_flood()
            self._want_key()


def fit(sender: RTCRtpSender, rate: Rate) -> None:
    """Let a sender of aiortc's send again what Resends allows."""
    assert hasattr(sender, "_retransmit"), "aiortc has changed: its sender sends again in another way"
    assert hasattr(sender, "_send_keyframe"), "aiortc has changed: its sender is told of key frames in another way"
    history = getattr(sender, "_RTCRtpSender__rtp_history", None)
    assert isinstance(history, dict), "aiortc has changed: its sender keeps its packets elsewhere"
    encoder = getattr(sender, "_RTCRtpSender__encoder", None)
    assert isinstance(encoder, LiveEncoder), "an encoder of ours comes first"
    resends = Resends(rate, sender._send_keyframe, keyed=lambda: encoder.key_at)
    send_again = sender._retransmit

    async def retransmit(sequence: int) -> None:
        packet = history.get(sequence % RTP_HISTORY_SIZE)
        is_kept = packet is not None and packet.sequence_number == sequence
        if is_kept and resends.allow(sequence, len(packet.payload), _age(packet)):
            await send_again(sequence)

    sender._retransmit = retransmit  # type: ignore[method-assign]


def _age(packet: RtpPacket) -> float:
    """Seconds since a packet was sent: its header has the time in steps of 2**-18 s, modulo 64 s."""
    steps = (clock.current_ntp_time() >> 14) - (packet.extensions.abs_send_time or 0)
    return (steps & 0xFFFFFF) / 2**18
