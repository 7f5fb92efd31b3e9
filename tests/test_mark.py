"""stream/mark.py: a mark outlives the codecs at low rates, and what did not outlive them is not believed."""

from fractions import Fraction

import av
import numpy as np
import pytest

from stream.codec import LiveEncoder
from stream.mark import Mark, block_size, read, rows, stamp
from stream.rate import Rate

DECODER = {"VP8": "libvpx", "H264": "h264"}
SIZES = ((160, 96), (256, 256), (320, 192), (832, 480))


def texture(number, width, height):
    """A picture that is hard to encode: a fine texture that slides."""
    wide = np.random.default_rng(1).integers(40, 220, (height // 2, width, 3), np.uint8).repeat(2, 0).repeat(2, 1)
    return np.ascontiguousarray(wide[:height, 3 * number % width :][:, :width])


@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_read_and_nothing_below_it_is_touched(size):
    image = texture(0, *size)
    below = image[rows(size[0]) :].copy()
    stamp(image, Mark(2**20 - 2, 2**16 + 5, 77))
    assert read(image) == Mark(2**20 - 2, 5, 77), "numbers wrap"
    assert np.array_equal(image[rows(size[0]) :], below)


@pytest.mark.parametrize(("codec", "kbit"), [("VP8", 100), ("H264", 100)])
@pytest.mark.parametrize("size", [(320, 192), (832, 480)])
def test_marks_outlive_the_encoders_at_the_lowest_rate_that_is_served(codec, kbit, size):
    encoder = LiveEncoder(codec, 16, Rate(1000 * kbit, 1000 * kbit))
    decoder = av.CodecContext.create(DECODER[codec], "r")
    found = []
    for number in range(48):
        image = texture(number, *size)
        stamp(image, Mark(number, number // 4, number // 9))
        frame = av.VideoFrame.from_ndarray(image, "rgb24")
        frame.pts, frame.time_base = number * 5625, Fraction(1, 90_000)
        for shown in decoder.decode(av.Packet(encoder.compress(frame)[0])):
            found.append(read(shown.to_ndarray(format="rgb24")))
    wanted = [Mark(number, number // 4, number // 9) for number in range(len(found))]
    assert len(found) >= 47 and found == wanted


def test_a_picture_without_a_mark_and_a_mark_that_is_damaged_are_none():
    blank = [np.full((192, 320, 3), level, np.uint8) for level in (0, 90, 255)]
    assert [read(image) for image in [*blank, texture(0, 320, 192)]] == [None] * 4
    size = block_size(320)
    for place in range(64):
        image = blank[1].copy()
        stamp(image, Mark(1234, 308, 9))
        row, column = divmod(place, 320 // size)
        block = image[row * size :, column * size :][:size, :size]
        block[:] = 255 - block
        assert read(image) is None, f"block {place}"


def test_a_frame_that_is_too_small_for_a_mark_is_refused_with_what_would_do():
    with pytest.raises(ValueError, match="160x32"):
        stamp(np.zeros((16, 64, 3), np.uint8), Mark(0, 0, 0))
