"""stream/playout.py: what is asked of a receiver, and that it travels with each packet."""

import pytest
from aiortc.rtp import HeaderExtensionsMap, unpack_header_extensions
from serving import Player
from test_webrtc import FPS, FakeFeed

from stream.playout import CALM_SECONDS, URI, Bounds, PlayoutDelay, packed
from stream.webrtc import Media, Peer, check_offer


def test_the_bounds_are_read_and_what_is_none_is_refused():
    assert Bounds.parse("0-200") == (0, 200)
    assert Bounds.parse("0-0") == (0, 0)
    assert Bounds.parse("off") is None
    for text in ("", "200", "200-0", "a-b", "-1-5", "0-99999", "0-200ms"):
        with pytest.raises(ValueError, match="like 0-200"):
            Bounds.parse(text)


def test_the_three_bytes_are_two_numbers_of_twelve_bits_in_steps_of_ten_ms():
    assert packed(Bounds(0, 0)) == bytes([0, 0, 0])
    assert packed(Bounds(100, 400)) == bytes([0x00, 0xA0, 0x28])
    assert packed(Bounds(40950, 40950)) == bytes([0xFF, 0xFF, 0xFF])


def test_frames_are_shown_at_once_until_the_link_is_uneven_and_again_when_it_has_been_calm(clock):
    delay = PlayoutDelay(Bounds(0, 200), clock)
    assert delay.now == (0, 0)
    delay.hear(jitter=0.004, lost=0.0)
    assert delay.now == (0, 0)
    delay.hear(jitter=0.030, lost=0.0)
    assert delay.now == (10, 200)
    clock.advance(CALM_SECONDS - 1)
    delay.hear(jitter=0.004, lost=0.01)
    clock.advance(CALM_SECONDS - 1)
    assert delay.now == (10, 200)
    clock.advance(1)
    assert delay.now == (0, 0)


def test_bounds_that_are_one_number_are_kept_on_any_link(clock):
    for bounds in (Bounds(0, 0), Bounds(80, 80)):
        delay = PlayoutDelay(bounds, clock)
        delay.hear(jitter=0.5, lost=0.5)
        assert delay.now == bounds


class Recorder(HeaderExtensionsMap):
    """Keeps every extension with the number `number` that a receiver gets."""

    def __init__(self, number):
        super().__init__()
        self.number, self.seen = number, []

    def get(self, profile, value):
        extensions = dict(unpack_header_extensions(profile, value))
        self.seen.append(extensions.get(self.number))
        return super().get(profile, value)


async def watch(offers_it, bounds):
    """An answer and what came in the headers of a player's packets."""
    player, peer = Player(), Peer(FakeFeed(), FPS, Media(playout_delay=bounds))
    try:
        offer = await player.offer()
        if offers_it:
            offer = offer.replace("a=extmap:1 ", f"a=extmap:11 {URI}\r\na=extmap:1 ")
        answer = await peer.answer(check_offer(offer))
        (receiver,) = player.connection.getReceivers()
        recorder = receiver.transport._rtp_header_extensions_map = Recorder(11)
        await player.take(answer)
        await player.frames_there(5)
        return answer, recorder.seen, peer.playout_delay
    finally:
        await peer.close()
        await player.connection.close()


async def test_the_extension_is_in_the_answer_and_in_every_packet():
    answer, seen, on = await watch(True, Bounds(50, 200))
    assert f"a=extmap:11 {URI}" in answer
    assert len(seen) >= 5 and set(seen) == {packed(Bounds(50, 50))}
    assert on == (50, 50)


async def test_a_player_that_does_not_offer_the_extension_is_not_sent_it():
    answer, seen, on = await watch(False, Bounds(0, 200))
    assert URI not in answer
    assert len(seen) >= 5 and set(seen) == {None} and on is None


async def test_the_extension_can_be_switched_off():
    answer, seen, _ = await watch(True, None)
    assert URI not in answer and set(seen) == {None}
