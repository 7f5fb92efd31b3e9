import pytest
import torch

from pipeline.vae import WanVAE, WanVAEConfig

CONFIG = WanVAEConfig(
    dim=4, latent_channels=3, multipliers=(1, 2, 2), temporal_downsample=(True, True), mean=(0.1,) * 3, std=(2.0,) * 3
)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return WanVAE(CONFIG).eval().requires_grad_(False)


def latent(frames):
    return torch.randn(3, frames, 3, 4, generator=torch.Generator().manual_seed(frames))


def video(frames):
    return torch.rand(3, frames, 12, 16, generator=torch.Generator().manual_seed(frames)) * 2 - 1


@pytest.mark.parametrize("cuts", [[1] * 7, [3, 3, 1], [1, 6], [2, 5]])
def test_streaming_decode_equals_batch_decode(vae, cuts):
    stream = vae.decoder()
    parts = [stream.decode(part) for part in latent(7).split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), vae.decoder().decode(latent(7)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cuts", [[1, 4, 4, 4], [5, 8], [9, 4]])
def test_streaming_encode_equals_batch_encode(vae, cuts):
    stream = vae.encoder()
    parts = [stream.encode(part) for part in video(13).split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), vae.encoder().encode(video(13)), atol=1e-5, rtol=1e-5)


def test_the_first_latent_frame_is_one_picture_and_later_ones_four(vae):
    stream = vae.decoder()
    assert [stream.decode(latent(1)).shape[1], stream.decode(latent(2)).shape[1]] == [1, 8]
    assert stream.decode(latent(1)).shape == (3, 4, 12, 16)


def test_a_reset_stream_begins_anew(vae):
    stream = vae.decoder()
    stream.decode(latent(3))
    stream.reset()
    assert torch.equal(stream.decode(latent(2)), vae.decoder().decode(latent(2)))


def test_two_streams_over_the_same_weights_do_not_touch_each_other(vae):
    one, other = vae.decoder(), vae.decoder()
    one.decode(latent(2))
    other.decode(latent(3))
    alone = vae.decoder()
    alone.decode(latent(2))
    assert torch.equal(one.decode(latent(1)), alone.decode(latent(1)))


def test_decoded_frames_lie_between_minus_one_and_one(vae):
    frames = vae.decoder().decode(100 * latent(3))
    assert frames.abs().max() <= 1


STAGES = [
    {"multipliers": (1, 2, 2), "temporal_downsample": (True, True)},
    {"multipliers": (1, 2, 2), "temporal_downsample": (False, True)},
    {"multipliers": (1, 2), "temporal_downsample": (False,), "residual_blocks": 1},
    {"multipliers": (1, 2), "temporal_downsample": (True,), "residual_blocks": 3},
    {"multipliers": (1, 2, 4, 4), "temporal_downsample": (False, True, True)},
]


@pytest.mark.parametrize("stages", STAGES, ids=str)
@torch.inference_mode()
def test_a_still_is_the_picture_and_zeros_encoded_until_the_encoding_repeats(stages):
    torch.manual_seed(0)
    vae = WanVAE(WanVAEConfig(dim=4, latent_channels=3, mean=(0.1,) * 3, std=(2.0,) * 3, **stages)).eval()
    image = torch.rand(3, 16, 24) * 2 - 1
    still = vae.encoder().encode_still(image)
    frames = still.shape[1] + 5
    clip = torch.zeros(3, 1 + vae.config.group * (frames - 1), 16, 24)
    clip[:, 0] = image
    whole = vae.encoder().encode(clip)
    expected = torch.cat((still, still[:, -1:].expand(-1, 5, -1, -1)), dim=1)
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_still_stops_no_later_than_the_encoding_repeats():
    """In float64, where what the picture leaves behind is not lost in rounding."""
    torch.manual_seed(0)
    vae = WanVAE(CONFIG).double().eval()
    still = vae.encoder().encode_still(torch.rand(3, 12, 16).double())
    assert not torch.equal(still[:, -1], still[:, -2])


def test_a_still_in_wans_encoder_is_thirty_latent_frames():
    with torch.device("meta"):
        vae = WanVAE()
        encoder = vae.encoder()
        stage = torch.empty(1, 96, 4, 16, 16)
        assert vae._modules["encoder"].conv1.settle(torch.empty(1, 3, 2, 16, 16)).shape[2] == 4
        for layer in list(vae._modules["encoder"].downsamples)[:2]:
            stage = layer.settle(stage)
        assert stage.shape[2] == 12
        assert encoder.encode_still(torch.empty(3, 16, 16)).shape == (16, 30, 2, 2)


def test_a_still_leaves_a_streams_state_as_it_was(vae):
    stream, other = vae.encoder(), vae.encoder()
    stream.encode(video(5)), other.encode(video(5))
    stream.encode_still(torch.zeros(3, 12, 16))
    assert torch.equal(stream.encode(video(4)), other.encode(video(4)))


@pytest.mark.parametrize("first, second", [(0, None), (3, None), (1, 3), (5, 0)])
def test_a_number_of_frames_that_makes_no_whole_latent_frame_is_refused(vae, first, second):
    stream = vae.encoder()
    with pytest.raises(ValueError, match="a multiple of 4"):
        stream.encode(torch.zeros(3, first, 12, 16))
        stream.encode(torch.zeros(3, second, 12, 16))


def test_the_wan_vae_has_its_published_number_of_parameters_and_names():
    with torch.device("meta"):
        vae = WanVAE()
    names = vae.state_dict().keys()
    assert round(sum(parameter.numel() for parameter in vae.parameters()) / 1e6, 1) == 126.9
    assert {"encoder.downsamples.5.time_conv.weight", "decoder.upsamples.14.residual.6.bias", "conv2.weight"} <= names


def test_a_config_that_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="change resolution 3 times"):
        WanVAEConfig(temporal_downsample=(True,))
    with pytest.raises(ValueError, match="mean and std"):
        WanVAEConfig(latent_channels=4)


@torch.inference_mode()
def test_a_decoder_that_begins_its_reach_before_a_frame_shows_it_bit_for_bit():
    torch.manual_seed(0)
    config = WanVAEConfig(dim=4, latent_channels=2, residual_blocks=1, mean=(0.0,) * 2, std=(1.0,) * 2)
    decoder, late, later = (WanVAE(config).eval().decoder() for _ in range(3))
    late.vae = later.vae = decoder.vae
    latents = torch.randn(2, decoder.reach + 4, 2, 2)
    frames = [decoder.decode(latent[:, None]) for latent in latents.unbind(1)]
    for latent in latents[:, -1 - decoder.reach :].unbind(1):
        last = late.decode(latent[:, None])
    assert torch.equal(last, frames[-1])
    for latent in latents[:, -4:].unbind(1):
        last = later.decode(latent[:, None])
    assert not torch.equal(last, frames[-1])
