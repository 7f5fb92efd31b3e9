"""Pictures to viewers over WebRTC: one video track a viewer, signalled by WHEP's offer and answer.

An offer is checked as a whole before anything live is touched. What aiortc offers no way in for is done in
`_fit`, on attributes that tests hold to be there.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import av
from aiortc import (
    RTCConfiguration,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpSender,
    RTCRtpTransceiver,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError, VideoStreamTrack
from aiortc.sdp import MediaDescription, SessionDescription, candidate_from_sdp

from stream import ice, playout, resend
from stream.codec import MAX_BITRATE, MIN_BITRATE, LiveEncoder
from stream.pacer import PTS_RATE, Paced, Source
from stream.protocol import IceServer
from stream.rate import Rate

log = logging.getLogger(__name__)

MAX_OFFER_BYTES = 64 * 1024
MAX_OFFER_LINES = 800
"""A browser's has some 300. Comparing all codecs with all of their options takes time, and all pictures wait for it."""
MAX_CANDIDATES = 64
"""Of one peer, in its offer and later: each is checked against each of our sockets."""

MAX_MEDIA = 4
"""In an offer. One is the picture, the others are answered as inactive."""

CODECS = ("VP8", "H264")
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 4.0
"""A receiver reports about once a second, and more often when it lacks something. After so long without a word
while frames were sent to it, it is gone; with WATCH_SECONDS that is noticed within 5 s. ICE alone needs 30 s."""

WATCH_SECONDS = 0.5
"""How often is_lost() is to be asked."""

_TIME_BASE = Fraction(1, PTS_RATE)
# Browsers offer .local names that no one here can resolve and aioice waits a second for each; with
# end-of-candidates left in Firefox never connects. The peer is found from its own checks.
_LINES_TO_DROP = re.compile(r"^a=(candidate:.*\.local .*|end-of-candidates)\r?\n", re.MULTILINE)


PLAYOUT_DELAY = playout.Bounds(0, 200)
"""In milliseconds: at once on an even link, and on no link more than a fifth of a second."""

ANYWHERE = ice.Reach()


@dataclass(frozen=True)
class Media:
    """How pictures are sent: the codec to prefer, bounds of the bitrate in bits a second and of the playout
    delay (None: the receiver decides), STUN and TURN servers, and where our sockets are."""

    codec: str = CODECS[0]
    min_bitrate: int = MIN_BITRATE
    max_bitrate: int = MAX_BITRATE
    playout_delay: playout.Bounds | None = PLAYOUT_DELAY
    ice_servers: tuple[IceServer, ...] = ()
    reach: ice.Reach = ANYWHERE

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise ValueError(f"the codec is {self.codec!r}; it must be one of {', '.join(CODECS)}")
        if not 50_000 <= self.min_bitrate <= self.max_bitrate <= 100_000_000:
            raise ValueError(
                f"the bitrate is bounded by {self.min_bitrate // 1000} and {self.max_bitrate // 1000} kbit/s; "
                "the bounds must be from 50 to 100000, the lower one first"
            )


class Feed(Protocol):
    """Whose picture it is: the pacer to fetch from, and who hears of each frame's leaving."""

    pacer: Source

    def took(self, paced: Paced) -> None: ...
    def sent(self, paced: Paced, rtp: int | None) -> None: ...


class Track(VideoStreamTrack):
    """Takes frames from a feed at their time. A newer track of the same feed ends this one."""

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed = feed
        self._changed = asyncio.Event()
        self._listener = self._changed.set
        self._last: Paced | None = None
        self.sent_at = float("-inf")
        self.rtp_of_last: Callable[[], int | None] = lambda: None
        feed.pacer.listener = self._listener

    async def recv(self) -> av.VideoFrame:
        """The next frame; asked for when the one before has been sent."""
        if self._last is not None:
            self._feed.sent(self._last, self.rtp_of_last())
            self._last, self.sent_at = None, time.monotonic()
        paced = self._last = await self._next()
        self._feed.took(paced)
        frame = await asyncio.get_running_loop().run_in_executor(None, av.VideoFrame.from_ndarray, paced.image, "rgb24")
        frame.pts, frame.time_base = paced.pts, _TIME_BASE
        return frame

    async def _next(self) -> Paced:
        pacer = self._feed.pacer
        while self.readyState == "live" and pacer.listener is self._listener:
            self._changed.clear()
            delay = pacer.delay()
            if delay == 0:
                return pacer.pop()
            if delay is None:
                await self._changed.wait()
            else:
                await asyncio.sleep(delay)
        raise MediaStreamError

    def stop(self) -> None:
        """End; a recv() that waits ends too."""
        super().stop()
        self._changed.set()


def check_offer(sdp: str) -> str:
    """The offer as aiortc should see it. ValueError, with a sentence, unless it asks for video that we can send."""
    if len(sdp) > MAX_OFFER_BYTES:
        raise ValueError(f"the offer has {len(sdp)} characters; at most {MAX_OFFER_BYTES} are taken")
    if sdp.count("\n") > MAX_OFFER_LINES:
        raise ValueError(f"the offer has more than {MAX_OFFER_LINES} lines")
    try:
        offer = SessionDescription.parse(sdp)
    except Exception:  # aiortc's parser raises whatever the broken line leads to
        offer = None
    if offer is None or not offer.media:
        raise ValueError("the body is not an SDP offer: send what RTCPeerConnection.createOffer() gives")
    _check_media(offer)
    if not all(media.ice.usernameFragment and media.ice.password and _has_dtls(media) for media in offer.media):
        raise ValueError("the SDP offer lacks its ICE or DTLS lines: send what RTCPeerConnection.createOffer() gives")
    videos = [media for media in offer.media if media.kind == "video" and media.port]
    if len(videos) != 1 or videos[0].direction not in ("recvonly", "sendrecv"):
        raise ValueError("the SDP offer must ask for one video: addTransceiver('video', {direction: 'recvonly'})")
    if not any(codec.name in CODECS for codec in videos[0].rtp.codecs):
        raise ValueError(f"the SDP offer has none of the codecs {', '.join(CODECS)}")
    if sum(len(media.ice_candidates) for media in offer.media) > MAX_CANDIDATES:
        raise ValueError(f"the SDP offer has more than {MAX_CANDIDATES} candidates")
    return _LINES_TO_DROP.sub("", sdp)


def _has_dtls(media: MediaDescription) -> bool:
    return media.dtls is not None and bool(media.dtls.fingerprints)


def _check_media(offer: SessionDescription) -> None:
    """ValueError unless its media are such as aiortc can begin and end."""
    names = [media.rtp.muxId for media in offer.media]
    if len(names) > MAX_MEDIA or len(set(names)) < len(names) or "" in names:
        raise ValueError(f"the SDP offer must have at most {MAX_MEDIA} media, each with an a=mid of its own")
    if any(media.kind not in ("audio", "video") for media in offer.media):
        raise ValueError("the SDP offer asks for more than sound and pictures; leave data channels out")
    if any(set(group.items) - set(names) for group in offer.group):
        raise ValueError("the SDP offer has an a=group of media that it does not have")


class RestartRefused(Exception):
    """The other side asks for another ICE session, which aiortc cannot begin."""


@dataclass(frozen=True)
class Fragment:
    """The lines of a trickled SDP fragment that mean something here: candidates, and the ICE session's name."""

    candidates: tuple[str, ...]
    ufrag: str | None

    @classmethod
    def parse(cls, text: str) -> "Fragment":
        """ValueError, with a sentence, for what is no fragment."""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        # A library writes the end of Firefox's candidates as "a=".
        if any(not re.match(r"[a-z]=", line) for line in lines):
            raise ValueError("the body must be lines like a=candidate:... of an SDP")
        candidates = tuple(line.removeprefix("a=candidate:") for line in lines if line.startswith("a=candidate:"))
        ufrags = [line.removeprefix("a=ice-ufrag:") for line in lines if line.startswith("a=ice-ufrag:")]
        return cls(candidates, ufrags[0] if ufrags else None)


class Peer:
    """One WebRTC connection that shows one feed. `gone` is called once, when it ends, however it ends.

    `etag` names its ICE session. `ends_viewer` says that the viewer has nothing but this connection and leaves
    with it.
    """

    def __init__(
        self,
        feed: Feed,
        fps: int,
        media: Media | None = None,
        gone: Callable[[], None] = lambda: None,
        ends_viewer: bool = False,
    ) -> None:
        self.id, self.etag = secrets.token_urlsafe(24), secrets.token_hex(8)
        self.ends_viewer = ends_viewer
        self._media = media or Media()
        servers = [RTCIceServer(list(one.urls), one.username, one.credential) for one in self._media.ice_servers]
        # Without a list aiortc would ask a public STUN server.
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self._connection.on("connectionstatechange", self._on_state)
        _connect_quietly(self._connection)
        self._feed, self._fps, self._gone = feed, fps, gone
        self._sender: RTCRtpSender | None = None
        self._encoder: LiveEncoder | None = None
        self._track: Track | None = None
        self._rate = Rate(self._media.min_bitrate, self._media.max_bitrate)
        self._delay = playout.PlayoutDelay(self._media.playout_delay) if self._media.playout_delay else None
        self._ufrags: set[str] = set()
        self._candidates = 0
        self._began = self._heard_at = time.monotonic()
        self._heard, self._reported = 0, 0.0
        self._closing: asyncio.Task[None] | None = None

    async def answer(self, offer: str) -> str:
        """The answer to a checked offer. ValueError when nothing can be agreed on; ice.NoFreePort."""
        connection = self._connection
        transceiver = connection.addTransceiver("video", direction="sendonly")
        capabilities = RTCRtpSender.getCapabilities("video").codecs
        wanted = sorted((one for one in capabilities if one.name in CODECS), key=lambda one: one.name != self._codec)
        # Before setRemoteDescription, or aiortc takes no notice.
        transceiver.setCodecPreferences(wanted + [one for one in capabilities if one.name == "rtx"])
        try:
            await _or_refuse(connection.setRemoteDescription(RTCSessionDescription(offer, "offer")))
            self._agree(SessionDescription.parse(offer), transceiver)
            await _or_refuse(self._set_answer())
        except BaseException:  # whatever it is, no socket stays open
            await _end(connection)
            raise
        answer = connection.localDescription.sdp
        self._sender = transceiver.sender
        # The track comes only now: an earlier peer of this viewer shows its picture until here.
        self._track = Track(self._feed)
        self._encoder = LiveEncoder(_first_codec(answer), self._fps, self._rate)
        _fit(self._sender, self._track, self._encoder)
        resend.fit(self._sender, self._rate)
        return answer

    @property
    def _codec(self) -> str:
        return self._media.codec

    async def _set_answer(self) -> None:
        await self._connection.setLocalDescription(await self._connection.createAnswer())

    def _agree(self, offer: SessionDescription, transceiver: RTCRtpTransceiver) -> None:
        """Between offer and answer: our sockets, and the header extension that aiortc does not know."""
        for other in self._connection.getTransceivers():
            if other is not transceiver:
                other.direction = (
                    "inactive"  # what they would send waits for a reader that is not there, without a bound
                )
        self._ufrags = {media.ice.usernameFragment for media in offer.media}
        self._candidates = sum(len(media.ice_candidates) for media in offer.media)
        # Those of one bundle share a transport.
        for connection in {one.receiver.transport.transport._connection for one in self._connection.getTransceivers()}:
            ice.fit(connection, self._media.reach)
        video = next(media for media in offer.media if media.rtp.muxId == transceiver.mid)
        if self._delay and not playout.agree(transceiver, video, self._delay):
            self._delay = None

    @property
    def playout_delay(self) -> playout.Bounds | None:
        """What is asked of the receiver now; None when it decides for itself."""
        return self._delay.now if self._delay else None

    @property
    def bitrate(self) -> int:
        """Bits a second that the link takes, as far as is known."""
        return self._rate.target

    @property
    def sent_bytes(self) -> int:
        """Bytes of encoded video so far."""
        return self._encoder.sent_bytes if self._encoder else 0

    async def add_candidates(self, fragment: Fragment) -> None:
        """Take trickled candidates; names that cannot be resolved are passed over.

        ValueError for what is no candidate or one too many; RestartRefused for another ICE session.
        """
        if fragment.ufrag is not None and fragment.ufrag not in self._ufrags:
            raise RestartRefused("this server cannot restart ICE: end this session and POST a new offer")
        self._candidates += len(fragment.candidates)
        if self._candidates > MAX_CANDIDATES:
            raise ValueError(f"at most {MAX_CANDIDATES} candidates are taken")
        for text in fragment.candidates:
            if ".local " not in text:
                try:
                    candidate = candidate_from_sdp(text)
                    candidate.sdpMLineIndex = 0
                    await self._connection.addIceCandidate(candidate)
                except Exception:  # aiortc and aioice raise what the broken line leads to
                    raise ValueError("the body must be lines like a=candidate:... of an SDP") from None

    async def is_lost(self) -> bool:
        """True when it never connected in time, or when the other side has fallen silent.

        To be asked every WATCH_SECONDS: it also takes what the receiver reported since.
        """
        now = time.monotonic()
        if self._connection.connectionState != "connected" or not self._sender or not self._track:
            return now - self._began > CONNECT_SECONDS
        stats = list((await self._sender.getStats()).values())
        self._take_reports(stats)
        heard = sum(one.packetsReceived for one in stats if one.type == "transport")
        # Who is sent nothing has nothing to report.
        if heard != self._heard or now - self._track.sent_at > 1:
            self._heard, self._heard_at = heard, now
        return now - self._heard_at > SILENCE_SECONDS

    def _take_reports(self, stats: list) -> None:
        for report in (one for one in stats if one.type == "remote-inbound-rtp"):
            at, lost = report.timestamp.timestamp(), report.fractionLost / 256
            if at > self._reported:
                self._reported = at
                self._rate.hear_loss(lost)
                if self._delay:
                    self._delay.hear(report.jitter / PTS_RATE, lost)

    async def close(self) -> None:
        """End the connection; again is no error."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        try:
            await _end(self._connection)
        finally:
            if self._encoder:
                self._encoder.close()
            self._gone()

    async def _on_state(self) -> None:
        if self._connection.connectionState == "connected":
            self._began = self._heard_at = time.monotonic()
        if self._connection.connectionState in ("failed", "closed"):
            await self.close()


async def _or_refuse(step: Awaitable[None]) -> None:
    """A step of aiortc's towards an answer. ValueError with a sentence when it cannot be made; ice.NoFreePort."""
    try:
        await step
    except ice.NoFreePort:
        raise
    except Exception as error:  # aiortc raises what the odd line leads to, of many types
        log.info("an offer was refused: %r", error)
        raise ValueError("the SDP offer cannot be answered: send what RTCPeerConnection.createOffer() gives") from None


def _connect_quietly(connection: RTCPeerConnection) -> None:
    """Let no failure to connect, such as that of an end in the middle of it, be a traceback in the log: what does not
    connect in time is closed."""
    connect = getattr(connection, "_RTCPeerConnection__connect", None)
    assert connect is not None, "aiortc has changed: it connects in another way"

    async def connect_or_say() -> None:
        try:
            await connect()
        except Exception as error:  # aiortc's assertions, and what the odd line leads to
            log.info("an offer did not connect: %r", error)

    connection._RTCPeerConnection__connect = connect_or_say


async def _end(connection: RTCPeerConnection) -> None:
    """Close a connection, also one that aiortc has half made and cannot close itself: no socket stays open."""
    transports = {one.receiver.transport.transport for one in connection.getTransceivers()}
    try:
        await connection.close()
    except Exception as error:  # aiortc trips over its own parts, which are of many types
        log.info("a connection was closed by force: %r", error)
        for transport in transports:
            await transport.stop()


def _fit(sender: RTCRtpSender, track: Track, encoder: LiveEncoder) -> None:
    """Give a sender its track and our encoder, before its first frame, and let the track see its RTP timestamps."""
    assert hasattr(sender, "_RTCRtpSender__encoder"), "aiortc has changed: its sender keeps its encoder elsewhere"
    sender._RTCRtpSender__encoder = encoder
    track.rtp_of_last = lambda: sender._RTCRtpSender__rtp_timestamp
    sender.replaceTrack(track)


def _first_codec(answer: str) -> str:
    """The codec that an answer settles on."""
    videos = (media for media in SessionDescription.parse(answer).media if media.kind == "video" and media.port)
    return next(videos).rtp.codecs[0].name
