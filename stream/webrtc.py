"""Pictures to viewers over WebRTC: one video track a viewer, signalled by WHEP's offer and answer.

An offer is checked as a whole before anything live is touched. What aiortc offers no way in for is done in
`_fit`, on attributes that tests hold to be there.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Protocol

import av
from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, VideoStreamTrack
from aiortc.sdp import SessionDescription, candidate_from_sdp

from stream.codec import LiveEncoder
from stream.pacer import PTS_RATE, Paced, Pacer
from stream.protocol import IceServer

log = logging.getLogger(__name__)

MAX_OFFER_BYTES = 64 * 1024
CODECS = ("VP8", "H264")
CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 5.0
"""A receiver reports about once a second; frames sent for this long without a report go to no one.
ICE alone would notice after 30 s."""

_TIME_BASE = Fraction(1, PTS_RATE)
# Browsers offer .local names that no one here can resolve and aioice waits a second for each; with
# end-of-candidates left in Firefox never connects. The peer is found from its own checks.
_LINES_TO_DROP = re.compile(r"^a=(candidate:.*\.local .*|end-of-candidates)\r?\n", re.MULTILINE)


class Feed(Protocol):
    """Whose picture it is: the pacer to fetch from, and who hears of each frame's leaving."""

    pacer: Pacer

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
    try:
        offer = SessionDescription.parse(sdp)
    except Exception:  # aiortc's parser raises whatever the broken line leads to
        offer = None
    if offer is None or not offer.media:
        raise ValueError("the body is not an SDP offer: send what RTCPeerConnection.createOffer() gives")
    if any(not (media.ice.usernameFragment and media.ice.password and media.dtls) for media in offer.media):
        raise ValueError("the SDP offer lacks its ICE or DTLS lines: send what RTCPeerConnection.createOffer() gives")
    videos = [media for media in offer.media if media.kind == "video" and media.port]
    if len(videos) != 1 or videos[0].direction not in ("recvonly", "sendrecv"):
        raise ValueError("the SDP offer must ask for one video: addTransceiver('video', {direction: 'recvonly'})")
    if not any(codec.name in CODECS for codec in videos[0].rtp.codecs):
        raise ValueError(f"the SDP offer has none of the codecs {', '.join(CODECS)}")
    return _LINES_TO_DROP.sub("", sdp)


class Peer:
    """One WebRTC connection that shows one feed. `gone` is called once, when it ends, however it ends.

    `ends_viewer` says that the viewer has nothing but this connection and leaves with it.
    """

    def __init__(
        self,
        feed: Feed,
        fps: int,
        ice_servers: tuple[IceServer, ...] = (),
        gone: Callable[[], None] = lambda: None,
        ends_viewer: bool = False,
    ) -> None:
        self.id = secrets.token_urlsafe(24)
        self.ends_viewer = ends_viewer
        servers = [RTCIceServer(list(one.urls), one.username, one.credential) for one in ice_servers]
        # Without a list aiortc would ask a public STUN server.
        self._connection = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self._connection.on("connectionstatechange", self._on_state)
        self._feed, self._fps, self._gone = feed, fps, gone
        self._sender: RTCRtpSender | None = None
        self._track: Track | None = None
        self._began = time.monotonic()
        self._closing: asyncio.Task[None] | None = None

    async def answer(self, offer: str, codec: str = "VP8") -> str:
        """The answer to a checked offer; `codec` first if the other side has it. ValueError when they disagree."""
        connection = self._connection
        transceiver = connection.addTransceiver("video", direction="sendonly")
        capabilities = RTCRtpSender.getCapabilities("video").codecs
        wanted = sorted((one for one in capabilities if one.name in CODECS), key=lambda one: one.name != codec)
        # Before setRemoteDescription, or aiortc takes no notice.
        transceiver.setCodecPreferences(wanted + [one for one in capabilities if one.name == "rtx"])
        try:
            await connection.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            await connection.setLocalDescription(await connection.createAnswer())
        except Exception as error:  # aiortc raises what the odd line leads to, of many types
            log.info("an offer was refused: %r", error)
            await connection.close()
            raise ValueError(
                "the SDP offer cannot be answered: send what RTCPeerConnection.createOffer() gives"
            ) from None
        answer = connection.localDescription.sdp
        self._sender = transceiver.sender
        # The track comes only now: an earlier peer of this viewer shows its picture until here.
        self._track = Track(self._feed)
        _fit(self._sender, self._track, LiveEncoder(_first_codec(answer), self._fps))
        return answer

    async def add_candidates(self, fragment: str) -> None:
        """Take the candidates of a trickled SDP fragment; names that cannot be resolved are passed over."""
        for line in fragment.splitlines():
            if line.startswith("a=candidate:") and ".local " not in line:
                candidate = candidate_from_sdp(line.removeprefix("a=candidate:").strip())
                candidate.sdpMLineIndex = 0
                await self._connection.addIceCandidate(candidate)

    async def is_lost(self) -> bool:
        """True when it never connected in time, or when the other side has stopped reporting."""
        now = time.monotonic()
        if self._connection.connectionState != "connected" or not self._sender or not self._track:
            return now - self._began > CONNECT_SECONDS
        stats = (await self._sender.getStats()).values()
        reports = [time.time() - one.timestamp.timestamp() for one in stats if one.type == "remote-inbound-rtp"]
        silent = min(reports, default=now - self._began)
        return now - self._track.sent_at < 1 and silent > SILENCE_SECONDS

    async def close(self) -> None:
        """End the connection; again is no error."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._connection.close()
        self._gone()

    async def _on_state(self) -> None:
        if self._connection.connectionState == "connected":
            self._began = time.monotonic()
        if self._connection.connectionState in ("failed", "closed"):
            await self.close()


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
