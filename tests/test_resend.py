"""stream/resend.py: lost packets are sent again, but never so many that nothing else gets through."""

import numpy as np
import pytest
from serving import Player
from test_webrtc import FPS, FakeFeed, leave_evenly

from stream.rate import Rate
from stream.resend import AGAIN_SECONDS, KEY_SECONDS, SHARE, Resends
from stream.webrtc import Peer, check_offer


@pytest.fixture
def keys():
    """Grows with each key frame that is asked for."""
    return []


@pytest.fixture
def resends(clock, keys):
    rate = Rate(100_000, 4_000_000, clock)
    rate.hear_estimate(400_000)
    made = Resends(rate, lambda: keys.append(clock()), clock, lambda: made.keyed_at)
    made.rate, made.keyed_at = rate, float("-inf")
    return made


def test_a_lost_packet_is_sent_again_and_once_more_only_after_a_while(resends, clock):
    assert resends.allow(1, 1000, 0.05)
    assert not resends.allow(1, 1000, 0.05)
    clock.advance(AGAIN_SECONDS)
    assert resends.allow(1, 1000, 0.15)
    assert resends.allow(2, 1000, 0.15)


def test_what_is_old_is_not_sent_again_but_made_up_for_by_one_key_frame(resends, clock, keys):
    assert not resends.allow(1, 1000, 1.5)
    assert not resends.allow(2, 1000, 1.4)
    clock.advance(2)
    assert not resends.allow(3, 1000, 2.5)
    assert len(keys) == 1
    assert resends.allow(4, 1000, 0.5)


def test_on_a_link_that_became_narrow_a_key_frame_comes_for_what_was_lost(resends, clock, keys):
    resends.rate.hear_estimate(250_000)
    assert not resends.allow(1, 1000, 0.1) and not resends.allow(2, 1000, 0.2) and len(keys) == 1
    clock.advance(0.1)
    assert resends.allow(9, 1000, 0.05), "what belongs to the key frame is sent again"
    clock.advance(2)
    assert resends.allow(20, 1000, 0.1) and len(keys) == 1


def test_nothing_from_before_a_key_frame_is_sent_again_whatever_that_was_made_for(resends, clock, keys):
    resends.keyed_at = clock()
    resends.rate.hear_estimate(250_000)
    clock.advance(0.05)
    assert not resends.allow(1, 1000, 0.1)
    resends.keyed_at = clock()
    clock.advance(0.05)
    assert resends.allow(2, 1000, 0.02) and not keys, "the key frame of the fall was made already"


def test_while_packets_are_sent_again_no_key_frame_is_needed(resends, keys):
    assert resends.allow(1, 1000, 0.1) and not resends.allow(1, 1000, 0.1)
    assert not keys


def test_a_receiver_that_asks_for_everything_gets_its_share_and_a_key_frame_now_and_then(resends, clock, keys):
    sent = 0
    for step in range(1000):
        sent += sum(resends.allow(number, 1250, 0.0) for number in range(10 * step, 10 * step + 10))
        clock.advance(0.01)
    # Ten seconds, and the second that may come at once.
    assert 8 * 1250 * sent <= 11 * SHARE * 400_000
    assert 8 * 1250 * sent >= SHARE * 400_000
    assert 8 <= len(keys) <= 10 and min(np.diff(keys)) >= KEY_SECONDS


async def test_a_player_that_lost_packets_gets_them_and_sees_every_frame():
    player, feed = Player(), FakeFeed()
    peer = Peer(feed, FPS)
    await player.take(await peer.answer(check_offer(await player.offer())))
    transport, lost, ssrc = peer._sender.transport, [], peer._sender._ssrc.to_bytes(4, "big")
    send = transport._send_rtp

    async def lossy(data):
        if data[8:12] == ssrc and data[3] % 5 == 0 and len(player.frames) > 3 and len(lost) < 4:
            lost.append(data)
        else:
            await send(data)

    transport._send_rtp = lossy
    try:
        await player.frames_there(40)
    finally:
        await peer.close()
        await player.connection.close()
    assert len(lost) == 4
    assert leave_evenly([frame.pts for _, frame in player.frames], feed.pacer)
