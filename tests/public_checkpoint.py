"""Small checkpoints as the public ones are laid out, written to disk. `write(folder, layout)` gives what to load."""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from pipeline.checkpoint import UMT5_XXL
from pipeline.presets import Preset, find_preset
from pipeline.transformer import Transformer, TransformerConfig
from pipeline.vae import WanVAE, WanVAEConfig

VAE = WanVAEConfig(dim=4, residual_blocks=1)
UMT5 = {**UMT5_XXL, "vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_heads": 2, "num_layers": 1}
WORDS = ["<pad>", "</s>", "<unk>", "a", "walk", "in", "the", "woods"]
LAYOUTS = {
    "lingbot-world-fast": "lingbot-world-fast",
    "v2-14b": "lingbot-world-v2-14b",
    "v2-1.3b": "lingbot-world-v2-1.3b",
    "self-forcing": "wan2.1-1.3b-self-forcing",
    "longlive": "wan2.1-1.3b-longlive",
    "diffusers": "wan2.1-1.3b-self-forcing",
}
"""The preset that each layout is published for."""


class Written(NamedTuple):
    """What the command line is given, and the transformer that must come out."""

    preset: Preset
    weights: Path
    parts: Path | None
    lora: Path | None
    transformer: dict[str, torch.Tensor]


def small(name: str) -> Preset:
    """A preset with everything of the full one but its widths and its picture."""
    preset = find_preset(name)
    config = TransformerConfig(
        dim=24,
        ffn_dim=32,
        heads=2,
        layers=2,
        in_channels=preset.transformer.in_channels,
        text_dim=UMT5["d_model"],
        camera_channels=preset.transformer.camera_channels,
    )
    return dataclasses.replace(preset, transformer=config, height=32, width=48)


def write(folder: Path, layout: str) -> Written:
    preset = small(LAYOUTS[layout])
    torch.manual_seed(4)
    model = Transformer(preset.transformer)
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return _WRITERS[layout](folder, preset, state)


def write_parts(folder: Path) -> Path:
    """The VAE, the text encoder and the tokenizer, as they lie at the root of the Wan checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(WanVAE(VAE).state_dict(), folder / "Wan2.1_VAE.pth")
    torch.save(_published(_umt5().state_dict()), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    write_tokenizer(folder / "google" / "umt5-xxl")
    return folder


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)


def write_shards(folder: Path, state: dict, name: str, config: dict | None = None, index: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(state)
    files = {name.format(number + 1): names[number::2] for number in range(2)}
    for file, members in files.items():
        save_file({member: state[member].contiguous() for member in members}, folder / file)
    if index:
        place = {member: file for file, members in files.items() for member in members}
        stem = name.split("-0")[0]
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": place}))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))


def _umt5():
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(**UMT5, feed_forward_proj="gated-gelu"))


def _published(state: dict) -> dict:
    names = {
        "layer.0.layer_norm": "norm1",
        "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
        "layer.1.layer_norm": "norm2",
        "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
        "layer.1.DenseReluDense.wi_1": "ffn.fc1",
        "layer.1.DenseReluDense.wo": "ffn.fc2",
    } | {f"layer.0.SelfAttention.{each}": f"attn.{each}" for each in "qkvo"}
    renamed = {
        "token_embedding.weight": state["shared.weight"],
        "norm.weight": state["encoder.final_layer_norm.weight"],
    }
    for theirs, ours in names.items():
        renamed[f"blocks.0.{ours}.weight"] = state[f"encoder.block.0.{theirs}.weight"]
    return renamed


def _wan_config(preset: Preset) -> dict:
    config = preset.transformer
    return {
        "model_type": "i2v",
        "dim": config.dim,
        "ffn_dim": config.ffn_dim,
        "num_heads": config.heads,
        "num_layers": config.layers,
        "in_dim": config.in_channels,
        "out_dim": config.out_channels,
        "text_len": config.text_rows,
    }


def _lingbot_fast(folder: Path, preset: Preset, state: dict) -> Written:
    root = write_parts(folder / "lingbot-world-base-cam")
    name = "diffusion_pytorch_model-0000{}-of-00002.safetensors"
    halves = {name: tensor.bfloat16() for name, tensor in state.items()}
    write_shards(root / "lingbot_world_fast", halves, name, _wan_config(preset))
    write_shards(root / "high_noise_model", {"other": torch.zeros(1), "another": torch.zeros(1)}, name)
    return Written(preset, root, None, None, {name: tensor.float() for name, tensor in halves.items()})


def _v2_14b(folder: Path, preset: Preset, state: dict) -> Written:
    root = write_parts(folder / "v2-14b")
    write_shards(root / "transformers", state, "model-0000{}-of-00008.safetensors", index=False)
    return Written(preset, root, None, None, state)


def _v2_small(folder: Path, preset: Preset, state: dict) -> Written:
    write_shards(folder / "v2-1.3b", state, "model-0000{}-of-00002.safetensors", index=False)
    return Written(preset, folder / "v2-1.3b", write_parts(folder / "v2-14b"), None, state)


def _self_forcing(folder: Path, preset: Preset, state: dict) -> Written:
    file = folder / "self_forcing_dmd.pt"
    wrapped = {f"model._fsdp_wrapped_module.{name}": tensor for name, tensor in state.items()}
    torch.save({"generator": {name: t * 0 for name, t in wrapped.items()}, "generator_ema": wrapped}, file)
    return Written(preset, file, write_parts(folder / "Wan2.1-T2V-1.3B"), None, state)


def _longlive(folder: Path, preset: Preset, state: dict) -> Written:
    models = folder / "models"
    models.mkdir()
    torch.save({"generator": {f"model.{name}": tensor for name, tensor in state.items()}}, models / "longlive_base.pt")
    changed, lora = dict(state), {}
    for name in (f"blocks.{layer}.self_attn.{part}" for layer in range(2) for part in "qkvo"):
        up, down = torch.randn(24, 2), torch.randn(2, 24)
        lora |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
        changed[f"{name}.weight"] = torch.addmm(state[f"{name}.weight"], up, down)
    torch.save({"generator_lora": lora}, models / "lora.pt")
    parts = write_parts(folder / "Wan2.1-T2V-1.3B")
    return Written(preset, models / "longlive_base.pt", parts, models / "lora.pt", changed)


def _diffusers(folder: Path, preset: Preset, state: dict) -> Written:
    """Written by diffusers and transformers themselves; the state is what diffusers drew, under our names."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    from pipeline.layouts import transformer_name

    root, config = folder / "Wan2.1-T2V-1.3B-Diffusers", preset.transformer
    theirs = WanTransformer3DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.head_width,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        text_dim=config.text_dim,
        freq_dim=config.time_frequencies,
        ffn_dim=config.ffn_dim,
        num_layers=config.layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    )
    theirs.save_pretrained(root / "transformer")
    vae = AutoencoderKLWan(base_dim=VAE.dim, num_res_blocks=VAE.residual_blocks)
    vae.save_pretrained(root / "vae")
    _umt5().save_pretrained(root / "text_encoder")
    write_tokenizer(root / "tokenizer")
    return Written(preset, root, None, None, {transformer_name(name): t for name, t in theirs.state_dict().items()})


_WRITERS = {
    "lingbot-world-fast": _lingbot_fast,
    "v2-14b": _v2_14b,
    "v2-1.3b": _v2_small,
    "self-forcing": _self_forcing,
    "longlive": _longlive,
    "diffusers": _diffusers,
}
