"""VP8 and H264 for small live pictures, behind aiortc's codec interface.

aiortc's own encoders believe in 30 frames a second, use threads that two viewers would fight over, and
have their bitrate limits as module constants; these take the true rate, one thread and a cap on bursts.
Packets are cut by aiortc's encoders, through their public `pack`.
"""

from fractions import Fraction

import av
from aiortc.codecs.base import Encoder
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.vpx import Vp8Encoder
from av.video.frame import PictureType

BITS_PER_PIXEL = 0.6
MIN_BITRATE, MAX_BITRATE = 300_000, 4_000_000
NEVER = 1_000_000
"""Frames between key frames that nobody asked for."""

_ENCODERS = {"VP8": "libvpx", "H264": "libx264"}
_X264 = {"preset": "superfast", "tune": "zerolatency", "forced-idr": "1", "level": "31"}
_VPX = {
    "deadline": "realtime",
    "cpu-used": "-6",
    "lag-in-frames": "0",
    "undershoot-pct": "100",
    "overshoot-pct": "15",
    "static-thresh": "1",
}


def bitrate_for(width: int, height: int, fps: int) -> int:
    """Bits a second that show a picture of this size well, within the limits of this module."""
    return max(MIN_BITRATE, min(round(BITS_PER_PIXEL * width * height * fps), MAX_BITRATE))


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
    """One viewer's encoder. `codec` is "VP8" or "H264"; `encode` runs in an executor, a call at a time.

    Feedback of the receiver (REMB) sets `target_bitrate`, in bits a second, below the picture's own rate.
    """

    def __init__(self, codec: str, fps: int) -> None:
        assert codec in ("VP8", "H264"), f"no encoder for {codec}"
        self._h264, self._fps = codec == "H264", fps
        self._packer: Encoder = H264Encoder() if self._h264 else Vp8Encoder()
        self._context: av.VideoCodecContext | None = None
        self._count = 0
        self._target = MAX_BITRATE

    @property
    def target_bitrate(self) -> int:
        """What the receiver can take, in bits a second."""
        return self._target

    @target_bitrate.setter
    def target_bitrate(self, bitrate: int) -> None:
        self._target = max(MIN_BITRATE, min(bitrate, MAX_BITRATE))

    def encode(self, frame: av.VideoFrame, force_keyframe: bool = False) -> tuple[list[bytes], int]:
        """RTP payloads of a frame and its timestamp in ticks of 1/90000 s; a key frame when forced or the first."""
        pts, time_base = frame.pts, frame.time_base
        context = self._context_for(frame)
        frame = frame.reformat(format="yuv420p")
        frame.pts, frame.time_base = self._count, context.time_base
        frame.pict_type = PictureType.I if force_keyframe else PictureType.NONE
        self._count += 1
        packet = av.Packet(b"".join(bytes(packet) for packet in context.encode(frame)))
        packet.pts, packet.time_base = pts, time_base
        return self._packer.pack(packet)

    def pack(self, packet: av.Packet) -> tuple[list[bytes], int]:
        """RTP payloads of a frame that is encoded already."""
        return self._packer.pack(packet)

    def _context_for(self, frame: av.VideoFrame) -> av.VideoCodecContext:
        """The open codec; a new one, which costs a key frame, only for another size or a rate that is far off."""
        wanted = min(self._target, bitrate_for(frame.width, frame.height, self._fps))
        context = self._context
        fits = context is not None and (context.width, context.height) == (frame.width, frame.height)
        if context is None or not fits or not 0.8 < wanted / context.bit_rate < 1.5:
            self._context = context = self._open(frame.width, frame.height, wanted)
        return context

    def _open(self, width: int, height: int, bitrate: int) -> av.VideoCodecContext:
        context = av.CodecContext.create(_ENCODERS["H264" if self._h264 else "VP8"], "w")
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.bit_rate, context.gop_size, context.thread_count = bitrate, NEVER, 1
        context.framerate, context.time_base = Fraction(self._fps), Fraction(1, self._fps)
        # Half a second of buffer: a key frame may burst, but not stop a slow link for long.
        rate = {"maxrate": str(bitrate), "bufsize": str(bitrate // 2)}
        if self._h264:
            context.profile = "Baseline"
            context.options = {**_X264, **rate}
        else:
            context.qmin, context.qmax = 2, 56
            context.options = {**_VPX, **rate, "minrate": str(bitrate)}
        return context
