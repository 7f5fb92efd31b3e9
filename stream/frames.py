"""The picture over a WebSocket, for viewers whom WebRTC does not reach: encoded frames for the browser's own decoder.

The viewer opens /frames and says `watch`, with its token and what it can decode. The server answers `picture`; from
then on each binary message is one frame, HEADER and VP8 or H264 (Annex B) behind it, the first one a key frame. The
viewer answers each with `seen`, and says `key` when it cannot go on without a key frame.

TCP loses nothing and hides how late it is, so frames wait for their `seen`: when too much is on its way no more is
taken from the pacer. What is too much then is dropped there, before it is encoded, and no key frame is needed for it.
"""

import asyncio
import contextlib
import math
import secrets
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from typing import Annotated, Literal

import av
from fastapi import WebSocket, WebSocketDisconnect
from pydantic import Field, TypeAdapter, ValidationError

from stream import protocol
from stream.codec import LiveEncoder
from stream.pacer import PTS_RATE, Paced
from stream.playout import Bounds
from stream.rate import Rate
from stream.session import Bucket
from stream.webrtc import CODECS, SILENCE_SECONDS, Feed, Media

HEADER = struct.Struct(">B3xQ")
"""Flags (1: a key frame) and the frame's time in ticks of 1/90000 s."""
KEY = 1
AHEAD_SECONDS, MOST_AHEAD_SECONDS = 0.5, 2.0
"""So much more may be on its way than the link itself delays; and so much at most."""
LATE_SECONDS = 0.25
"""A frame that is seen so much later than the quickest one stood in a queue: the link is full."""
REPORT_SECONDS = 1.0
ENDED = 4000
"""The close code of a picture that is refused or has ended; the reason says why."""
KEY_SECONDS = 1.0
"""So long lies at least between two key frames that a viewer asks for."""
SAID_A_SECOND, SAID_AT_ONCE = 120, 240
MAX_TEXT = 1024
_WRONG = 'say {"type": "seen", "pts": ...} for each frame, or {"type": "key"}'


class Watch(protocol.Message):
    """The first message of a viewer: the token of `welcome`, and the codecs that it can decode, best first."""

    type: Literal["watch"] = "watch"
    token: protocol.Token
    codecs: Annotated[tuple[Annotated[str, Field(max_length=16)], ...], Field(min_length=1, max_length=8)]


class Picture(protocol.Message):
    """What the frames that follow are; `config` is what WebCodecs calls the codec."""

    type: Literal["picture"] = "picture"
    codec: str
    config: str
    width: int
    height: int


class Seen(protocol.Message):
    """The frame of this time has been decoded."""

    type: Literal["seen"] = "seen"
    pts: Annotated[int, Field(strict=True, ge=0)]


class Key(protocol.Message):
    """The decoder broke: the next frame must be a key frame."""

    type: Literal["key"] = "key"


CONFIGS = {"VP8": "vp8", "H264": "avc1.42e01f"}
_SAID: TypeAdapter[Seen | Key] = TypeAdapter(Annotated[Seen | Key, Field(discriminator="type")])


def check_watch(text: str | None, preferred: str) -> tuple[str, str]:
    """The token and the codec to use, from a viewer's first message. Raises ValueError with what would be right."""
    try:
        watch = Watch.model_validate_json(text or "")
    except ValidationError:
        raise ValueError('say {"type": "watch", "token": ..., "codecs": ["VP8", "H264"]} first') from None
    known = [codec for codec in watch.codecs if codec in CODECS]
    if not known:
        raise ValueError(f"there are the codecs {', '.join(CODECS)}, and none of them was asked for")
    return watch.token, preferred if preferred in known else known[0]


class OnItsWay:
    """Which frames the viewer has not seen yet. `clock` is in seconds."""

    def __init__(self, fps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._fps, self._clock = fps, clock
        self._sent: OrderedDict[int, float] = OrderedDict()
        self._least = math.inf
        self.worst = 0.0
        self.heard_at = clock()

    @property
    def is_full(self) -> bool:
        """True when no other frame may follow before one has been seen."""
        least = 0.0 if self._least is math.inf else self._least
        return len(self._sent) >= max(2, self._fps * min(least + AHEAD_SECONDS, MOST_AHEAD_SECONDS))

    @property
    def silent_seconds(self) -> float:
        """Since when frames are on their way and nothing is heard of them."""
        oldest = next(iter(self._sent.values()), None)
        return 0.0 if oldest is None else self._clock() - max(oldest, self.heard_at)

    def leave(self, pts: int) -> None:
        """A frame goes out."""
        self._sent[pts] = self._clock()

    def see(self, pts: int) -> None:
        """The viewer has it, and so all that went before; one that never went is no frame."""
        if pts not in self._sent:
            return
        self.heard_at = self._clock()
        delay = self.heard_at - self._sent[pts]
        self._least = min(self._least, delay)
        self.worst = max(self.worst, delay - self._least)
        while pts in self._sent:
            self._sent.popitem(last=False)


class Frames:
    """One viewer's frames over one socket; to a service it is what a Peer is. `gone` is called once, when it ends."""

    ends_viewer = False
    playout_delay: Bounds | None = None

    def __init__(
        self, feed: Feed, fps: int, media: Media, codec: str, socket: WebSocket, gone: Callable[[], None]
    ) -> None:
        self.id = secrets.token_urlsafe(24)
        self._feed, self._socket, self._gone, self._codec = feed, socket, gone, codec
        self._rate = Rate(media.min_bitrate, media.max_bitrate)
        self._encoder = LiveEncoder(codec, fps, self._rate)
        self._way = OnItsWay(fps)
        self._changed = asyncio.Event()
        self._listener = self._changed.set
        self._ended = asyncio.Event()
        self._bucket = Bucket(SAID_A_SECOND, SAID_AT_ONCE)
        self._needs_key, self._key_at = False, -math.inf
        feed.pacer.listener = self._listener

    @property
    def bitrate(self) -> int:
        """Bits a second that the link takes, as far as is known."""
        return self._rate.target

    @property
    def sent_bytes(self) -> int:
        """Bytes of encoded video so far."""
        return self._encoder.sent_bytes

    async def is_lost(self) -> bool:
        """True when the viewer has fallen silent."""
        return self._way.silent_seconds > SILENCE_SECONDS

    async def close(self) -> None:
        """End it; again is no error."""
        self._ended.set()

    async def run(self, width: int, height: int) -> None:
        """Send until either side ends it."""
        picture = Picture(codec=self._codec, config=CONFIGS[self._codec], width=width, height=height)
        work = (self._send(picture), self._listen(), self._report(), self._ended.wait())
        tasks = [asyncio.ensure_future(each) for each in work]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._encoder.close()
            self._gone()

    async def _send(self, picture: Picture) -> None:
        await self._socket.send_text(picture.model_dump_json())
        while (paced := await self._next()) is not None:
            self._feed.took(paced)
            data, is_key = await asyncio.to_thread(self._compress, paced)
            self._way.leave(paced.pts)
            await self._socket.send_bytes(HEADER.pack(KEY if is_key else 0, paced.pts) + data)
            self._feed.sent(paced, paced.pts % 2**32)

    async def _next(self) -> Paced | None:
        """The next frame at its time; None when a newer picture of the viewer's has taken this one's place."""
        pacer = self._feed.pacer
        while pacer.listener is self._listener:
            self._changed.clear()
            delay = None if self._way.is_full else pacer.delay()
            if delay == 0:
                return pacer.pop()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.5 if delay is None else delay)
        return None

    def _compress(self, paced: Paced) -> tuple[bytes, bool]:
        frame = av.VideoFrame.from_ndarray(paced.image, "rgb24")
        frame.pts, frame.time_base = paced.pts, Fraction(1, PTS_RATE)
        needs_key, self._needs_key = self._needs_key, False
        return self._encoder.compress(frame, needs_key)

    async def _listen(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if not self._bucket.take():
                raise ValueError(f"too many messages: at most {SAID_A_SECOND} a second are taken")
            match _parsed(message.get("text")):
                case Seen(pts=pts):
                    self._way.see(pts)
                    self._changed.set()
                case Key():
                    self._ask_for_key()

    def _ask_for_key(self) -> None:
        if (now := time.monotonic()) - self._key_at >= KEY_SECONDS:
            self._needs_key, self._key_at = True, now

    async def _report(self) -> None:
        """What a receiver of RTP would report: of a full link, losses."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            self._rate.hear_loss(0.5 if self._way.is_full or self._way.worst > LATE_SECONDS else 0.0)
            self._way.worst = 0.0


def _parsed(text: str | None) -> Seen | Key:
    """What a viewer says of its frames. Raises ValueError for all else."""
    try:
        return _SAID.validate_json((text or "")[:MAX_TEXT])
    except ValidationError:
        raise ValueError(_WRONG) from None


async def serve(
    socket: WebSocket,
    seconds: float,
    begin: Callable[[str | None], "tuple[Frames, tuple[int, int]]"],
) -> None:
    """An accepted socket from its first message, which must come within `seconds`, to its end.

    `begin` makes the Frames of that message, or raises ValueError with a sentence: it is the reason of the close.
    """
    reason = "The picture has ended."
    try:
        async with asyncio.timeout(seconds):
            message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        frames, size = begin(message.get("text"))
        await frames.run(*size)
    except TimeoutError:
        reason = f"No watch came within {seconds:.0f} seconds."
    except ValueError as error:
        reason = str(error)
    except (WebSocketDisconnect, RuntimeError):  # starlette's words for a closed socket
        return
    await end(socket, reason)


async def end(socket: WebSocket, reason: str) -> None:
    """Close an accepted socket and say why; one that is closed already is left alone."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await socket.close(ENDED, reason[:120])
