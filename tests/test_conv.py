"""The kernel that convolves, run by Triton's interpreter on a CPU, against what it is to compute."""

import pytest
import torch
from interpreter import run_interpreted

from kernels import conv
from kernels.conv import Arena, Plane, Then, Tile

PLANE = Plane(5, 7)
TOLERANCE = 2e-3
"""Of float16, relative."""


def arena(frames, channels, plane=PLANE, fill=True):
    made = Arena.zeros(plane, frames, channels, torch.empty(0, dtype=torch.float16))
    for number in range(frames if fill else 0):
        made.frame(number).copy_(torch.randn(plane.height, plane.width, channels))
    return made


def weights(*shape):
    return torch.randn(shape) / torch.tensor(shape[1:]).prod() ** 0.5, torch.randn(shape[0])


def half(taps):
    return taps._replace(weights=taps.weights.half())


def with_all_that_follows(outputs, tile):
    """A 3 x 3 x 3 convolution: residual, kept in its place, normed."""
    taps = half(conv.kernel(*weights(outputs, 32, 3, 3, 3)))
    kept, scale = arena(3, outputs), (torch.rand(outputs) + 0.5) * outputs**0.5
    then = Then(kept=kept, residual=kept, normed=arena(3, outputs, fill=False), scale=scale)
    return arena(5, 32), taps, then, 2, [3, 0, 4, 1, 2, 0, 2, 0, 1, 2], tile


def doubled():
    then = Then(kept=arena(3, 32, PLANE.doubled, fill=False))
    return arena(3, 64), half(conv.doubling_kernel(*weights(32, 64, 3, 3))), then, 2, [2, 0, 1, 2], Tile(16, 32)


def two_blocks():
    then = Then(kept=arena(3, 64, fill=False))
    return arena(5, 32), half(conv.kernel(*weights(64, 32, 3, 1, 1))), then, 2, [3, 1, 0, 2, 0, 1], Tile(16, 32)


CASES = {
    "one part": lambda: with_all_that_follows(32, Tile(16, 32)),
    "two parts": lambda: with_all_that_follows(48, Tile(16, 32, 16)),
    "doubled": doubled,
    "two blocks": two_blocks,
}


def results(case, run):
    """What is written: kept and normed, with their margins."""
    torch.manual_seed(0)
    source, taps, then, count, table, tile = CASES[case]()
    run(source, taps, then, count, torch.tensor(table, dtype=torch.int32), tile)
    return [each.rows.float() for each in (then.kept, then.normed) if each is not None]


def compare():
    for case in CASES:
        for found, expected in zip(results(case, conv._launch), results(case, conv.convolve), strict=True):
            error = ((found - expected).norm() / expected.norm()).item()
            assert error < TOLERANCE, (case, error)
    assert torch.equal(summed(conv._launch_shares), summed(conv.add_shares))


def summed(run):
    """Five pictures' shares, added up."""
    torch.manual_seed(0)
    late, frames = torch.zeros(2, 3, PLANE.height, PLANE.width), torch.empty(5, 3, PLANE.height, PLANE.width)
    for frame in frames:
        shares = Arena.zeros(PLANE, 1, 9, torch.empty(0))
        shares.frame(0).copy_(torch.randn(PLANE.height, PLANE.width, 9))
        run(shares, late, frame)
    return frames


@pytest.mark.skipif(conv.triton is None, reason="needs triton")
def test_the_kernel_computes_what_its_plain_form_does():
    run_interpreted(__file__)


if __name__ == "__main__":
    compare()
