"""The row decoder: on a CPU its plan of what is written where, on a GPU its kernels against their plain form."""

import copy

import pytest
import torch

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
    return RowDecoder(vae, HEIGHT, WIDTH, prepare(vae, torch.float32))


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


class Recorded:
    """What a CUDA graph is: the same launches on the same tensors, whatever these hold by then."""

    def __init__(self, rows, count):
        steps = rows.steps(count)
        lengths = [len(step.plan()) for step in steps]
        table = rows._table(count, sum(lengths))
        self.replay = lambda: rows._launch(steps, lengths, table)
        rows.reset()


@torch.inference_mode()
def test_recorded_launches_follow_the_rings_by_the_table_alone(vae):
    rows, plain = exactly(vae), vae.decoder()
    rows.decode(latent(2))
    rows._graphs[1] = Recorded(rows, 1)
    for _ in range(3):
        rows.reset(), plain.reset()
        for part in latent(5).split(1, dim=1):
            torch.testing.assert_close(rows.decode(part), plain.decode(part), atol=1e-4, rtol=1e-4)


def test_rings_never_write_what_is_still_read():
    rings = Rings(["a", "b"], free=4)
    for count in (1, 2, 2, 1):
        new = rings.extend("a", count)
        assert not set(new) & set(rings._past["b"])
        seen = rings.read("a")
        assert seen[-count:] == new and len(seen) == count + 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@torch.inference_mode()
def test_the_kernels_decode_what_their_plain_form_decodes(vae):
    plain, rows = RowDecoder(vae, HEIGHT, WIDTH), None
    for part in latent(6).split([1, 3, 2], dim=1):
        rows = rows or RowDecoder(copy.deepcopy(vae).cuda(), HEIGHT, WIDTH)
        torch.testing.assert_close(rows.decode(part.cuda()).cpu(), plain.decode(part), atol=2e-2, rtol=2e-2)
