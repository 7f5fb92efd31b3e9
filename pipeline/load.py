"""A preset's parts: from a checkpoint, from the package, or random for speed work."""

import hashlib
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from pipeline import checkpoint
from pipeline.presets import Preset
from pipeline.sampler import noise
from pipeline.text_encoder import EncodedPrompt, PromptCache
from pipeline.tiny.load import load_tiny, make_tiny
from pipeline.transformer import Transformer
from pipeline.vae import StreamingDecoder, StreamingEncoder, WanVAE

RANDOM = "random"
RANDOM_ROWS = 16
RANDOM_SCALE = 0.02


class VAE(Protocol):
    """Weights of a VAE, and what keeps one stream's state."""

    dtype: torch.dtype

    def decoder(self) -> StreamingDecoder: ...
    def encoder(self) -> StreamingEncoder: ...


class Parts(NamedTuple):
    """What an engine runs; the text encoder behind its cache."""

    transformer: Transformer
    vae: VAE
    text: PromptCache


def load_parts(preset: Preset, weights: str | Path | None, device: torch.device) -> Parts:
    """The parts of `preset` on `device`: Wan transformers in bfloat16 on a GPU, everything else in float32.

    `weights` is a folder in a public layout (see pipeline.checkpoint), "random", or None for those that come with the
    tiny preset. Raises ValueError, with what would be right, when there are none.
    """
    if weights is None:
        return _own_weights(preset, device)
    if str(weights) == RANDOM:
        return _random_parts(preset, device)
    folder = Path(weights)
    if not folder.exists():
        raise ValueError(f"there is no {folder}: --weights takes the folder of a checkpoint, or 'random'")
    if preset.vae == "tiny":
        return _tiny_parts(load_tiny(device, folder))
    transformer = checkpoint.load_transformer(folder, preset.transformer, _dtype(device), device)
    vae = checkpoint.load_vae(folder, torch.float32, device)
    text = checkpoint.load_text_encoder(folder, _dtype(device), device)
    return Parts(transformer, vae, PromptCache(text))


def _own_weights(preset: Preset, device: torch.device) -> Parts:
    if preset.vae != "tiny":
        raise ValueError(
            f"the preset {preset.name} has no weights of its own: give --weights DIR, a checkpoint's folder, "
            f"or --weights {RANDOM} to try its speed"
        )
    return _tiny_parts(load_tiny(device))


def _tiny_parts(world) -> Parts:
    return Parts(world.transformer, world.vae, PromptCache(world.text))


def _random_parts(preset: Preset, device: torch.device) -> Parts:
    if preset.vae == "tiny":
        world = make_tiny()
        return Parts(
            world.transformer.to(device).eval().requires_grad_(False),
            world.vae.to(device).eval().requires_grad_(False),
            PromptCache(world.text),
        )
    transformer = _random_transformer(preset, device)
    vae = WanVAE().to(device).eval().requires_grad_(False)
    return Parts(transformer, vae, PromptCache(RandomText(preset.transformer.text_dim)))


def _random_transformer(preset: Preset, device: torch.device) -> Transformer:
    """At true size; made where it runs, because 14B parameters do not fit twice."""
    with torch.device("meta"):
        model = Transformer(preset.transformer)
    model = model.to(_dtype(device)).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm_q.weight", "norm_k.weight", "norm3.weight")):
                parameter.fill_(1)
            else:
                parameter.normal_(0, RANDOM_SCALE, generator=generator)
    return model.eval().requires_grad_(False)


class RandomText:
    """Rows that a prompt's sha256 draws: a text encoder's cost and meaning left out, its shapes kept."""

    def __init__(self, text_dim: int):
        self._text_dim = text_dim

    def encode(self, prompt: str) -> EncodedPrompt:
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")
        return EncodedPrompt(noise(seed, 0, 0, (RANDOM_ROWS, self._text_dim)), prompt, ())

    def merge(self, previous: str, prompt: str) -> str:
        return prompt


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32
