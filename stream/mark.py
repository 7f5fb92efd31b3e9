"""A mark in a frame's pixels: which frame of which chunk it is, and the newest control that it obeys.

For measurements: `chunkcast serve --mark` stamps each frame before it is encoded, and whoever sees the picture can
read what it shows, whatever lost or held up frames on the way. The mark is BITS black and white blocks from the top
left corner on, row by row, the highest bit first: large enough to outlive the codecs at their lowest rates, and with a
check that finds a mark that did not. benchmarks/latency.js is the reader of pages.

H W the frame's height and width in pixels.
"""

from typing import NamedTuple

import numpy as np

FRAME_BITS, CHUNK_BITS, SEQUENCE_BITS, CHECK_BITS = 20, 16, 16, 12
BITS = FRAME_BITS + CHUNK_BITS + SEQUENCE_BITS + CHECK_BITS
POLYNOMIAL, FIRST = 0x80F, 0xABC
"""Of the check, a CRC of 12 bits. It begins with something: a picture that is black has no mark."""
BLACK, WHITE, BETWEEN = 16, 240, 128
WIDE = 512
"""From this width on blocks are larger: a large picture has fewer bits a pixel."""


class Mark(NamedTuple):
    """Numbers as Paced has them, modulo 2 to the power of their bits."""

    frame: int
    chunk: int
    sequence: int


def block_size(width: int) -> int:
    """Pixels along a side of a block, in a frame of this width."""
    return 8 if width < WIDE else 16


def rows(width: int) -> int:
    """Pixels from the top that the mark may cover, in a frame of this width."""
    size = block_size(width)
    return size * -(-BITS // (width // size))


def stamp(image: np.ndarray, mark: Mark) -> None:
    """Write a mark into an image (H, W, 3) uint8, in place. ValueError where it is too small for one."""
    height, width = image.shape[:2]
    if width < block_size(width) or rows(width) > height:
        raise ValueError(f"a frame of {width}x{height} is too small for a mark of {BITS} blocks of 8x8; 160x32 will do")
    size, across = block_size(width), width // block_size(width)
    bits = np.zeros(-(-BITS // across) * across, np.uint8)
    bits[:BITS] = _bits(mark)
    blocks = (BLACK + (WHITE - BLACK) * bits).reshape(-1, across).repeat(size, 0).repeat(size, 1)
    image[: blocks.shape[0], : blocks.shape[1]] = blocks[..., None]


def read(image: np.ndarray) -> Mark | None:
    """The mark of an image (H, W, 3) uint8 RGB; None where there is none, or it did not outlive the codec."""
    width = image.shape[1]
    size, across = block_size(width), width // block_size(width)
    covered = image[: rows(width), : across * size].mean(2)
    blocks = covered.reshape(-1, size, across, size)[:, size // 4 : -size // 4, :, size // 4 : -size // 4]
    value = 0
    for bit in (blocks.mean((1, 3)) > BETWEEN).ravel()[:BITS]:
        value = value << 1 | int(bit)
    payload, found = value >> CHECK_BITS, value & (1 << CHECK_BITS) - 1
    if _check(payload) != found:
        return None
    sequence, rest = payload & (1 << SEQUENCE_BITS) - 1, payload >> SEQUENCE_BITS
    return Mark(rest >> CHUNK_BITS, rest & (1 << CHUNK_BITS) - 1, sequence)


def _bits(mark: Mark) -> np.ndarray:
    """The mark as (BITS,) zeros and ones."""
    payload = 0
    for number, bits in zip(mark, (FRAME_BITS, CHUNK_BITS, SEQUENCE_BITS), strict=True):
        payload = payload << bits | number & (1 << bits) - 1
    value = payload << CHECK_BITS | _check(payload)
    return np.array([value >> bit & 1 for bit in reversed(range(BITS))], np.uint8)


def _check(payload: int) -> int:
    check = FIRST
    for bit in reversed(range(BITS - CHECK_BITS)):
        overflows = (check >> CHECK_BITS - 1 ^ payload >> bit) & 1
        check = check << 1 & (1 << CHECK_BITS) - 1 ^ POLYNOMIAL * overflows
    return check
