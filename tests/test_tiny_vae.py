import pytest
import torch

from pipeline.tiny.vae import LATENT_CHANNELS, TinyVAE


@pytest.fixture(scope="module")
def vae() -> TinyVAE:
    torch.manual_seed(0)
    vae = TinyVAE().eval().requires_grad_(False)
    vae.mean.normal_()
    vae.std.uniform_(0.5, 2.0)
    return vae


def latents(frames: int) -> torch.Tensor:
    return torch.randn(LATENT_CHANNELS, frames, 4, 6, generator=torch.Generator().manual_seed(1))


def test_a_stream_decodes_as_the_whole_clip_does(vae):
    clip = latents(3)
    decoder = vae.decoder()
    streamed = torch.cat([decoder.decode(clip[:, index : index + 1]) for index in range(3)], dim=1)
    torch.testing.assert_close(streamed, vae.decoder().decode(clip))


def test_each_latent_frame_is_four_pictures_within_range(vae):
    video = vae.decoder().decode(latents(2))
    assert video.shape == (3, 8, 64, 96)
    assert video.abs().max() <= 1


def test_a_reset_decoder_begins_anew(vae):
    decoder = vae.decoder()
    first = decoder.decode(latents(1))
    assert not torch.equal(first, decoder.decode(latents(1) + 1))
    decoder.reset()
    assert torch.equal(first, decoder.decode(latents(1)))


def test_two_streams_share_nothing_but_the_weights(vae):
    one, other = vae.decoder(), vae.decoder()
    one.decode(latents(2))
    torch.testing.assert_close(other.decode(latents(1)), vae.decoder().decode(latents(1)))


def test_the_encoder_gives_normalised_latents_of_each_four_pictures(vae):
    video = torch.rand(3, 8, 64, 96) * 2 - 1
    both = vae.encoder().encode(video)
    assert both.shape == (LATENT_CHANNELS, 2, 4, 6)
    torch.testing.assert_close(both[:, 1:], vae.encoder().encode(video[:, 4:]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vae.normalize(vae.denormalize(both.movedim(1, 0))), both.movedim(1, 0))


def test_a_video_of_another_length_is_refused(vae):
    with pytest.raises(ValueError, match="multiple of 4"):
        vae.encoder().encode(torch.zeros(3, 5, 64, 96))


@torch.inference_mode()
def test_a_decoder_that_begins_its_reach_before_a_frame_shows_it_bit_for_bit():
    torch.manual_seed(0)
    vae = TinyVAE().eval()
    decoder, late = vae.decoder(), vae.decoder()
    latents = torch.randn(LATENT_CHANNELS, 8, 2, 2)
    frames = decoder.decode(latents)
    assert torch.equal(late.decode(latents[:, -1 - decoder.reach :])[:, -4:], frames[:, -4:])
