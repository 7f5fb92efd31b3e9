"""VP8 and H264 for small live pictures, behind aiortc's codec interface.

aiortc's own encoders believe in 30 frames a second, use threads that two viewers would fight over, and
have their bitrate limits as module constants; these take the true rate, one thread and a cap on bursts.
Packets are cut by aiortc's encoders, through their public `pack`.
"""

import time
from fractions import Fraction

import av
from aiortc.codecs.base import Encoder
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.vpx import Vp8Encoder
from av.video.frame import PictureType

from stream.rate import FALL, Rate

BITS_PER_PIXEL = 0.6
MIN_BITRATE, MAX_BITRATE = 100_000, 4_000_000
"""The bounds where no others are configured. Below the first one no picture of ours can be made out."""

NEVER = 1_000_000
"""Frames between key frames that nobody asked for."""

RISE_SECONDS = 6
"""VP8 takes a higher rate at the earliest so long after the last one."""

TRUST_SECONDS = 2
"""A rate of before so long says little of the link."""

DRAIN_SHARE = 0.1
"""Of its buffer, what a context may spend at once on a link whose queue is full."""

CALM_BURST_SECONDS, UNEVEN_BURST_SECONDS = 0.5, 0.2
"""How much of the link's time a key frame may take."""

_ENCODERS = {"VP8": "libvpx", "H264": "libx264"}
_X264 = {"preset": "superfast", "tune": "zerolatency", "forced-idr": "1", "level": "31", "sc_threshold": "0"}
_VPX = {
    "deadline": "realtime",
    "cpu-used": "-6",
    "lag-in-frames": "0",
    "undershoot-pct": "100",
    "overshoot-pct": "15",
    "static-thresh": "1",
    # As far apart at least as at most: no key frame of libvpx's own, at a cut for instance.
    "keyint_min": str(NEVER),
}


def bitrate_for(width: int, height: int, fps: int) -> int:
    """Bits a second that show a picture of this size well."""
    return round(BITS_PER_PIXEL * width * height * fps)


def missing_encoders() -> dict[str, str | None]:
    """Each codec that a browser can be served in, with None where it can be encoded and else the reason why not."""
    return {codec: _missing(name) for codec, name in _ENCODERS.items()}


def _missing(name: str) -> str | None:
    try:
        av.Codec(name, "w")
    except ValueError:  # UnknownCodecError is one
        return f"this build of FFmpeg (PyAV {av.__version__}) has no {name}"
    return None


class LiveEncoder(Encoder):
    """One viewer's encoder. `codec` is "VP8" or "H264"; `encode` runs in an executor, a call at a time. `key_at` is
    when it made its last key frame, by time.monotonic().

    It aims at `rate`'s target, but not above what the picture needs. x264 takes a new rate with the next
    frame. libvpx cannot be told through FFmpeg: another rate is another codec context and costs a key frame,
    so there only large changes are made, and only while the picture needs its rate. (A receiver's estimate of
    a link that is sent little is low without meaning anything.) A key frame that is asked for brings the newest
    rate with libvpx, and a much lower one with both: a link that has become narrow has a full queue of its own, so such
    a context begins with next to no bits, and the queue drains.
    """

    def __init__(self, codec: str, fps: int, rate: Rate | None = None) -> None:
        assert codec in ("VP8", "H264"), f"no encoder for {codec}"
        self._h264, self._fps = codec == "H264", fps
        self._packer: Encoder = H264Encoder() if self._h264 else Vp8Encoder()
        self._context: av.VideoCodecContext | None = None
        self._count = self._opened_at = 0
        self.rate = rate or Rate(MIN_BITRATE, MAX_BITRATE)
        self.key_frames = self.sent_bytes = 0
        self.key_at = float("-inf")
        self._recent, self._trusted, self._highest, self._drains = 0.0, 0.0, 0, False

    @property
    def target_bitrate(self) -> int:
        """What the receiver can take, in bits a second. aiortc sets it from the receiver's feedback."""
        return self.rate.target

    @target_bitrate.setter
    def target_bitrate(self, bitrate: int) -> None:
        self.rate.hear_estimate(bitrate)

    def encode(self, frame: av.VideoFrame, force_keyframe: bool = False) -> tuple[list[bytes], int]:
        """RTP payloads of a frame and its timestamp in ticks of 1/90000 s; a key frame when forced or the first."""
        packet = av.Packet(self.compress(frame, force_keyframe)[0])
        packet.pts, packet.time_base = frame.pts, frame.time_base
        return self._packer.pack(packet)

    def compress(self, frame: av.VideoFrame, force_keyframe: bool = False) -> tuple[bytes, bool]:
        """The encoded frame (H264 as Annex B), and whether it is a key frame."""
        context = self._context_for(frame, force_keyframe)
        frame = frame.reformat(format="yuv420p")
        frame.pts, frame.time_base = self._count, context.time_base
        frame.pict_type = PictureType.I if force_keyframe else PictureType.NONE
        self._count += 1
        packets = context.encode(frame)
        is_key = any(packet.is_keyframe for packet in packets)
        self._note(sum(packet.size for packet in packets), is_key)
        return b"".join(bytes(packet) for packet in packets), is_key

    def close(self) -> None:
        """Give the codec's memory back, which Python does not see; no frame comes any more."""
        self._context = None

    def pack(self, packet: av.Packet) -> tuple[list[bytes], int]:
        """RTP payloads of a frame that is encoded already."""
        return self._packer.pack(packet)

    def _context_for(self, frame: av.VideoFrame, is_key: bool) -> av.VideoCodecContext:
        """The open codec, at the rate that is wanted now."""
        own = bitrate_for(frame.width, frame.height, self._fps)
        context, wanted = self._context, min(self.rate.target, max(own, self.rate.floor))
        fits = context is not None and (context.width, context.height) == (frame.width, frame.height)
        falls = wanted < FALL * self._trusted
        if context is None or not fits or (is_key and self._is_stale(wanted, falls)) or self._is_far(wanted):
            self._context = context = self._open(frame.width, frame.height, wanted, falls)
            self._opened_at, self._trusted, self._recent = self._count, wanted, min(self._recent, wanted)
            self._drains = falls
        elif self._h264:
            context.bit_rate = min(wanted, self._highest)
            self._trusted = max(wanted, self._trusted - (self._trusted - wanted) / (TRUST_SECONDS * self._fps))
        return context

    def _is_stale(self, wanted: int, falls: bool) -> bool:
        """True when a key frame, which has to be made anyway, should be the first of another context."""
        assert self._context is not None, "a codec that is not open is not stale"
        # A context that began with next to no bits misjudges its second key frame.
        return falls or self._drains or (not self._h264 and wanted != self._context.bit_rate)

    def _is_far(self, wanted: int) -> bool:
        """True when another rate should be taken at the price of a key frame. x264 takes a lower one without."""
        assert self._context is not None and self._context.bit_rate, "a rate is compared with that of an open codec"
        rate = self._highest if self._h264 else self._context.bit_rate
        frames = self._count - self._opened_at
        falls = not self._h264 and wanted < 0.85 * rate and self._recent > wanted
        rises = wanted > 1.25 * rate and self._recent > 0.75 * rate and frames >= RISE_SECONDS * self._fps
        return falls or rises

    def _note(self, size: int, is_key: bool) -> None:
        """Follow what is sent, in bits a second over the last second or so, key frames apart."""
        self.key_frames += is_key
        self.sent_bytes += size
        if is_key:
            self.key_at = time.monotonic()
        else:
            self._recent += (8 * size * self._fps - self._recent) / self._fps

    def _open(self, width: int, height: int, bitrate: int, falls: bool = False) -> av.VideoCodecContext:
        context = av.CodecContext.create(_ENCODERS["H264" if self._h264 else "VP8"], "w")
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.gop_size, context.thread_count = NEVER, 1
        context.framerate, context.time_base = Fraction(self._fps), Fraction(1, self._fps)
        # x264 takes any rate later, but none above that of its opening, and only where both began as one; and it
        # overshoots for seconds where that is far above.
        own = min(bitrate_for(width, height, self._fps), self.rate.ceiling)
        highest = self._highest = max(bitrate, own) if self._h264 and not falls else bitrate
        # A key frame may burst, but not stop a slow link for long, and less where the link loses what is too much.
        seconds = CALM_BURST_SECONDS if self.rate.is_calm else UNEVEN_BURST_SECONDS
        buffer = max(round(bitrate * seconds), 2 * highest // self._fps)
        context.bit_rate = highest
        drain = {"rc_init_occupancy": str(round(DRAIN_SHARE * buffer))} if falls else {}
        context.options = self._options({"maxrate": str(highest), "bufsize": str(buffer), **drain}, seconds)
        if self._h264:
            context.profile = "Baseline"
        else:
            context.qmin, context.qmax = 2, 63
        context.open()
        context.bit_rate = bitrate
        return context

    def _options(self, rate: dict[str, str], burst_seconds: float) -> dict[str, str]:
        if self._h264:
            return {**_X264, **rate}
        # In percent of a frame at this rate.
        largest = round(100 * burst_seconds * self._fps)
        return {**_VPX, **rate, "minrate": rate["maxrate"], "max-intra-rate": str(largest)}
