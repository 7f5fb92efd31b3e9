"""Keys and values in float8: what packing loses, and what it does not; its kernels in Triton's interpreter."""

import pytest
import torch
from interpreter import run_interpreted

from kernels import packed
from kernels.fp8 import FP8
from kernels.packed import pack, unpack


def heads(scale=1.0):
    return torch.randn(50, 3, 16, generator=torch.Generator().manual_seed(0)) * scale


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_number_keeps_four_binary_places_whatever_its_heads_scale(scale):
    x = heads(scale)
    found = unpack(pack(x), torch.float32)
    assert ((found - x).abs() <= x.abs() / 16 + x.abs().amax(-1, keepdim=True) * 2**-17).all()
    assert 0.01 < (found - x).norm() / x.norm() < 0.04


def test_what_was_unpacked_is_exact_in_bfloat16_and_packed_again_the_same_numbers():
    first = pack(heads())
    unpacked = unpack(first, torch.float32)
    assert first.values.dtype == FP8 and torch.equal(unpack(first, torch.bfloat16).float(), unpacked)
    assert torch.equal(unpack(pack(unpacked.bfloat16()), torch.float32), unpacked)


def test_zeros_and_powers_of_two_stay_what_they_are():
    x = torch.tensor([[0.0, 0, 0, 0], [448, 1, 2, 0], [2.0**-20, 0, 0, 2.0**-22], [449, -448, 0, 1]])
    assert torch.equal(unpack(pack(x), torch.float32)[:3], x[:3])


def compare(x):
    found, expected = packed._launch_pack(x), packed._pack_plainly(x)
    assert torch.equal(found.scale, expected.scale)
    assert torch.equal(found.values.view(torch.uint8), expected.values.view(torch.uint8))
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(packed._launch_unpack(*found, dtype), packed._unpack_plainly(*found, dtype))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_the_kernels_give_the_plain_forms_bits():
    for scale in (1e-4, 3.0, 1e4):
        for dtype in (torch.float32, torch.bfloat16):  # one in sixteen of its numbers is as near to two of float8
            compare(heads(scale).to("cuda", dtype))


@pytest.mark.skipif(packed.triton is None, reason="needs triton")
def test_the_kernels_give_the_plain_forms_bits():
    run_interpreted(__file__)


if __name__ == "__main__":
    for scale in (1e-4, 3.0, 1e30):  # the interpreter rounds 125 to 64: numbers that need no rounding
        compare(unpack(pack(heads(scale)), torch.float32))
    compare(torch.zeros(2, 16))
