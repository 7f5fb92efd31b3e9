"""Public checkpoint layouts to ours.

Nothing is half loaded: missing, unexpected and mis-shaped tensors are one ValueError that names them and the file.
Models are built on the meta device and take over the tensors that were read.
"""

import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.text_encoder import UMT5Encoder, load_tokenizer
from pipeline.transformer import Transformer, TransformerConfig
from pipeline.vae import WanVAE

if TYPE_CHECKING:  # importing it takes seconds, which a model with another text encoder need not pay
    from transformers import UMT5EncoderModel

Model = TypeVar("Model", bound=nn.Module)
Place = Callable[[str, Tensor], Tensor]

TRANSFORMER_FOLDERS = ("lingbot_world_fast", "transformers", ".")  # within a checkpoint's folder
TRAINED_PARTS = ("generator_ema", "generator")  # of a Self-Forcing file, the better one first
WRAPPERS = ("model.", "_fsdp_wrapped_module.")  # what training put before every name
VAE_FILE = "Wan2.1_VAE.pth"
TEXT_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER_FOLDER = "google/umt5-xxl"
FLOAT32_NAMES = re.compile(r"(^|\.)(time_embedding|time_projection|modulation|norm_q|norm_k|norm3)(\.|$)")

UMT5_XXL = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_heads": 64,
    "num_layers": 24,
    "relative_attention_num_buckets": 32,
}
_UMT5_TOP = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
_UMT5_BLOCK = {
    "norm1": "0.layer_norm",
    "attn.q": "0.SelfAttention.q",
    "attn.k": "0.SelfAttention.k",
    "attn.v": "0.SelfAttention.v",
    "attn.o": "0.SelfAttention.o",
    "pos_embedding.embedding": "0.SelfAttention.relative_attention_bias",
    "norm2": "1.layer_norm",
    "ffn.gate.0": "1.DenseReluDense.wi_0",
    "ffn.fc1": "1.DenseReluDense.wi_1",
    "ffn.fc2": "1.DenseReluDense.wo",
}


def load_transformer(
    path: Path, config: TransformerConfig, dtype: torch.dtype, device: torch.device | str
) -> Transformer:
    """The transformer in a checkpoint's folder or in one file (.safetensors, .pt, .pth).

    What models of this family compute in float32 (time embedding, modulation, norms) stays so; all else becomes
    `dtype`. Raises ValueError where nothing is found, what is found cannot be read, or does not fit `config`.
    """

    def place(name: str, tensor: Tensor) -> Tensor:
        return tensor.to(device, torch.float32 if FLOAT32_NAMES.search(name) else dtype)

    source = _find_transformer(path)
    state = _unwrapped(read_tensors(source), source)
    return assemble(lambda: Transformer(config), state, source, place)


def load_vae(folder: Path, dtype: torch.dtype, device: torch.device | str) -> WanVAE:
    """Wan2.1_VAE.pth of a checkpoint's folder. Raises ValueError as `load_transformer` does."""
    source = _existing(folder / VAE_FILE, "the VAE")
    return assemble(WanVAE, read_tensors(source), source, lambda _, tensor: tensor.to(device, dtype))


def load_text_encoder(folder: Path, dtype: torch.dtype, device: torch.device | str) -> UMT5Encoder:
    """The text encoder and tokenizer of a checkpoint's folder. Raises ValueError as `load_transformer` does."""
    source = _existing(folder / TEXT_FILE, "the text encoder")
    tokenizer = load_tokenizer(folder / TOKENIZER_FOLDER)
    model = assemble_umt5(read_tensors(source), source, UMT5_XXL, lambda _, tensor: tensor.to(device, dtype))
    return UMT5Encoder(model, tokenizer)


def read_tensors(source: Path) -> dict:
    """What a folder of safetensors or a single file holds; a .pt or .pth may hold a tree of dicts.

    Only tensors and plain containers are read from .pt and .pth, never code. Raises ValueError that names the file.
    """
    if source.is_dir():
        return {name: tensor for shard in _shards(source) for name, tensor in read_tensors(shard).items()}
    try:
        if source.suffix == ".safetensors":
            return load_file(source)
        return torch.load(source, map_location="cpu", mmap=zipfile.is_zipfile(source), weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{source} cannot be read as weights: {error}") from error
    except Exception as error:  # torch raises pickle's errors, whose class depends on what the file holds
        raise ValueError(f"{source} is no file of tensors: {error}") from error


def _shards(folder: Path) -> list[Path]:
    """The safetensors of a folder, as its index lists them if it has one."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if not indexes:
        return sorted(folder.glob("*.safetensors"))
    try:
        names = sorted(set(json.loads(indexes[0].read_text())["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{indexes[0]} is no index of safetensors: {error!r}") from error
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(f"{indexes[0]} lists files that are not there: {', '.join(absent)}")
    return [folder / name for name in names]


def _find_transformer(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"there are no weights at {path}: no such file or folder")
    for name in TRANSFORMER_FOLDERS:
        if any((path / name).glob("*.safetensors")) or any((path / name).glob("*.safetensors.index.json")):
            return path / name
    files = sorted(path.glob("*.pt"))
    if len(files) == 1:
        return files[0]
    raise ValueError(
        f"{path} holds no transformer: looked for *.safetensors in {', '.join(TRANSFORMER_FOLDERS)} and for one *.pt, "
        f"found {len(files)} of those"
    )


def _existing(file: Path, what: str) -> Path:
    if not file.is_file():
        raise ValueError(f"{what} is missing: there is no {file}")
    return file


def _unwrapped(content: dict, source: Path) -> dict[str, Tensor]:
    """The transformer's tensors under their own names."""
    for part in TRAINED_PARTS:
        if isinstance(content.get(part), dict):
            content = content[part]
            break
    state = {_without_wrappers(name): tensor for name, tensor in content.items()}
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{source} holds no tensors of a model, nor {' or '.join(TRAINED_PARTS)}")
    return state


def _without_wrappers(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _as_is(_: str, tensor: Tensor) -> Tensor:
    return tensor


def assemble(
    make: Callable[[], Model], state: Mapping[str, Tensor], source: Path | str, place: Place = _as_is
) -> Model:
    """A model for inference whose weights are the tensors of `state`; `make` runs on the meta device.

    place(name, tensor) brings each to its dtype and device once all are known to fit. Raises
    one ValueError that names `source` and every missing, unexpected and mis-shaped tensor.
    """
    with torch.device("meta"):
        model = make()
    _check_fit(model.state_dict(), state, source)
    model.load_state_dict({name: place(name, tensor) for name, tensor in state.items()}, assign=True)
    return model.eval().requires_grad_(False)


def assemble_umt5(
    state: Mapping[str, Tensor], source: Path | str, sizes: Mapping[str, int], place: Place = _as_is
) -> "UMT5EncoderModel":
    """The text encoder from the names of the published `.pth`; `sizes` as in UMT5_XXL. Raises as `assemble` does."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        **{name: sizes[name] for name in UMT5_XXL},
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )
    renamed = {umt5_name(name): tensor for name, tensor in state.items()}
    if (table := renamed.get("shared.weight")) is not None:
        renamed["encoder.embed_tokens.weight"] = table  # transformers names the one table twice
    return assemble(lambda: UMT5EncoderModel(config), renamed, source, place)


def umt5_name(name: str) -> str:
    """A tensor's name in the published text encoder to its name in transformers; unknown ones stay as they are."""
    if name in _UMT5_TOP:
        return _UMT5_TOP[name]
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name)
    if match is None or match[2] not in _UMT5_BLOCK:
        return name
    return f"encoder.block.{match[1]}.layer.{_UMT5_BLOCK[match[2]]}.weight"


def _check_fit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], source: Path | str) -> None:
    wrong = [
        f"{name} is {tuple(given[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & given.keys())
        if wanted[name].shape != given[name].shape
    ]
    lines = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "mis-shaped": wrong,
    }
    faults = [f"{kind}: {', '.join(names)}" for kind, names in lines.items() if names]
    if faults:
        raise ValueError(f"the weights of {source} do not fit the model; " + "; ".join(faults))
