"""stream/webrtc.py: offers that are taken and refused, and a player that is no browser."""

import asyncio
import time

import numpy as np
import pytest
from aiortc import RTCRtpSender
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import RTCP_PSFB_APP, RtcpPsfbPacket, RtcpReceiverInfo, RtcpRrPacket, pack_remb_fci
from conftest import Stopwatch
from serving import Player, until

from pipeline.chunk import Chunk
from stream.codec import LiveEncoder
from stream.pacer import Pacer
from stream.webrtc import (
    MAX_CANDIDATES,
    SILENCE_SECONDS,
    WATCH_SECONDS,
    Fragment,
    Media,
    Peer,
    RestartRefused,
    Track,
    check_offer,
)

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


def leave_evenly(ticks, pacer):
    """Whether frames with these times on the media clock, in ticks, are one frame apart, but where the pacer moved the
    clock because no one fetched in time: a busy machine may be late."""
    steps = np.diff(ticks) % 2**32
    return np.all(steps >= 90_000 / FPS) and np.sum(steps > 90_000 / FPS) <= pacer.unfetched


@pytest.mark.parametrize("codec", ["VP8", "H264"])
async def test_a_player_gets_an_even_picture_with_the_codec_that_was_preferred(player, codec):
    feed, gone = FakeFeed(), []
    peer = Peer(feed, FPS, Media(codec=codec), gone=lambda: gone.append(True))
    answer = await peer.answer(check_offer(await player.offer()))
    await player.take(answer)
    for end in (30, 60, 90):  # a busy machine may spoil one
        await player.frames_there(end)
        median = np.median(np.diff([at for at, _ in player.frames[end - 25 : end]]))
        if median == pytest.approx(1 / FPS, rel=0.25):
            break
    assert median == pytest.approx(1 / FPS, rel=0.25)
    assert leave_evenly([frame.pts for _, frame in player.frames[5:]], feed.pacer)
    assert not await peer.is_lost()
    assert leave_evenly([rtp for _, rtp in feed.told], feed.pacer)
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


async def test_an_offer_with_a_flood_of_candidates_is_refused(player):
    line = "a=candidate:1 1 udp 2113937151 192.0.2.1 {} typ host\r\n"
    offer = await player.offer() + "".join(line.format(5000 + number) for number in range(MAX_CANDIDATES + 1))
    with pytest.raises(ValueError, match="candidates"):
        check_offer(offer)


async def test_candidates_come_later_and_only_so_many_and_of_this_ice_session(player):
    peer = Peer(FakeFeed(), FPS)
    offer = await player.offer()
    bare = "".join(line for line in offer.splitlines(keepends=True) if not line.startswith("a=candidate"))
    await player.take(await peer.answer(check_offer(bare)))
    ufrag = next(line for line in offer.splitlines() if line.startswith("a=ice-ufrag"))
    lines = [line for line in offer.splitlines() if line.startswith("a=candidate")]
    name = "a=candidate:1 1 udp 2113937151 9b36eaac.local 55555 typ host"
    await peer.add_candidates(Fragment.parse("\r\n".join([ufrag, "a=ice-pwd:x", "a=mid:0", *lines, name])))
    await player.frames_there(3)
    with pytest.raises(RestartRefused):
        await peer.add_candidates(Fragment.parse("a=ice-ufrag:other\r\n"))
    with pytest.raises(ValueError, match="a=candidate"):
        await peer.add_candidates(Fragment.parse("a=candidate:1 1 udp x"))
    many = Fragment.parse("a=candidate:1 1 udp 2113937151 192.0.2.1 5000 typ host\r\n" * (MAX_CANDIDATES + 1))
    with pytest.raises(ValueError, match="at most"):
        await peer.add_candidates(many)
    await peer.close()


def test_a_fragment_is_taken_as_a_library_writes_it_for_firefox():
    candidate = "0 1 UDP 2122187007 4e2686b6.local 55653 typ host"
    fragment = f"a=ice-ufrag:7c97\r\nm=video 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\na=candidate:{candidate}\r\na=\r\n"
    assert Fragment.parse(fragment + "a=end-of-candidates\r\n") == Fragment((candidate,), "7c97")
    assert Fragment.parse("") == Fragment((), None)


@pytest.mark.parametrize("text", ["v", "hello", "<html>", "=a\r\n", '{"candidate": 1}'])
def test_what_is_no_fragment_is_refused(text):
    with pytest.raises(ValueError, match="lines like a=candidate"):
        Fragment.parse(text)


async def until_lost(peer, seconds):
    """Wait until a peer is known to be lost, asked as the server asks."""
    async with asyncio.timeout(seconds):
        while not await peer.is_lost():  # noqa: ASYNC110  it is a watch that asks
            await asyncio.sleep(WATCH_SECONDS)


async def swallow(data):
    """A transport whose network is gone."""


async def test_a_player_that_vanishes_without_a_word_is_noticed_within_five_seconds(player):
    peer = Peer(FakeFeed(), FPS)
    await player.take(await peer.answer(check_offer(await player.offer())))
    await player.frames_there(3)
    assert not await peer.is_lost()
    (receiver,) = player.connection.getReceivers()
    receiver.transport._send_rtp = swallow
    heard_at, stopwatch = peer._heard_at, Stopwatch()
    await until_lost(peer, 10)
    assert stopwatch.seconds <= 5 and time.monotonic() - heard_at > SILENCE_SECONDS
    await peer.close()


async def test_a_player_that_is_sent_nothing_for_a_while_is_not_taken_for_lost(player, monkeypatch):
    monkeypatch.setattr("stream.webrtc.SILENCE_SECONDS", 1.0)
    feed = FakeFeed(frames=8)
    peer = Peer(feed, FPS)
    await player.take(await peer.answer(check_offer(await player.offer())))
    with pytest.raises(TimeoutError):
        await until_lost(peer, 3.5)
    feed.pacer.put(Chunk("a.1", 2, 8, np.full((4, 96, 160, 3), 90, np.uint8)))
    await player.frames_there(9)
    assert not await peer.is_lost()
    await peer.close()


async def test_reports_of_the_receiver_reach_the_rate_and_the_encoder_follows(player):
    peer = Peer(FakeFeed(), FPS)
    await player.take(await peer.answer(check_offer(await player.offer())))
    await player.frames_there(3)
    (receiver,) = player.connection.getReceivers()
    sender, tell = peer._sender, receiver.transport._send_rtp
    receiver.transport._send_rtp = swallow  # or it says something else meanwhile
    remb = RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=1, media_ssrc=0, fci=pack_remb_fci(200_000, [sender._ssrc]))
    await tell(bytes(remb))
    await until(lambda: peer.bitrate == 200_000)
    assert sender._RTCRtpSender__encoder.target_bitrate == 200_000
    loss = RtcpReceiverInfo(
        ssrc=sender._ssrc, fraction_lost=250, packets_lost=9, highest_sequence=9, jitter=9000, lsr=0, dlsr=0
    )
    async with asyncio.timeout(10):
        while peer.bitrate == 200_000:
            await tell(bytes(RtcpRrPacket(ssrc=1, reports=[loss])))
            await asyncio.sleep(0.1)
            await peer.is_lost()
    assert peer.bitrate < 200_000
    await peer.close()


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="VP8, H264"):
        Media(codec="H266")
    for low, high in ((10, 1_000_000), (900_000, 800_000), (100_000, 10**9)):
        with pytest.raises(ValueError, match="the lower one first"):
            Media(min_bitrate=low, max_bitrate=high)
