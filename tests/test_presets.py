"""The presets against the published sizes: every name and shape of the full models, written out from their description.

Nothing here is taken from our modules; they are built on the meta device and compared.
"""

import math

import pytest
import torch

from pipeline.checkpoint import UMT5_XXL, _umt5
from pipeline.chunk import PICTURES
from pipeline.presets import PRESETS, at_precision, find_preset
from pipeline.transformer import Transformer
from pipeline.vae import WanVAE

# name: D, FFN, heads, layers, input channels, camera channels, latent frames in a chunk, window, sink
PUBLISHED = {
    "lingbot-world-fast": (5120, 13824, 40, 40, 36, 6 * 64, 3, None, None),
    "lingbot-world-fast-act": (5120, 13824, 40, 40, 36, 7 * 64, 3, None, None),
    "lingbot-world-v2-14b": (5120, 13824, 40, 40, 36, 6 * 64, 3, 18, 6),
    "lingbot-world-v2-14b-chunk4": (5120, 13824, 40, 40, 36, 6 * 64, 4, 18, 6),
    "lingbot-world-v2-1.3b": (1536, 8960, 12, 30, 36, 6 * 64, 4, 18, 6),
    "wan2.1-1.3b-self-forcing": (1536, 8960, 12, 30, 16, 0, 3, 21, 0),
    "wan2.1-1.3b-longlive": (1536, 8960, 12, 30, 16, 0, 3, 12, 3),
}
TIMESTEPS = {
    "lingbot-world-fast": (999, 978, 947, 825),
    "lingbot-world-fast-act": (999, 978, 947, 825),
    "lingbot-world-v2-14b": (999, 937, 833, 624),
    "lingbot-world-v2-14b-chunk4": (999, 937, 833, 624),
    "lingbot-world-v2-1.3b": (999, 937, 833, 624),
}
SIGMAS = {
    "wan2.1-1.3b-self-forcing": (1, 0.9375, 0.8333, 0.625),
    "wan2.1-1.3b-longlive": (1, 0.9375, 0.8333, 0.625),
}
# The counts that the families' descriptions give. Seven channels of 8x8 in place of six add 64*4*5120 numbers: 18.55e9.
PARAMETERS = {
    "lingbot-world-fast": "18.54",
    "lingbot-world-fast-act": "18.55",
    "lingbot-world-v2-14b": "18.54",
    "lingbot-world-v2-14b-chunk4": "18.54",
    "lingbot-world-v2-1.3b": "1.71",
    "wan2.1-1.3b-self-forcing": "1.42",
    "wan2.1-1.3b-longlive": "1.42",
}


def linear(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def transformer_tensors(d, ffn, layers, channels, camera):
    tensors = {
        "patch_embedding.weight": (d, channels, 1, 2, 2),
        "patch_embedding.bias": (d,),
        **linear("text_embedding.0", 4096, d),
        **linear("text_embedding.2", d, d),
        **linear("time_embedding.0", 256, d),
        **linear("time_embedding.2", d, d),
        **linear("time_projection.1", d, 6 * d),
        **linear("head.head", d, 4 * 16),
        "head.modulation": (1, 2, d),
    }
    for layer in range(layers):
        block = f"blocks.{layer}"
        tensors[f"{block}.modulation"] = (1, 6, d)
        for attention in ("self_attn", "cross_attn"):
            for name in "qkvo":
                tensors |= linear(f"{block}.{attention}.{name}", d, d)
            tensors |= {f"{block}.{attention}.norm_q.weight": (d,), f"{block}.{attention}.norm_k.weight": (d,)}
        tensors |= {f"{block}.norm3.weight": (d,), f"{block}.norm3.bias": (d,)}
        tensors |= linear(f"{block}.ffn.0", d, ffn) | linear(f"{block}.ffn.2", ffn, d)
        if camera:
            for name in ("cam_injector_layer1", "cam_injector_layer2", "cam_scale_layer", "cam_shift_layer"):
                tensors |= linear(f"{block}.{name}", d, d)
    if camera:
        tensors |= linear("patch_embedding_wancamctrl", camera * 4, d)
        tensors |= linear("c2ws_hidden_states_layer1", d, d) | linear("c2ws_hidden_states_layer2", d, d)
    return tensors


def shapes(module):
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def test_there_is_a_preset_for_every_published_model():
    assert PRESETS.keys() - {"tiny"} == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_full_size_transformer_has_exactly_the_published_names_and_shapes(name):
    d, ffn, heads, layers, channels, camera, *_ = PUBLISHED[name]
    with torch.device("meta"):
        model = Transformer(find_preset(name).transformer)
    expected = transformer_tensors(d, ffn, layers, channels, camera)
    assert shapes(model) == expected
    assert model.config.head_width == d // heads == 128
    count = sum(math.prod(shape) for shape in expected.values())
    assert sum(each.numel() for each in model.parameters()) == count
    assert f"{count / 1e9:.2f}" == PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_brings_its_chunk_its_window_and_its_schedule(name):
    preset = find_preset(name)
    *_, chunk, window, sink = PUBLISHED[name]
    assert (preset.chunk, preset.window) == (chunk, window)
    if window is not None:
        assert preset.sink == sink
    assert (preset.height, preset.width, preset.fps) == (480, 832, 16)
    assert math.prod(preset.token_grid) == 1560
    if name in TIMESTEPS:
        assert tuple(int(step.timestep) for step in preset.steps) == TIMESTEPS[name]
    else:
        assert [step.sigma for step in preset.steps] == pytest.approx(SIGMAS[name], abs=5e-5)


def conv(name, inputs, outputs, *kernel):
    return {f"{name}.weight": (outputs, inputs, *kernel), f"{name}.bias": (outputs,)}


def residual(name, inputs, outputs):
    tensors = {f"{name}.residual.0.gamma": (inputs, 1, 1, 1), f"{name}.residual.3.gamma": (outputs, 1, 1, 1)}
    tensors |= conv(f"{name}.residual.2", inputs, outputs, 3, 3, 3)
    tensors |= conv(f"{name}.residual.6", outputs, outputs, 3, 3, 3)
    return tensors | (conv(f"{name}.shortcut", inputs, outputs, 1, 1, 1) if inputs != outputs else {})


def ends(side, inputs, first, last, outputs, middle):
    tensors = conv(f"{side}.conv1", inputs, first, 3, 3, 3) | conv(f"{side}.head.2", last, outputs, 3, 3, 3)
    tensors[f"{side}.head.0.gamma"] = (last, 1, 1, 1)
    for place in (0, 2):
        tensors |= residual(f"{side}.middle.{place}", middle, middle)
    tensors[f"{side}.middle.1.norm.gamma"] = (middle, 1, 1)
    tensors |= conv(f"{side}.middle.1.to_qkv", middle, 3 * middle, 1, 1)
    return tensors | conv(f"{side}.middle.1.proj", middle, middle, 1, 1)


def vae_tensors(d=96, z=16):
    """Two residual blocks a stage down, three up; widths times 1 2 4 4; time halved at the last two changes of size."""
    tensors = conv("conv1", 2 * z, 2 * z, 1, 1, 1) | conv("conv2", z, z, 1, 1, 1)
    tensors |= ends("encoder", 3, d, 4 * d, 2 * z, 4 * d) | ends("decoder", z, 4 * d, d, 3, 4 * d)
    down = [(d, d), (d, d), "space", (d, 2 * d), (2 * d, 2 * d), "time", (2 * d, 4 * d), (4 * d, 4 * d), "time"]
    down += [(4 * d, 4 * d), (4 * d, 4 * d)]
    widths = iter((d, 2 * d, 4 * d))
    for place, layer in enumerate(down):
        name = f"encoder.downsamples.{place}"
        if isinstance(layer, tuple):
            tensors |= residual(name, *layer)
            continue
        width = next(widths)
        tensors |= conv(f"{name}.resample.1", width, width, 3, 3)
        if layer == "time":
            tensors |= conv(f"{name}.time_conv", width, width, 3, 1, 1)
    up = [*[(4 * d, 4 * d)] * 3, "time", (2 * d, 4 * d), *[(4 * d, 4 * d)] * 2, "time", *[(2 * d, 2 * d)] * 3, "space"]
    up += [(d, d)] * 3
    widths = iter((4 * d, 4 * d, 2 * d))
    for place, layer in enumerate(up):
        name = f"decoder.upsamples.{place}"
        if isinstance(layer, tuple):
            tensors |= residual(name, *layer)
            continue
        width = next(widths)
        tensors |= conv(f"{name}.resample.1", width, width // 2, 3, 3)
        if layer == "time":
            tensors |= conv(f"{name}.time_conv", width, 2 * width, 3, 1, 1)
    return tensors


def test_the_full_size_vae_has_exactly_the_published_names_and_shapes():
    with torch.device("meta"):
        assert shapes(WanVAE()) == vae_tensors()


def test_the_full_size_text_encoder_has_exactly_the_published_shapes():
    with torch.device("meta"):
        found = shapes(_umt5(UMT5_XXL)())
    expected = {"shared.weight": (256384, 4096), "encoder.embed_tokens.weight": (256384, 4096)}
    expected["encoder.final_layer_norm.weight"] = (4096,)
    for layer in range(24):
        block = f"encoder.block.{layer}.layer"
        for name in "qkvo":
            expected[f"{block}.0.SelfAttention.{name}.weight"] = (4096, 4096)
        expected[f"{block}.0.SelfAttention.relative_attention_bias.weight"] = (32, 64)
        expected |= {f"{block}.{part}.layer_norm.weight": (4096,) for part in (0, 1)}
        expected |= {f"{block}.1.DenseReluDense.{name}.weight": (10240, 4096) for name in ("wi_0", "wi_1")}
        expected[f"{block}.1.DenseReluDense.wo.weight"] = (4096, 10240)
    assert found == expected


def test_a_preset_that_does_not_exist_lists_those_that_do():
    with pytest.raises(ValueError, match="there are tiny, lingbot-world-fast"):
        find_preset("tiyn")


def test_a_preset_says_whether_it_takes_a_picture_in_the_words_of_the_service():
    words = {preset.name: preset.picture_wanted for preset in PRESETS.values()}
    assert set(words.values()) == set(PICTURES)
    assert words["tiny"] == "optional" and words["lingbot-world-fast"] == "required"
    assert words["wan2.1-1.3b-self-forcing"] == "none"


def test_a_preset_in_other_chunks_has_a_name_of_its_own_by_which_it_is_found():
    short = find_preset("lingbot-world-v2-1.3b-chunk2")
    assert (short.chunk, short.name, short.chunk_frames) == (2, "lingbot-world-v2-1.3b-chunk2", 8)
    assert "in chunks of 2; made for 4" in short.summary
    assert find_preset("lingbot-world-v2-1.3b-chunk4") == PRESETS["lingbot-world-v2-1.3b"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tiny-chunk2", "only be the first latent frame where a chunk is one"),
        ("lingbot-world-v2-1.3b-chunk13", "cannot hold a sink of 6 and a chunk of 13"),
        ("lingbot-world-v2-1.3b-chunk0", "at least 1"),
        ("nothing-chunk2", "no preset 'nothing-chunk2'"),
    ],
)
def test_chunks_that_do_not_fit_are_refused(name, words):
    with pytest.raises(ValueError, match=words):
        find_preset(name)


def test_a_precision_changes_the_linears_of_a_preset_and_nothing_else():
    preset = find_preset("lingbot-world-v2-14b")
    eight = at_precision(preset, "fp8")
    assert eight.transformer.precision == "fp8" and at_precision(eight, "bf16") == preset
    with pytest.raises(ValueError, match="no precision 'int4'; it is bf16 or fp8"):
        at_precision(preset, "int4")
    with pytest.raises(ValueError, match="the tiny world's is float32"):
        at_precision(find_preset("tiny"), "fp8")
