import math

import numpy as np
import pytest
import torch

from benchmarks.fingerprint import SMALL_WAN, small_parts
from pipeline.chunk import Ended, SessionSpec
from pipeline.engine import Engine
from pipeline.presets import find_preset
from pipeline.tiny.vae import TinyVAE
from pipeline.vae import WanVAE, WanVAEConfig
from pipeline.vae_precision import VAE_PRECISIONS, at_vae_precision

SIZE = (3, 5)
LEAST_PSNR = {"bf16": 38, "fp16": 55, "rows": 40, "rows-fp16": 55}
"""Of random weights at width 16, in dB against frames of standard deviation 0.5; those of true size: benchmarks.vae."""


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    made = WanVAE(WanVAEConfig(dim=16)).eval().requires_grad_(False)
    last = made._modules["decoder"].head[2]
    last.weight.mul_(0.5 / made.decoder().decode_unclamped(latent(2)).std())
    return made


def latent(frames):
    return torch.randn(16, frames, *SIZE, generator=torch.Generator().manual_seed(frames))


def psnr(found, expected):
    return 10 * math.log10(4 / (found.float() - expected).square().mean().item())


@torch.inference_mode()
@pytest.mark.parametrize("precision", LEAST_PSNR)
def test_each_precision_streams_close_to_the_exact_decoder(vae, precision):
    decoder, exact = at_vae_precision(vae, precision, SIZE).decoder(), vae.decoder()
    assert decoder.reach == exact.reach
    for _ in range(2):  # and a second stream through the same decoder
        decoder.reset(), exact.reset()
        for part in latent(4).split([1, 2, 1], dim=1):
            found, expected = decoder.decode(part), exact.decode(part)
            assert found.shape == expected.shape and psnr(found, expected) > LEAST_PSNR[precision]


@torch.inference_mode()
def test_a_picture_is_encoded_close_to_the_exact_encoder(vae):
    image = torch.rand(3, 24, 40) * 2 - 1
    exact, half = (at_vae_precision(vae, name, SIZE).encoder().encode_still(image) for name in ("exact", "bf16"))
    assert half.shape == exact.shape and (half - exact).norm() / exact.norm() < 0.03


@torch.inference_mode()
def test_channels_stay_last_through_the_whole_decoder(vae):
    """A layer that gave them another place would cost a copy of each tensor behind it."""
    half, laid = at_vae_precision(vae, "bf16", SIZE), []
    for module in half._half._modules["decoder"].modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_pre_hook(lambda _, inputs: laid.append(inputs[0]))
    decoder = half.decoder()
    decoder.decode(latent(1))
    laid.clear()
    decoder.decode(latent(1))
    assert len(laid) > 30 and all(x.movedim(1, -1).is_contiguous() for x in laid[1:])


@torch.inference_mode()
def test_channels_stay_last_through_the_whole_encoder(vae, monkeypatch):
    laid, convolve = [], torch.nn.functional.conv3d
    monkeypatch.setattr(torch.nn.functional, "conv3d", lambda x, *rest: laid.append(x) or convolve(x, *rest))
    at_vae_precision(vae, "bf16", SIZE).encoder().encode_still(torch.rand(3, 48, 80) * 2 - 1)
    assert len(laid) > 20 and all(x.movedim(1, -1).is_contiguous() for x in laid[1:])


@pytest.mark.parametrize("precision", ["bf16", "rows", "rows-fp16"])
def test_an_engine_shows_nearly_the_same_pictures_and_resumes_into_them(parts, precision):
    exact, quick = engine_with(parts, "exact"), engine_with(parts, precision)
    for engine in (exact, quick):
        engine.open(SessionSpec("a", "a meadow", 1))
    for _ in range(2):
        (expected,), (found,) = exact.step(), quick.step()
        assert found.frames.shape == expected.frames.shape
        assert np.abs(found.frames.astype(int) - expected.frames).mean() < 1
    again = engine_with(parts, precision)
    again.resume(quick.snapshot("a"))
    assert np.array_equal(again.step()[0].frames, quick.step()[0].frames)


@pytest.mark.parametrize("precision", ["fp16", "rows-fp16"])
def test_a_session_whose_pictures_fp16_cannot_hold_ends_with_a_sentence(parts, precision, monkeypatch):
    engine, quicker = engine_with(parts, precision), parts.vae.decoder()
    engine.open(SessionSpec("a", "a meadow", 1))
    monkeypatch.setattr(engine._decoders[0], "decode", lambda latent: quicker.decode(latent).half() * torch.nan)
    (ended,) = engine.step()
    assert isinstance(ended, Ended) and "not finite" in ended.reason


@pytest.fixture(scope="module")
def parts():
    return small_parts(torch.device("cpu"))


def engine_with(parts, precision):
    vae = at_vae_precision(parts.vae, precision, SMALL_WAN.latent_shape[2:])
    return Engine(SMALL_WAN, parts._replace(vae=vae), slots=1, schedule="turns")


def test_exact_is_the_vae_itself_and_the_others_leave_it_as_it_is(vae):
    before = vae.conv1.weight.clone()
    assert at_vae_precision(vae, "exact", SIZE) is vae
    for name in VAE_PRECISIONS[1:]:
        at_vae_precision(vae, name, SIZE)
    assert vae.dtype == torch.float32 and torch.equal(vae.conv1.weight, before)


def test_what_cannot_be_is_refused_with_what_would_be_right(vae):
    with pytest.raises(ValueError, match="no VAE precision 'half'; it is one of exact, bf16, fp16, rows"):
        at_vae_precision(vae, "half", SIZE)
    with pytest.raises(ValueError, match="this preset's own is always exact"):
        at_vae_precision(TinyVAE(), "bf16", find_preset("tiny").latent_shape[2:])
