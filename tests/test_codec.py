"""stream/codec.py: what leaves is what came in, at the rate that was asked for."""

from fractions import Fraction

import av
import numpy as np
import pytest
from aiortc.codecs.h264 import h264_depayload
from aiortc.codecs.vpx import vp8_depayload

from stream.codec import MAX_BITRATE, MIN_BITRATE, LiveEncoder, bitrate_for

DEPAYLOAD = {"VP8": vp8_depayload, "H264": h264_depayload}
DECODER = {"VP8": "libvpx", "H264": "h264"}


def picture(number, width=320, height=192):
    """A smooth picture with a bar that moves."""
    image = np.tile(np.linspace(40, 200, width, dtype=np.uint8)[None, :, None], (height, 1, 3))
    image[:, (8 * number) % width : (8 * number) % width + 16] = (250, 30, 30)
    frame = av.VideoFrame.from_ndarray(image, "rgb24")
    frame.pts, frame.time_base = number * 5625, Fraction(1, 90_000)
    return frame


@pytest.mark.parametrize("codec", DEPAYLOAD)
def test_a_decoder_shows_what_was_encoded(codec):
    encoder, decoder = LiveEncoder(codec, 16), av.CodecContext.create(DECODER[codec], "r")
    shown = []
    for number in range(12):
        payloads, timestamp = encoder.encode(picture(number))
        assert timestamp == number * 5625
        assert max(map(len, payloads)) <= 1300
        shown += decoder.decode(av.Packet(b"".join(DEPAYLOAD[codec](payload) for payload in payloads)))
    assert len(shown) >= 11
    wrong = np.abs(shown[10].to_ndarray(format="rgb24").astype(int) - picture(10).to_ndarray(format="rgb24"))
    assert np.mean(wrong) < 6


@pytest.mark.parametrize("codec", DEPAYLOAD)
def test_a_key_frame_comes_when_it_is_asked_for_and_not_by_itself(codec):
    encoder = LiveEncoder(codec, 16)
    keys = [number for number in range(60) if is_key(codec, encoder, number, forced=number == 40)]
    assert keys == [0, 40]


def is_key(codec, encoder, number, forced):
    first = DEPAYLOAD[codec](encoder.encode(picture(number), forced)[0][0])
    return first[0] & 1 == 0 if codec == "VP8" else b"\x00\x00\x01\x67" in first


@pytest.mark.parametrize("codec", DEPAYLOAD)
def test_the_rate_is_held_for_a_picture_that_is_hard_to_encode(codec):
    encoder, rng = LiveEncoder(codec, 16), np.random.default_rng(1)
    encoder.target_bitrate = 500_000
    sizes = []
    for number in range(64):
        frame = av.VideoFrame.from_ndarray(rng.integers(90, 150, (192, 320, 3), np.uint8), "rgb24")
        frame.pts, frame.time_base = number * 5625, Fraction(1, 90_000)
        sizes.append(sum(map(len, encoder.encode(frame)[0])))
    assert 8 * sum(sizes[16:]) / 3 < 1.6 * 500_000


def test_the_target_stays_within_its_limits():
    encoder = LiveEncoder("VP8", 16)
    encoder.target_bitrate = 1
    assert encoder.target_bitrate == MIN_BITRATE
    encoder.target_bitrate = 10**9
    assert encoder.target_bitrate == MAX_BITRATE
    assert bitrate_for(320, 192, 16) == 589_824
