"""A preset's parts: from a checkpoint, from the package, or random for speed work."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.checkpoint import Checkpoint, plan_checkpoint
from pipeline.huggingface import OTHER_PARTS, TRANSFORMER, resolve
from pipeline.presets import Preset
from pipeline.sampler import noise
from pipeline.text_encoder import EncodedPrompt, PromptCache, UMT5Encoder, load_tokenizer
from pipeline.tiny.load import TinyWorld, load_tiny, make_tiny
from pipeline.tiny.text import TinyTextEncoder
from pipeline.transformer import LayerNorm, RMSNorm, Transformer
from pipeline.vae import VAE, WanVAE

RANDOM = "random"
RANDOM_ROWS = 16
RANDOM_SCALE = 0.02


class Parts(NamedTuple):
    """What an engine runs; the text encoder behind its cache.

    `recognise` names in words what the first latent frame (C, h, w) of a picture shows, where a model can.
    """

    transformer: Transformer
    vae: VAE
    text: PromptCache
    recognise: Callable[[Tensor], str] | None = None


def load_parts(
    preset: Preset,
    weights: str | Path | None,
    device: torch.device,
    parts: str | Path | None = None,
    lora: str | Path | None = None,
) -> Parts:
    """The parts of `preset` on `device`: Wan transformers in bfloat16 on a GPU, everything else in float32.

    `weights` is a checkpoint in a public layout (docs/checkpoints.md): a folder, a file, or a name on the hub;
    "random"; or None for those that come with the tiny preset. `parts` is where the VAE, the text encoder and the
    tokenizer come from if not from beside the transformer, `lora` a file that is merged into it. Raises ValueError,
    with what would be right, when there are none or they do not fit, before any of them is read.
    """
    for option, value in (("--parts", parts), ("--lora", lora)):
        if value is not None and (weights in (None, RANDOM) or preset.vae == "tiny"):
            raise ValueError(f"{option} goes with --weights that are a public checkpoint")
    if weights is None:
        return _own_weights(preset, device)
    if str(weights) == RANDOM:
        return _random_parts(preset, device)
    if preset.vae == "tiny":
        return _tiny_parts(load_tiny(device, _tiny_folder(Path(weights))))
    return load_wan(plan_wan(preset, weights, parts, lora), device)


def plan_wan(
    preset: Preset, weights: str | Path, parts: str | Path | None = None, lora: str | Path | None = None, **sizes
) -> Checkpoint:
    """Where everything of a public checkpoint lies, known to fit; files of the hub are fetched first.

    `sizes` are the `vae` and `text` of `plan_checkpoint` where they are not the published ones. Raises as it does.
    """
    beside = OTHER_PARTS if parts is None else ()
    return plan_checkpoint(
        resolve(weights, (TRANSFORMER, *beside)),
        preset.transformer,
        parts=None if parts is None else resolve(parts, OTHER_PARTS),
        lora=None if lora is None else resolve(lora, (TRANSFORMER,)),
        whose=f"the preset {preset.name}",
        **sizes,
    )


def load_wan(plan: Checkpoint, device: torch.device) -> Parts:
    """Read what was planned, with a progress bar on stderr if that is a terminal."""
    tokenizer = load_tokenizer(plan.tokenizer)
    scale = {"unit": "B", "unit_scale": True, "unit_divisor": 1000}
    with tqdm(total=plan.nbytes, desc="loading weights", disable=None, **scale) as bar:
        transformer = plan.transformer.load(_dtype(device), device, bar.update)
        vae = plan.vae.load(torch.float32, device, bar.update)
        text = plan.text.load(_dtype(device), device, bar.update)
    return Parts(transformer, vae, PromptCache(UMT5Encoder(text, tokenizer)))


def _tiny_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: with the tiny preset --weights takes what `train tiny` wrote")
    return folder


def _own_weights(preset: Preset, device: torch.device) -> Parts:
    if preset.vae != "tiny":
        raise ValueError(
            f"the preset {preset.name} has no weights of its own: give --weights a checkpoint's folder, file or name "
            f"on the hub, or --weights {RANDOM} to try its speed"
        )
    return _tiny_parts(load_tiny(device))


def _tiny_parts(world) -> Parts:
    return Parts(world.transformer, world.vae, PromptCache(world.text), world.recogniser.name)


def _random_parts(preset: Preset, device: torch.device) -> Parts:
    if preset.vae == "tiny":
        return _tiny_parts(TinyWorld(*(_at_rest(part, device) for part in make_tiny())))
    transformer = _random_transformer(preset, device)
    vae = WanVAE().to(device).eval().requires_grad_(False)
    return Parts(transformer, vae, PromptCache(RandomText(preset.transformer.text_dim)))


def _at_rest(part: nn.Module, device: torch.device) -> nn.Module:
    part = part.eval().requires_grad_(False)
    return part if isinstance(part, TinyTextEncoder) else part.to(device)


def _random_transformer(preset: Preset, device: torch.device) -> Transformer:
    """At true size; made where it runs and a tensor at a time, because 14B parameters do not fit twice."""
    with torch.device("meta"):
        model = Transformer(preset.transformer)
    generator, dtype = torch.Generator(device).manual_seed(0), _dtype(device)
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if name == "weight_scale":  # of FP8 linears, which make it of the weight
                continue
            tensor = torch.empty(parameter.shape, dtype=dtype, device=device)
            if isinstance(module, RMSNorm | LayerNorm) and name == "weight":
                tensor.fill_(1)
            else:
                tensor.normal_(0, RANDOM_SCALE, generator=generator)
            module.load_state_dict({name: tensor}, strict=False, assign=True)
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
