"""The small world's weights: as they lie in the package, and how they get there."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.presets import find_preset
from pipeline.tiny.recognise import Recogniser
from pipeline.tiny.text import TinyTextEncoder
from pipeline.tiny.vae import TinyVAE
from pipeline.transformer import Transformer

WEIGHTS = Path(__file__).parent / "weights"
FILES = ("transformer.safetensors", "vae.safetensors", "text.safetensors", "recogniser.safetensors")


class TinyWorld(NamedTuple):
    """The parts of the tiny preset."""

    transformer: Transformer
    vae: TinyVAE
    text: TinyTextEncoder
    recogniser: Recogniser


def make_tiny(crisp: bool = True) -> TinyWorld:
    """With fresh random weights; `crisp` as in Decoder."""
    config = find_preset("tiny").transformer
    return TinyWorld(Transformer(config), TinyVAE(crisp), TinyTextEncoder(config.text_dim), Recogniser())


def load_tiny(device: torch.device | str = "cpu", folder: Path = WEIGHTS) -> TinyWorld:
    """The trained parts, float32, ready for inference; the text encoder stays on the CPU.

    Raises ValueError that names the file when one is missing or does not fit.
    """
    tensors = [read_part(folder / name) for name in FILES]
    world = make_tiny(crisp=any(name.startswith("decode_latent.crisp") for name in tensors[1]))
    for part, learnt, name in zip(world, tensors, FILES, strict=True):
        _fill(part, learnt, folder / name)
        part.eval().requires_grad_(False)
    world.vae.to(memory_format=torch.channels_last)
    return TinyWorld(world.transformer.to(device), world.vae.to(device), world.text, world.recogniser.to(device))


def take_over(world: TinyWorld, folder: Path) -> list[str]:
    """Fill `world` with those of an earlier training's tensors that still fit; returns the names of those that do not.

    Raises ValueError that names the file when one is missing.
    """
    anew = []
    for part, name in zip(world, FILES, strict=True):
        own, learnt = part.state_dict(), read_part(folder / name)
        fitting = {key: value for key, value in learnt.items() if key in own and own[key].shape == value.shape}
        part.load_state_dict(fitting, strict=False)
        anew += [key for key in own if key not in fitting]
    return anew


def save_tiny(world: TinyWorld, folder: Path, made_by: dict[str, str]) -> None:
    """Write the files in float16, with `made_by` (command, commit, GPU) in their metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, name in zip(world, FILES, strict=True):
        tensors = {key: value.detach().half().contiguous().cpu() for key, value in part.state_dict().items()}
        save_file(tensors, folder / name, metadata=made_by)


def read_part(path: Path) -> dict[str, Tensor]:
    """One file's tensors as float32. Raises ValueError that names it where it is missing or cannot be read."""
    if not path.is_file():
        raise ValueError(f"there is no {path}, a part of the tiny world's weights; make them: chunkcast train tiny")
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}): fetch or make it again") from None


def _fill(part: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        part.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit this version's tiny world: {error}") from None
