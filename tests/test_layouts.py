"""The layouts of the public checkpoints, with diffusers and transformers as second opinions on names and numbers."""

import json

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.parity import relative_error
from kernels.attention import attention
from pipeline import checkpoint, layouts
from pipeline.transformer import Transformer, TransformerConfig, rope_angles
from pipeline.vae import WanVAE, WanVAEConfig

SMALL = TransformerConfig(dim=24, ffn_dim=32, heads=2, layers=2, in_channels=16, text_dim=8)
SMALL_VAE = WanVAEConfig(dim=4, latent_channels=4, residual_blocks=1, mean=(0.1, 0.2, -0.3, 0), std=(1, 2, 0.5, 1.5))
SMALL_UMT5 = {**checkpoint.UMT5_XXL, "vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_heads": 2}
SMALL_UMT5["num_layers"] = 2
CPU = torch.device("cpu")


class Alone:
    """A Memory without a past: the chunk sees itself."""

    def __init__(self, config, frames, rows, columns):
        positions = torch.arange(frames, dtype=torch.float64)[None]
        self.rope = rope_angles(positions, rows, columns, config.head_width, CPU)

    def attend(self, layer, q, k, v):
        return attention(q, k, v)


def rough(module):
    """The module with numbers that matter everywhere: fresh norms and tables hide mistakes."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            around = 1.0 if name.endswith(("gamma", "norm_q.weight", "norm_k.weight", "norm2.weight")) else 0.0
            parameter.copy_(around + 0.2 * torch.randn_like(parameter))
    return module.eval()


@pytest.fixture(scope="module")
def diffusers_wan(tmp_path_factory):
    from diffusers import WanTransformer3DModel

    folder = tmp_path_factory.mktemp("wan")
    model = WanTransformer3DModel(
        num_attention_heads=SMALL.heads,
        attention_head_dim=SMALL.head_width,
        in_channels=SMALL.in_channels,
        out_channels=SMALL.out_channels,
        text_dim=SMALL.text_dim,
        freq_dim=SMALL.time_frequencies,
        ffn_dim=SMALL.ffn_dim,
        num_layers=SMALL.layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    )
    rough(model).save_pretrained(folder / "transformer", max_shard_size="20KB")
    return folder, model


@pytest.mark.parametrize(("timestep", "within"), [(0.0, 1e-6), (613.0, 1e-4)])
@torch.inference_mode()
def test_a_diffusers_transformer_gives_the_flow_that_diffusers_gives(diffusers_wan, timestep, within):
    # diffusers makes the timestep's angles in float32, the reference in float64: at 0 there is no difference
    folder, theirs = diffusers_wan
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    ours = checkpoint.plan_transformer(folder, SMALL).load(torch.float32, "cpu")
    torch.manual_seed(2)
    latent, text, time = torch.randn(1, 16, 3, 4, 6), torch.randn(1, 5, SMALL.text_dim), torch.tensor([timestep])
    padded = torch.nn.functional.pad(text, (0, 0, 0, SMALL.text_rows - 5))
    expected = theirs(latent, time, padded, return_dict=False)[0]
    memory = Alone(SMALL, 3, 2, 3)
    flow = ours(latent, ours.embed_time(time), ours.embed_text(text), None, memory)
    assert expected.abs().mean() > 0.1
    assert relative_error(flow, expected) < within


def test_a_diffusers_config_that_contradicts_the_preset_is_named(diffusers_wan):
    folder, _ = diffusers_wan
    other = TransformerConfig(dim=48, ffn_dim=32, heads=4, layers=3, in_channels=16, text_dim=8)
    with pytest.raises(ValueError) as error:
        checkpoint.plan_transformer(folder, other, whose="the preset walk")
    message = str(error.value)
    assert f"{folder / 'transformer' / 'config.json'} contradicts the preset walk" in message
    assert "num_attention_heads 2, not 4; num_layers 2, not 3" in message


@torch.inference_mode()
def test_a_diffusers_vae_encodes_and_decodes_as_diffusers_does(tmp_path):
    from diffusers import AutoencoderKLWan

    theirs = AutoencoderKLWan(
        base_dim=SMALL_VAE.dim,
        z_dim=SMALL_VAE.latent_channels,
        dim_mult=list(SMALL_VAE.multipliers),
        num_res_blocks=SMALL_VAE.residual_blocks,
        attn_scales=[],
        temperal_downsample=list(SMALL_VAE.temporal_downsample),
        latents_mean=list(SMALL_VAE.mean),
        latents_std=list(SMALL_VAE.std),
    )
    rough(theirs).save_pretrained(tmp_path / "vae")
    ours = checkpoint.plan_vae((tmp_path,), SMALL_VAE).load(torch.float32, "cpu")
    mean, std = (torch.tensor(values)[:, None, None, None] for values in (SMALL_VAE.mean, SMALL_VAE.std))

    torch.manual_seed(3)
    video = torch.rand(3, 9, 16, 24) * 2 - 1
    expected = theirs.encode(video[None]).latent_dist.mode()[0]
    assert relative_error(ours.encoder().encode(video) * std + mean, expected) < 1e-5

    latent = torch.randn(4, 3, 2, 3)
    decoded = theirs.decode((latent * std + mean)[None], return_dict=False)[0][0]
    assert decoded.abs().max() > 0.1
    assert relative_error(ours.decoder().decode(latent), decoded) < 1e-5


@torch.inference_mode()
def test_a_text_encoder_saved_by_transformers_gives_the_same_rows(tmp_path):
    from transformers import UMT5Config, UMT5EncoderModel

    theirs = rough(UMT5EncoderModel(UMT5Config(**SMALL_UMT5, feed_forward_proj="gated-gelu")))
    theirs.save_pretrained(tmp_path / "text_encoder", max_shard_size="5KB")
    assert len(list((tmp_path / "text_encoder").glob("*.safetensors"))) > 1
    ours = checkpoint.plan_text_encoder((tmp_path,), SMALL_UMT5).load(torch.float32, "cpu")
    ids = torch.tensor([[3, 17, 29, 1]])
    torch.testing.assert_close(ours(input_ids=ids).last_hidden_state, theirs(input_ids=ids).last_hidden_state)
    assert ours.shared.weight.data_ptr() == ours.encoder.embed_tokens.weight.data_ptr()


def published_umt5(model):
    """The names that models of the Wan family publish for what transformers saves; written out by hand."""
    block = {
        "layer.0.layer_norm": "norm1",
        "layer.0.SelfAttention.q": "attn.q",
        "layer.0.SelfAttention.k": "attn.k",
        "layer.0.SelfAttention.v": "attn.v",
        "layer.0.SelfAttention.o": "attn.o",
        "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
        "layer.1.layer_norm": "norm2",
        "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
        "layer.1.DenseReluDense.wi_1": "ffn.fc1",
        "layer.1.DenseReluDense.wo": "ffn.fc2",
    }
    names = {"shared.weight": "token_embedding.weight", "encoder.final_layer_norm.weight": "norm.weight"}
    for layer in range(SMALL_UMT5["num_layers"]):
        names |= {
            f"encoder.block.{layer}.{theirs}.weight": f"blocks.{layer}.{ours}.weight" for theirs, ours in block.items()
        }
    return {names[name]: t for name, t in model.state_dict().items() if name != "encoder.embed_tokens.weight"}


@torch.inference_mode()
def test_the_published_text_encoder_file_is_the_same_encoder(tmp_path):
    from transformers import UMT5Config, UMT5EncoderModel

    theirs = rough(UMT5EncoderModel(UMT5Config(**SMALL_UMT5, feed_forward_proj="gated-gelu")))
    torch.save(published_umt5(theirs), tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
    ours = checkpoint.plan_text_encoder((tmp_path,), SMALL_UMT5).load(torch.float32, "cpu")
    ids = torch.tensor([[3, 17, 29, 1]])
    torch.testing.assert_close(ours(input_ids=ids).last_hidden_state, theirs(input_ids=ids).last_hidden_state)


def test_the_published_vae_file_loads(tmp_path):
    vae = rough(WanVAE(SMALL_VAE))
    torch.save(vae.state_dict(), tmp_path / "Wan2.1_VAE.pth")
    loaded = checkpoint.plan_vae((tmp_path,), SMALL_VAE).load(torch.float32, "cpu").state_dict()
    assert loaded.keys() == vae.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in vae.state_dict().items())


def test_every_wrapper_of_training_comes_off_a_name():
    for name in (
        "blocks.3.ffn.0.weight",
        "model.blocks.3.ffn.0.weight",
        "model._fsdp_wrapped_module.blocks.3.ffn.0.weight",
        "model._fsdp_wrapped_module.blocks.3._fsdp_wrapped_module._checkpoint_wrapped_module.ffn.0.weight",
        "module.model.blocks.3.ffn.0.weight",
        "_orig_mod.blocks.3.ffn.0.weight",
    ):
        assert layouts.transformer_name(name) == "blocks.3.ffn.0.weight"


def test_our_own_names_stay_as_they_are():
    config = TransformerConfig(dim=24, ffn_dim=32, heads=2, layers=2, in_channels=16, text_dim=8, camera_channels=384)
    with torch.device("meta"):
        names = [*Transformer(config).state_dict()]
        vae = [*WanVAE(SMALL_VAE).state_dict()]
    assert [layouts.transformer_name(name) for name in names] == names
    rename = layouts.vae_rename(vae, 1)
    assert [rename(name) for name in vae] == vae


@pytest.mark.parametrize(
    ("files", "transformer", "vae", "text", "tokenizer"),
    [
        (
            [
                "README.md",
                "Wan2.1_VAE.pth",
                "models_t5_umt5-xxl-enc-bf16.pth",
                "google/umt5-xxl/tokenizer.json",
                "high_noise_model/diffusion_pytorch_model-00001-of-00002.safetensors",
                "lingbot_world_fast/config.json",
                "lingbot_world_fast/diffusion_pytorch_model.safetensors.index.json",
                "lingbot_world_fast/diffusion_pytorch_model-00001-of-00002.safetensors",
                "lingbot_world_fast/diffusion_pytorch_model-00002-of-00002.safetensors",
            ],
            4,
            1,
            1,
            1,
        ),
        (["transformers/model-00001-of-00008.safetensors", "Wan2.1_VAE.pth"], 1, 1, 0, 0),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], 2, 0, 0, 0),
        (["checkpoints/self_forcing_dmd.pt", "README.md"], 1, 0, 0, 0),
        (["models/longlive_base.pt", "models/lora.pt"], 2, 0, 0, 0),
        (
            [
                "model_index.json",
                "transformer/config.json",
                "transformer/diffusion_pytorch_model.safetensors",
                "vae/config.json",
                "vae/diffusion_pytorch_model.safetensors",
                "text_encoder/config.json",
                "text_encoder/model-00001-of-00001.safetensors",
                "text_encoder/model.safetensors.index.json",
                "tokenizer/spiece.model",
                "scheduler/scheduler_config.json",
            ],
            2,
            2,
            3,
            1,
        ),
    ],
    ids=["lingbot-world-fast", "v2-14b", "v2-1.3b", "self-forcing", "longlive", "diffusers"],
)
def test_the_parts_of_every_public_layout_are_found(files, transformer, vae, text, tokenizer):
    found = layouts.find_parts(files)
    assert [len(part) for part in found] == [transformer, vae, text, tokenizer]
    assert not any("high_noise" in file or file == "README.md" for part in found for file in part)


def test_what_was_trained_beside_its_base_model_is_not_guessed(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "self_forcing_dmd.pt")
    with pytest.raises(ValueError, match=r"diffusion_pytorch_model\.safetensors, self_forcing_dmd\.pt, any of which"):
        checkpoint.plan_transformer(tmp_path, SMALL)


def test_a_config_that_is_no_json_is_named(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        checkpoint.plan_transformer(tmp_path, SMALL)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="holds no names"):
        checkpoint.plan_transformer(tmp_path, SMALL)
