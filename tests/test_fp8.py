"""The kernel that quantizes rows, on a GPU and in Triton's interpreter; the plain form is in test_linear.py."""

import pytest
import torch
import torch.nn.functional as F
from interpreter import run_interpreted

from kernels import fp8
from kernels.fp8 import quantize_rows

DTYPES = (torch.float32, torch.bfloat16)


def rows(width, device="cpu"):
    torch.manual_seed(0)
    x = torch.randn(3, 5, width, device=device) * torch.logspace(-3, 3, 5, device=device)[:, None]
    x[0, 0] = 0
    return x


def compare(x, gelu, tolerance):
    """Scales as the plain form has them; a number is the same or, where it lies between two, the other."""
    found = fp8._launch(x, gelu=gelu)
    expected = quantize_rows(F.gelu(x.float(), approximate="tanh") if gelu else x)
    torch.testing.assert_close(found.scale, expected.scale, rtol=tolerance, atol=0)
    ours, theirs = (each.values.float() for each in (found, expected))
    apart = (ours - theirs).abs()
    assert (apart <= theirs.abs() / 8 + 2**-9).all() and (apart > 0).float().mean() < 0.02, (apart > 0).float().mean()


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or fp8.fp8_missing(torch.device("cuda")) is not None, reason="needs an FP8 GPU"
)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("width", [64, 1536, 8960, 13824])
def test_on_a_gpu_the_kernel_quantizes_as_the_plain_form(width, gelu):
    for dtype in DTYPES:
        compare(rows(width, "cuda").to(dtype), gelu, 1e-5)


@pytest.mark.skipif(fp8.triton is None, reason="needs triton")
def test_the_kernel_quantizes_as_the_plain_form():
    run_interpreted(__file__)


if __name__ == "__main__":
    # Of numbers that need no rounding, for the interpreter's is another: each is 448 times a number of float8, so that
    # the scale is a whole one.
    exact = quantize_rows(rows(96)).values.float()
    exact[..., 0] = 448
    compare(exact, False, 1e-5)
