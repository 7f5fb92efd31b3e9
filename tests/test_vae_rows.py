"""The row decoder: on a CPU its plan of what is written where; its kernels on a GPU, and in Triton's interpreter."""

import copy
from unittest import mock

import pytest
import torch
from interpreter import run_interpreted

from kernels import conv
from pipeline import vae_rows
from pipeline.graphs import cuda_graphs
from pipeline.vae import WanVAE, WanVAEConfig
from pipeline.vae_precision import at_vae_precision
from pipeline.vae_rows import Rings, RowDecoder, prepare, rows_missing

HEIGHT, WIDTH = 3, 5
ROUNDED = {torch.bfloat16: 2e-2, torch.float16: 2.5e-3}
"""Of frames, relative: the plain form of 16 to 96 channels is off by 1.0e-2 to 1.6e-2, and by 1.4e-3 to 2.1e-3."""


def network(dim):
    torch.manual_seed(0)
    return WanVAE(WanVAEConfig(dim=dim)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vae():
    return network(16)


def latent(frames, size=(HEIGHT, WIDTH)):
    return torch.randn(16, frames, *size, generator=torch.Generator().manual_seed(frames))


def exactly(vae):
    return RowDecoder(prepare(vae, torch.float32), HEIGHT, WIDTH)


@torch.inference_mode()
@pytest.mark.parametrize("cuts", [[1] * 6, [3, 3], [6], [2, 4]])
def test_rows_decode_what_the_network_decodes(vae, cuts):
    rows, plain = exactly(vae), vae.decoder()
    for part in latent(sum(cuts)).split(cuts, dim=1):
        expected = plain.decode_unclamped(part)
        torch.testing.assert_close(rows.decode_unclamped(part), expected, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_reset_row_stream_begins_anew(vae):
    rows = exactly(vae)
    first = rows.decode(latent(2))
    rows.decode(latent(3))
    rows.reset()
    assert torch.equal(rows.decode(latent(2)), first)


def recorded(run):
    """What a CUDA graph is: the same launches on the same tensors, whatever these hold by then."""
    return lambda: run().clone()


@torch.inference_mode()
def test_recorded_launches_follow_the_rings_by_the_table_alone(vae):
    rows, plain = exactly(vae), vae.decoder()
    rows.decode(latent(2))
    rows.record(recorded)
    for _ in range(3):
        rows.reset(), plain.reset()
        for part in latent(5).split(1, dim=1):
            torch.testing.assert_close(rows.decode(part), plain.decode(part), atol=1e-4, rtol=1e-4)


def test_rings_never_write_what_is_still_read():
    rings = Rings(["a", "b"], free=2)
    for _ in range(5):
        past, new = rings.see("a"), rings.extend("a")
        lent = rings.lend("passing")
        assert len({*past, new, lent, *rings.see("b")}) == 6
        assert rings.read("a") == [*past, new] and rings.take_back("passing") == [lent]


def assert_only_rounded(dim, dtype, size, cuts, device="cpu"):
    """Each frame is as near the float32 decoder's as rounding to `dtype` lets it be."""
    vae = network(dim)
    exact, rows = vae.decoder(), RowDecoder(prepare(copy.deepcopy(vae).to(device), dtype), *size)
    for part in latent(sum(cuts), size).split(cuts, dim=1):
        expected, found = exact.decode(part), rows.decode(part.to(device)).cpu()
        errors = (found - expected).square().sum((0, 2, 3)).sqrt() / expected.square().sum((0, 2, 3)).sqrt()
        assert errors.max() < ROUNDED[dtype], (dim, dtype, errors.tolist())


@torch.inference_mode()
@pytest.mark.parametrize("dtype", ROUNDED, ids=str)
@pytest.mark.parametrize("dim", [16, 24])
def test_rows_in_16_bits_are_off_by_the_rounding_alone(dim, dtype):
    assert_only_rounded(dim, dtype, (HEIGHT, WIDTH), [1, 3, 2])


@torch.inference_mode()
def in_the_interpreter():
    """In float16, for it takes bfloat16 for integers; widths whose outputs do and do not fill their tiles."""
    kernels = {"convolve": conv._launch, "norm_silu_frames": conv._launch_norms, "add_shares": conv._launch_shares}
    with mock.patch.multiple(vae_rows, **kernels):
        for dim in (16, 24):
            assert_only_rounded(dim, torch.float16, (1, 2), [1, 1])


@pytest.mark.slow
@pytest.mark.skipif(conv.triton is None, reason="needs triton")
def test_the_kernels_of_a_narrow_decoder_are_off_by_the_rounding_alone():
    run_interpreted(__file__)


def test_sizes_that_the_kernels_do_not_take_are_refused_with_the_reason():
    for config, reason in (
        (WanVAEConfig(dim=12), "multiples of 8 channels, not 12"),
        (WanVAEConfig(dim=128), "96 channels at full resolution, or at most 64, not 128"),
        (WanVAEConfig(dim=16, multipliers=(1, 2, 2, 4)), "multipliers"),
        (WanVAEConfig(dim=16, residual_blocks=1), "residual blocks"),
        (WanVAEConfig(dim=16, temporal_downsample=(True, True, False)), "halvings of time"),
    ):
        with torch.device("meta"), pytest.raises(ValueError, match=f"rows cannot run: .*{reason}.*; bf16 can"):
            at_vae_precision(WanVAE(config), "rows", (HEIGHT, WIDTH))
    assert all(rows_missing(WanVAEConfig(dim=dim)) is None for dim in (8, 64, 96))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@torch.inference_mode()
@pytest.mark.parametrize(("dim", "dtype"), [(16, torch.bfloat16), (96, torch.float16)], ids=["16", "96"])
def test_on_a_gpu_the_kernels_are_off_by_the_rounding_alone(dim, dtype):
    assert_only_rounded(dim, dtype, (HEIGHT, WIDTH), [1, 3, 2], "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@torch.inference_mode()
def test_a_graph_of_the_rows_gives_the_same_bits(vae):
    eager, graph = (RowDecoder(prepare(copy.deepcopy(vae).cuda()), HEIGHT, WIDTH) for _ in range(2))
    graph.decode(latent(2).cuda())
    graph.record(cuda_graphs())
    graph.reset()
    for part in latent(6).cuda().split([1, 3, 2], dim=1):
        assert torch.equal(graph.decode(part), eager.decode(part))


if __name__ == "__main__":
    in_the_interpreter()
