"""The row decoder: on a CPU its plan of what is written where, on a GPU its kernels against their plain form."""

import copy

import pytest
import torch

from pipeline.graphs import cuda_graphs
from pipeline.vae import WanVAE, WanVAEConfig
from pipeline.vae_rows import Rings, RowDecoder, prepare

CONFIG = WanVAEConfig(dim=16)
HEIGHT, WIDTH = 3, 5


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return WanVAE(CONFIG).eval().requires_grad_(False)


def latent(frames):
    return torch.randn(16, frames, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(frames))


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@torch.inference_mode()
def test_the_kernels_decode_what_their_plain_form_decodes(vae):
    plain, rows = RowDecoder(prepare(vae), HEIGHT, WIDTH), RowDecoder(prepare(copy.deepcopy(vae).cuda()), HEIGHT, WIDTH)
    for part in latent(6).split([1, 3, 2], dim=1):
        torch.testing.assert_close(rows.decode(part.cuda()).cpu(), plain.decode(part), atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@torch.inference_mode()
def test_a_graph_of_the_rows_gives_the_same_bits(vae):
    eager, graph = (RowDecoder(prepare(copy.deepcopy(vae).cuda()), HEIGHT, WIDTH) for _ in range(2))
    graph.decode(latent(2).cuda())
    graph.record(cuda_graphs())
    for part in latent(6).cuda().split([1, 3, 2], dim=1):
        assert torch.equal(graph.decode(part), eager.decode(part))
