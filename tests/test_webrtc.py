"""stream/webrtc.py: offers that are taken and refused, and a player that is no browser."""

import asyncio
import time

import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

from pipeline.chunk import Chunk
from stream.codec import LiveEncoder
from stream.pacer import Pacer
from stream.webrtc import Peer, Track, check_offer

FPS = 16


class FakeFeed:
    """A feed whose frames are all made already."""

    def __init__(self, frames=200):
        self.pacer = Pacer(FPS, frames)
        self.taken, self.told = [], []
        image = np.full((frames, 96, 160, 3), 90, np.uint8)
        self.pacer.put(Chunk("a.1", 0, 0, image))

    def took(self, paced):
        self.taken.append(paced)

    def sent(self, paced, rtp):
        self.told.append((paced, rtp))


class Player:
    """aiortc as a WHEP player."""

    def __init__(self):
        self.connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.frames, self._came = [], asyncio.Event()
        self.connection.on("track", lambda track: asyncio.ensure_future(self._watch(track)))

    async def offer(self, *kinds):
        for kind in kinds or ("video",):
            self.connection.addTransceiver(kind, direction="recvonly")
        await self.connection.setLocalDescription(await self.connection.createOffer())
        return self.connection.localDescription.sdp

    async def take(self, answer):
        await self.connection.setRemoteDescription(RTCSessionDescription(answer, "answer"))

    async def _watch(self, track):
        try:
            while True:
                frame = await track.recv()
                self.frames.append((time.monotonic(), frame))
                self._came.set()
        except MediaStreamError:
            pass

    async def frames_there(self, count, seconds=10):
        async with asyncio.timeout(seconds):
            while len(self.frames) < count:
                self._came.clear()
                await self._came.wait()


@pytest.fixture
async def player():
    made = Player()
    yield made
    await made.connection.close()


@pytest.mark.parametrize("codec", ["VP8", "H264"])
async def test_a_player_gets_an_even_picture_with_the_codec_that_was_preferred(player, codec):
    feed, gone = FakeFeed(), []
    peer = Peer(feed, FPS, gone=lambda: gone.append(True))
    answer = await peer.answer(check_offer(await player.offer()), codec)
    await player.take(answer)
    await player.frames_there(30)
    times = np.array([at for at, _ in player.frames[5:]])
    assert np.median(np.diff(times)) == pytest.approx(1 / FPS, rel=0.25)
    rtp = np.diff([frame.pts for _, frame in player.frames[5:]])
    assert set(rtp.tolist()) == {90_000 / FPS}
    assert not await peer.is_lost()
    told = np.array([rtp for _, rtp in feed.told])
    assert set((np.diff(told) % 2**32).tolist()) == {90_000 / FPS}
    await peer.close()
    await peer.close()
    assert gone == [True]


async def test_a_newer_peer_of_a_viewer_takes_over_its_picture(player):
    feed = FakeFeed()
    first, second, other = Peer(feed, FPS), Peer(feed, FPS), Player()
    await player.take(await first.answer(check_offer(await player.offer())))
    await player.frames_there(5)
    await other.take(await second.answer(check_offer(await other.offer())))
    await other.frames_there(10)
    numbers = [paced.frame for paced in feed.taken]
    assert numbers == sorted(set(numbers))
    await asyncio.gather(first.close(), second.close(), other.connection.close())


async def test_a_player_that_asks_for_audio_too_gets_its_picture(player):
    peer = Peer(FakeFeed(), FPS)
    await player.take(await peer.answer(check_offer(await player.offer("audio", "video"))))
    await player.frames_there(3)
    await peer.close()


async def test_a_track_that_is_stopped_ends_even_while_it_waits():
    feed = FakeFeed(frames=1)
    track = Track(feed)
    await track.recv()
    waiting = asyncio.ensure_future(track.recv())
    await asyncio.sleep(0)
    track.stop()
    with pytest.raises(MediaStreamError):
        await waiting
    assert [paced.frame for paced, _ in feed.told] == [0]


async def test_a_peer_that_never_connects_is_lost_after_a_while(player, monkeypatch):
    peer = Peer(FakeFeed(), FPS)
    await peer.answer(check_offer(await player.offer()))
    assert not await peer.is_lost()
    monkeypatch.setattr("stream.webrtc.CONNECT_SECONDS", -1)
    assert await peer.is_lost()
    await peer.close()


async def test_names_that_no_one_can_resolve_are_taken_out_of_an_offer(player):
    offer = await player.offer()
    mdns = "a=candidate:1 1 udp 2113937151 9b36eaac-bb2e-49bb-bb78-21c41c499900.local 55555 typ host\r\n"
    cleaned = check_offer(offer.rstrip() + "\r\n" + mdns + "a=end-of-candidates\r\n")
    assert ".local" not in cleaned and "end-of-candidates" not in cleaned
    assert cleaned.count("a=candidate") == offer.count("a=candidate")


@pytest.mark.parametrize("text", ["", "hello", "v=0", "v=0\r\nm=video", "{}", "m=video 9 UDP/TLS/RTP/SAVPF 500\r\n"])
def test_what_is_not_an_offer_is_refused_with_what_would_be_right(text):
    with pytest.raises(ValueError, match="createOffer"):
        check_offer(text)


async def test_an_offer_without_a_video_to_send_is_refused(player):
    audio = await player.offer("audio")
    with pytest.raises(ValueError, match="must ask for one video"):
        check_offer(audio)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("a=recvonly", "a=sendonly", "must ask for one video"),
        ("a=ice-ufrag:", "a=x-ufrag:", "lacks its ICE"),
        ("VP8/90000", "VP7/90000", None),
        ("a=rtpmap:", "a=rtpmap:x", "createOffer"),
    ],
)
async def test_a_broken_offer_is_refused_before_anything_is_made(player, old, new, says):
    broken = (await player.offer()).replace(old, new)
    if says is None:
        broken = broken.replace("H264/90000", "H266/90000")
        says = "none of the codecs"
    with pytest.raises(ValueError, match=says):
        check_offer(broken)


async def test_no_cut_of_an_offer_raises_anything_but_a_sentence(player):
    offer = await player.offer()
    for end in range(0, len(offer), 97):
        try:
            cut = check_offer(offer[:end])
            peer = Peer(FakeFeed(), FPS)
            await peer.answer(cut)
            await peer.close()
        except ValueError as error:
            assert "offer" in str(error)


async def test_aiortc_still_keeps_what_we_put_into_its_sender(player):
    peer = Peer(FakeFeed(), FPS)
    await player.take(await peer.answer(check_offer(await player.offer())))
    await player.frames_there(2)
    (sender,) = peer._connection.getSenders()
    assert isinstance(sender, RTCRtpSender)
    assert isinstance(sender._RTCRtpSender__encoder, LiveEncoder)
    assert sender._RTCRtpSender__rtp_timestamp > 0
    await peer.close()
