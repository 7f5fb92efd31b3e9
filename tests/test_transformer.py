import dataclasses

import pytest
import torch

from pipeline.kv_cache import KVCache
from pipeline.transformer import Transformer, TransformerConfig, rope_angles, timestep_sinusoid
from pipeline.world_map import WorldMapConfig

SMALL = TransformerConfig(dim=48, ffn_dim=64, heads=4, layers=2, in_channels=16, text_dim=24, camera_channels=384)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def cache_for(config, slots=1, frames=2):
    return KVCache(config.layers, slots, frames, 0, 6, config.heads, config.head_width, torch.float32, "cpu")


def run(model, latent, timestep, text, camera=None):
    view = cache_for(model.config, len(latent)).view(range(len(latent)), latent.shape[2], 2, 3)
    with torch.inference_mode():
        return model(latent, model.embed_time(timestep), model.embed_text(text), camera, view)


@pytest.mark.parametrize(
    "billions, sizes",
    [
        (18.54, {"dim": 5120, "ffn_dim": 13824, "heads": 40, "layers": 40, "in_channels": 36, "camera_channels": 384}),
        (1.71, {"dim": 1536, "ffn_dim": 8960, "heads": 12, "layers": 30, "in_channels": 36, "camera_channels": 384}),
        (1.42, {"dim": 1536, "ffn_dim": 8960, "heads": 12, "layers": 30, "in_channels": 16}),
    ],
)
def test_the_public_models_have_their_published_number_of_parameters(billions, sizes):
    with torch.device("meta"):
        model = Transformer(TransformerConfig(**sizes))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e9, 2) == billions


def test_one_chunk_without_past_agrees_with_the_wan_model_of_diffusers():
    config = TransformerConfig(dim=48, ffn_dim=64, heads=4, layers=2, in_channels=16, text_dim=24)
    model = Transformer(config).eval()
    latent, text, timestep = torch.randn(2, 16, 2, 4, 6), torch.randn(2, 5, 24), torch.tensor([702.0, 31.0])
    ours = run(model, latent, timestep, text)
    theirs = _diffusers_twin(model)
    padded = torch.nn.functional.pad(text, (0, 0, 0, 507))
    with torch.inference_mode():
        expected = theirs(latent, timestep, padded, return_dict=False)[0]
    assert (ours - expected).norm() / expected.norm() < 1e-5


def _diffusers_twin(model):
    diffusers = pytest.importorskip("diffusers")
    config = model.config
    twin = diffusers.WanTransformer3DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.head_width,
        text_dim=config.text_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.layers,
    )
    renames = {
        "self_attn": "attn1",
        "cross_attn": "attn2",
        "norm3": "norm2",
        ".q.": ".to_q.",
        ".k.": ".to_k.",
        ".v.": ".to_v.",
        ".o.": ".to_out.0.",
        "ffn.0": "ffn.net.0.proj",
        "ffn.2": "ffn.net.2",
        "text_embedding.0": "condition_embedder.text_embedder.linear_1",
        "text_embedding.2": "condition_embedder.text_embedder.linear_2",
        "time_embedding.0": "condition_embedder.time_embedder.linear_1",
        "time_embedding.2": "condition_embedder.time_embedder.linear_2",
        "time_projection.1": "condition_embedder.time_proj",
        "head.head": "proj_out",
        "head.modulation": "scale_shift_table",
        "modulation": "scale_shift_table",
    }
    state = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in renames.items():
            name = name.replace(ours, theirs)
        state[name] = tensor
    twin.load_state_dict(state)
    return twin.eval()


def test_a_batch_gives_each_slot_what_it_has_alone():
    model = Transformer(SMALL).eval()
    latent, text, timestep = torch.randn(2, 16, 2, 4, 6), torch.randn(2, 5, 24), torch.tensor([702.0, 31.0])
    plucker = torch.randn(2, 384, 2, 4, 6)
    with torch.inference_mode():
        both = run(model, latent, timestep, text, model.embed_camera(plucker))
        alone = [
            run(model, latent[i : i + 1], timestep[i : i + 1], text[i : i + 1], model.embed_camera(plucker[i : i + 1]))
            for i in range(2)
        ]
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_the_camera_and_the_prompt_change_the_flow():
    model = Transformer(SMALL).eval()
    latent, text, timestep = torch.randn(1, 16, 2, 4, 6), torch.randn(1, 5, 24), torch.tensor([702.0])
    with torch.inference_mode():
        first, second = (model.embed_camera(torch.randn(1, 384, 2, 4, 6)) for _ in range(2))
    base = run(model, latent, timestep, text, first)
    assert (run(model, latent, timestep, text, second) - base).norm() / base.norm() > 1e-3
    assert (run(model, latent, timestep, -text, first) - base).norm() / base.norm() > 1e-3


def test_a_model_with_a_world_map_sees_where_it_stands():
    sizes = {"dim": 48, "ffn_dim": 64, "heads": 4, "layers": 1, "in_channels": 16, "text_dim": 24}
    model = Transformer(TransformerConfig(**sizes, camera_channels=384, world_map=WorldMapConfig())).eval()
    plucker, poses = torch.randn(1, 384, 2, 4, 6), torch.randn(2, 1, 2, 2, 4)
    with torch.inference_mode():
        here, there = (model.embed_camera(plucker, pose)[0] for pose in poses)
    assert here.scale.shape == (1, 12, 48) and not torch.equal(here.scale, there.scale)


def test_text_is_padded_with_zero_rows_before_its_first_linear():
    model = Transformer(SMALL).eval()
    rows = torch.randn(1, 5, 24)
    padded = torch.cat((rows, torch.zeros(1, 507, 24)), dim=1)
    for short, long in zip(model.embed_text(rows), model.embed_text(padded), strict=True):
        assert torch.equal(short.k, long.k) and short.k.shape == (1, 512, 4, 12)


def test_more_text_rows_than_the_model_takes_are_refused():
    with pytest.raises(ValueError, match="the prompt has 513 rows"):
        Transformer(SMALL).embed_text(torch.zeros(1, 513, 24))


def test_the_time_embedding_stays_float32_in_a_bfloat16_model():
    model = Transformer(SMALL).eval()
    half = Transformer(SMALL).eval().bfloat16()
    terms = half.embed_time(torch.tensor([999.0]))
    assert terms.e.dtype == terms.e0.dtype == torch.float32
    assert model.embed_time(torch.tensor([999.0])).e0.shape == (1, 6, 48)


def test_a_bfloat16_model_is_close_to_the_float32_one():
    model = Transformer(SMALL).eval()
    latent, text, timestep = torch.randn(1, 16, 2, 4, 6), torch.randn(1, 5, 24), torch.tensor([702.0])
    exact = run(model, latent, timestep, text)
    half = Transformer(SMALL).eval().bfloat16()
    half.load_state_dict(model.state_dict())
    cache = KVCache(2, 1, 2, 0, 6, 4, 12, torch.bfloat16, "cpu")
    with torch.inference_mode():
        rough = half(latent, half.embed_time(timestep), half.embed_text(text), None, cache.view([0], 2, 2, 3))
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("precision, error", [("plain", 1e-6), ("fp8", 1e-2)])
def test_a_fused_model_gives_the_same_flow_and_keeps_the_names_of_its_weights(precision, error):
    model = Transformer(dataclasses.replace(SMALL, precision=precision)).eval()
    model.load_state_dict(Transformer(SMALL).state_dict(), strict=precision == "plain")
    latent, text, timestep = torch.randn(2, 16, 2, 4, 6), torch.randn(2, 5, 24), torch.tensor([702.0, 31.0])
    with torch.inference_mode():
        camera = model.embed_camera(torch.randn(2, 384, 2, 4, 6))
    before, names = run(model, latent, timestep, text, camera), list(model.state_dict())
    for _ in range(2):
        model.fuse(backend="aot_eager")
        fused = run(model, latent, timestep, text, camera)
        assert (fused - before).norm() / before.norm() < error
    assert list(model.state_dict()) == names


def test_what_is_loaded_into_a_fused_model_is_what_it_runs():
    first, second = Transformer(SMALL).eval(), Transformer(SMALL).eval()
    latent, text, timestep = torch.randn(1, 16, 2, 4, 6), torch.randn(1, 5, 24), torch.tensor([702.0])
    first.fuse(backend="eager")
    first.load_state_dict(second.state_dict())
    torch.testing.assert_close(run(first, latent, timestep, text), run(second, latent, timestep, text))


def test_training_through_the_model_reaches_every_parameter():
    class InChunk:
        def __init__(self):
            self.rope = rope_angles(torch.arange(2.0, dtype=torch.float64)[None], 2, 3, 12, torch.device("cpu"))

        def attend(self, layer, q, k, v):
            q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
            return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    model = Transformer(SMALL)
    camera = model.embed_camera(torch.randn(1, 384, 2, 4, 6))
    text = model.embed_text(torch.randn(1, 5, 24))
    model(
        torch.randn(1, 16, 2, 4, 6), model.embed_time(torch.tensor([700.0])), text, camera, InChunk()
    ).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_rotary_angles_depend_on_the_distance_alone_even_after_a_day():
    device = torch.device("cpu")
    day = 24 * 3600 * 4
    products = []
    for start in (0, day):
        cos, sin = rope_angles(torch.tensor([[start, start + 3]], dtype=torch.float64), 1, 1, 12, device)
        products.append(cos[0, 0] * cos[0, 1] + sin[0, 0] * sin[0, 1])
    torch.testing.assert_close(*products, atol=1e-6, rtol=0)


def test_time_takes_the_pairs_that_rows_and_columns_leave():
    cos, _ = rope_angles(torch.zeros(1, 1, dtype=torch.float64), 2, 2, 128, torch.device("cpu"))
    changes = (cos[0] != cos[0, :1]).any(0)
    assert cos.shape == (1, 4, 64) and not changes[:22].any() and changes[22] and changes[43]


def test_the_sinusoid_is_cosines_then_sines():
    angle = 7 * 10000 ** -(torch.arange(4, dtype=torch.float64) / 4)
    expected = torch.cat((angle.cos(), angle.sin())).float()
    assert torch.equal(timestep_sinusoid(torch.tensor([7.0]), 8)[0], expected)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"heads": 5}, "even head width"),
        ({"precision": "int4"}, "no linear precision"),
        ({"time_frequencies": 7}, "even"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(change, words):
    sizes = {"dim": 48, "ffn_dim": 64, "heads": 4, "layers": 2, "in_channels": 16}
    with pytest.raises(ValueError, match=words):
        TransformerConfig(**(sizes | change))
