"""Public checkpoints to our models.

Loading is planned first: what is missing, unexpected or mis-shaped is known from the headers, and is one ValueError
that names all of it and the file. Only then a model is built on the meta device and filled a tensor at a time, each
read, brought to its dtype and device, and let go, so the host holds little more than one tensor at once.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from pipeline import layouts
from pipeline.layouts import CONFIG, PICKLE_FOLDERS, TRANSFORMER_FOLDERS, Layout, find_parts
from pipeline.lora import is_lora, with_lora
from pipeline.tensors import INDEX, Reader, Stored, scan, shards
from pipeline.transformer import Transformer, TransformerConfig
from pipeline.vae import WanVAE, WanVAEConfig

if TYPE_CHECKING:  # importing it takes seconds, which a model with another text encoder need not pay
    from transformers import UMT5EncoderModel

Model = TypeVar("Model", bound=nn.Module)

FLOAT32_NAMES = re.compile(r"(^|\.)(time_embedding|time_projection|modulation|norm_q|norm_k|norm3)(\.|$)")
MADE_ON_LOADING = ".weight_scale"  # of FP8 linears: no checkpoint has it

UMT5_XXL = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_heads": 64,
    "num_layers": 24,
    "relative_attention_num_buckets": 32,
}


@dataclass(frozen=True)
class Plan(Generic[Model]):
    """One model of a checkpoint: its tensors, under our names, are known to fit, and none has been read.

    `source` is the file or folder that they lie in; names that match `wide` become float32 whatever is asked for.
    """

    source: Path
    make: Callable[[], Model]
    tensors: Mapping[str, Stored]
    wide: re.Pattern[str] | None = None

    @property
    def nbytes(self) -> int:
        """What is to be read."""
        return sum(stored.nbytes for stored in self.tensors.values())

    def load(
        self, dtype: torch.dtype, device: torch.device | str, read: Callable[[int], object] = lambda count: None
    ) -> Model:
        """The model, ready for inference; `read(count)` is told of every `count` bytes that have been read."""
        with torch.device("meta"):
            model = self.make()
        reader = Reader()
        ties, owners = _ties(model), dict(model.named_modules(remove_duplicate=False))
        for name, stored in self.tensors.items():
            wanted = torch.float32 if self.wide is not None and self.wide.search(name) else dtype
            tensor = _placed(stored, wanted, torch.device(device), reader)
            for each in (name, *ties.get(name, ())):
                _put(owners, each, tensor)
            read(stored.nbytes)
        empty = [name for name, each in (*model.named_parameters(), *model.named_buffers()) if each.is_meta]
        assert not empty, f"{self.source} was known to fill everything, but not {empty}"
        return model.eval().requires_grad_(False)


class Checkpoint(NamedTuple):
    """A plan of each part, and the tokenizer's folder."""

    transformer: Plan[Transformer]
    vae: Plan[WanVAE]
    text: "Plan[UMT5EncoderModel]"
    tokenizer: Path

    @property
    def nbytes(self) -> int:
        return self.transformer.nbytes + self.vae.nbytes + self.text.nbytes


def plan_checkpoint(
    weights: Path,
    config: TransformerConfig,
    *,
    parts: Path | None = None,
    lora: Path | None = None,
    vae: WanVAEConfig | None = None,
    text: Mapping[str, int] = UMT5_XXL,
    whose: str = "the model",
) -> Checkpoint:
    """Everything that a Wan model needs: the transformer from `weights`, the rest from `parts` or beside it.

    Raises one ValueError that says all that is missing or does not fit; `whose` names in it what `config` belongs to.
    """
    folders = part_folders(weights, parts)
    steps: Sequence[Callable[[], Any]] = (
        lambda: plan_transformer(weights, config, lora, whose),
        lambda: plan_vae(folders, vae),
        lambda: plan_text_encoder(folders, text),
        lambda: find_tokenizer(folders),
    )
    results, faults = [], []
    for step in steps:
        try:
            results.append(step())
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("; ".join(faults))
    return Checkpoint(*results)


def part_folders(weights: Path, parts: Path | None) -> tuple[Path, ...]:
    """Where the VAE, the text encoder and the tokenizer may lie, the likelier first."""
    beside = weights.parent if weights.is_file() else weights
    return (beside,) if parts is None else (parts, beside)


# The transformer


def plan_transformer(
    path: Path, config: TransformerConfig, lora: Path | None = None, whose: str = "the model"
) -> Plan[Transformer]:
    """The transformer in a checkpoint's folder or in one file, with a LoRA (a file or a folder) merged in.

    A folder of .pt files may hold the LoRA beside its base. What models of this family compute in float32 (time
    embedding, modulation, norms) stays so; all else takes the dtype that load() is given. Raises ValueError where
    nothing is found, what is found cannot be read, or does not fit `config`.
    """
    files, beside = _transformer_files(path)
    _check_config(files, _transformer_sizes(config), whose)
    weights = _weights(files)
    source = _source(weights)
    tensors = _renamed(scan(weights), layouts.transformer_name, source)
    if lora is not None or beside is not None:
        tensors = _with_lora(tensors, lora or beside)
    return _planned(source, lambda: Transformer(config), tensors, FLOAT32_NAMES)


def _transformer_files(path: Path) -> tuple[list[Path], Path | None]:
    """The transformer's files, and a LoRA's that lies beside them."""
    if path.is_file():
        return [path], None
    if not path.is_dir():
        raise ValueError(f"there are no weights at {path}: no such file or folder")
    files = [path / name for name in layout_of(path).transformer]
    if len({file.suffix for file in files} & {".pt", ".safetensors"}) > 1:
        listed = ", ".join(file.name for file in files if file.suffix in (".pt", ".safetensors"))
        raise ValueError(f"{path} holds {listed}, any of which may be the transformer; name the file that is meant")
    if files and files[0].suffix == ".pt":
        return _base_and_lora(files)
    if not files:
        raise ValueError(
            f"{path} holds no transformer: looked for *.safetensors in {', '.join(TRANSFORMER_FOLDERS)} and for *.pt "
            f"in {', '.join(PICKLE_FOLDERS)}"
        )
    return files, None


def _base_and_lora(files: list[Path]) -> tuple[list[Path], Path | None]:
    """Which of several .pt files is the model and which its LoRA, by what they hold."""
    loras = [file for file in files if is_lora(scan([file]))] if len(files) > 1 else []
    bases = [file for file in files if file not in loras]
    if len(bases) != 1 or len(loras) > 1:
        listed = ", ".join(file.name for file in files)
        raise ValueError(f"{files[0].parent} holds {listed}; name the one that is meant, and its LoRA if it has one")
    return bases, loras[0] if loras else None


def _with_lora(tensors: Mapping[str, Stored], path: Path) -> dict[str, Stored]:
    if not path.exists():
        raise ValueError(f"there is no LoRA at {path}: no such file or folder")
    files = shards(path) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no LoRA: looked for *.safetensors")
    return with_lora(tensors, scan(files), files[0])


def _transformer_sizes(config: TransformerConfig) -> dict[str, int]:
    """As the configurations of both public layouts call them."""
    return {
        "dim": config.dim,
        "ffn_dim": config.ffn_dim,
        "num_heads": config.heads,
        "num_attention_heads": config.heads,
        "attention_head_dim": config.head_width,
        "num_layers": config.layers,
        "in_dim": config.in_channels,
        "in_channels": config.in_channels,
        "out_dim": config.out_channels,
        "out_channels": config.out_channels,
        "text_dim": config.text_dim,
        "text_len": config.text_rows,
        "freq_dim": config.time_frequencies,
    }


# The other parts


def plan_vae(folders: Iterable[Path], config: WanVAEConfig | None = None) -> Plan[WanVAE]:
    """Wan2.1_VAE.pth, or vae/ of the diffusers layout, in the first of `folders` that has one."""
    config = config or WanVAEConfig()
    files = _first(folders, "vae", "the VAE", (layouts.VAE_FILE, layouts.VAE_FOLDER))
    _check_config(files, _vae_sizes(config), "the Wan 2.1 VAE")
    weights = _weights(files)
    stored = scan(weights)
    source = _source(weights)
    tensors = _renamed(stored, layouts.vae_rename(stored, config.residual_blocks), source)
    return _planned(source, lambda: WanVAE(config), tensors)


def _vae_sizes(config: WanVAEConfig) -> dict[str, Any]:
    return {
        "base_dim": config.dim,
        "z_dim": config.latent_channels,
        "dim_mult": list(config.multipliers),
        "num_res_blocks": config.residual_blocks,
        "temperal_downsample": list(config.temporal_downsample),  # so spelled by diffusers
        "latents_mean": list(config.mean),
        "latents_std": list(config.std),
    }


def plan_text_encoder(folders: Iterable[Path], sizes: Mapping[str, int] = UMT5_XXL) -> "Plan[UMT5EncoderModel]":
    """The umt5 .pth, or text_encoder/ of the diffusers layout, in the first of `folders` that has one."""
    files = _first(folders, "text", "the text encoder", (layouts.TEXT_FILE, layouts.TEXT_FOLDER))
    _check_config(files, sizes, "umt5-xxl")
    weights = _weights(files)
    source = _source(weights)
    return _planned(source, _umt5(sizes), _umt5_tensors(scan(weights), source))


def _umt5(sizes: Mapping[str, int]) -> "Callable[[], UMT5EncoderModel]":
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        **{name: sizes[name] for name in UMT5_XXL},
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )
    return lambda: UMT5EncoderModel(config)


def _umt5_tensors(stored: Mapping[str, Stored], source: Path) -> dict[str, Stored]:
    if "shared.weight" in stored:  # a file of transformers may hold the one table twice
        stored = {name: each for name, each in stored.items() if name != "encoder.embed_tokens.weight"}
    return _renamed(stored, layouts.umt5_name, source)


def find_tokenizer(folders: Iterable[Path]) -> Path:
    """The tokenizer's folder in the first of `folders` that has one; ValueError when none does."""
    return _first(folders, "tokenizer", "the tokenizer", layouts.TOKENIZER_FOLDERS)[0].parent


# What a folder holds


def layout_of(folder: Path) -> Layout:
    """The parts of a folder on disk."""
    known = {".", layouts.VAE_FOLDER, layouts.TEXT_FOLDER}
    known |= {*TRANSFORMER_FOLDERS, *PICKLE_FOLDERS, *layouts.TOKENIZER_FOLDERS}
    files = (file for name in known if (folder / name).is_dir() for file in (folder / name).iterdir() if file.is_file())
    return find_parts({file.relative_to(folder).as_posix() for file in files})


def _first(folders: Iterable[Path], part: str, what: str, places: Sequence[str]) -> list[Path]:
    """The files of a part in the first folder that has it; the message when none has names `what` and the `places`."""
    folders = tuple(folders)
    for folder in folders:
        if names := getattr(layout_of(folder), part):
            return [folder / name for name in names]
    tried = " nor ".join(str(folders[0] / place) for place in places)
    raise ValueError(f"{what} is missing: there is no {tried} (--parts names a folder that has it)")


def _weights(files: Sequence[Path]) -> list[Path]:
    """Those of a part's files that hold tensors; the index says which where there is one."""
    if any(file.name.endswith(INDEX) for file in files):
        return shards(files[0].parent)
    return [file for file in files if file.name != CONFIG]


def _source(weights: Sequence[Path]) -> Path:
    """What a message about these files names."""
    return weights[0] if len(weights) == 1 else weights[0].parent


def _check_config(files: Sequence[Path], wanted: Mapping[str, Any], whose: str) -> None:
    """Raise ValueError where a part's config.json tells other sizes than are wanted; what it does not tell is fine."""
    for file in files:
        if file.name != CONFIG:
            continue
        try:
            told = json.loads(file.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is no JSON: {error}") from error
        if not isinstance(told, dict):
            raise ValueError(f"{file} is no configuration: it holds no names")
        wrong = [f"{key} {told[key]}, not {wanted[key]}" for key in wanted if told.get(key) not in (None, wanted[key])]
        if wrong:
            raise ValueError(f"{file} contradicts {whose}: it says {'; '.join(wrong)}")


# Tensors to models


def _as_is(_: str, tensor: Tensor) -> Tensor:
    return tensor


def assemble(
    make: Callable[[], Model],
    state: Mapping[str, Tensor],
    source: Path | str,
    place: Callable[[str, Tensor], Tensor] = _as_is,
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


def assemble_umt5(state: Mapping[str, Tensor], source: Path | str, sizes: Mapping[str, int]) -> "UMT5EncoderModel":
    """The text encoder from the names of the published `.pth`; `sizes` as in UMT5_XXL. Raises as `assemble` does."""
    renamed = {layouts.umt5_name(name): tensor for name, tensor in state.items()}
    if (table := renamed.get("shared.weight")) is not None:
        renamed["encoder.embed_tokens.weight"] = table  # transformers names the one table twice
    return assemble(_umt5(sizes), renamed, source)


def _planned(
    source: Path, make: Callable[[], Model], tensors: Mapping[str, Stored], wide: re.Pattern[str] | None = None
) -> Plan[Model]:
    with torch.device("meta"):
        wanted = _without_ties(make())
    _check_fit(wanted, tensors, source)
    return Plan(source, make, dict(tensors), wide)


def _without_ties(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with one name for each tensor."""
    tied = {name for names in _ties(model).values() for name in names}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def _ties(model: nn.Module) -> dict[str, list[str]]:
    """The further names of each parameter that has more than one, by its first."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {first: others for first, *others in names.values() if others}


def _renamed(stored: Mapping[str, Stored], rename: layouts.Rename, source: Path) -> dict[str, Stored]:
    """Raises ValueError where two tensors would get one name."""
    renamed: dict[str, Stored] = {}
    for name, each in stored.items():
        if rename(name) in renamed:
            raise ValueError(f"{source} holds {rename(name)} twice, once as {name}")
        renamed[rename(name)] = each
    return renamed


def _placed(stored: Stored, dtype: torch.dtype, device: torch.device, reader: Reader) -> Tensor:
    """A tensor of our own: what was read may be a view of the file."""
    tensor = torch.empty(stored.shape, dtype=dtype, device=device)
    return tensor.copy_(stored.read(device, reader))


def _put(owners: Mapping[str, nn.Module], name: str, tensor: Tensor) -> None:
    """Make `tensor` the parameter of that name, through the module's own loading: FP8 linears quantize there."""
    module, _, leaf = name.rpartition(".")
    owners[module].load_state_dict({leaf: tensor}, strict=False, assign=True)


def _check_fit(
    wanted: Mapping[str, Tensor], given: "Mapping[str, Tensor] | Mapping[str, Stored]", source: Path | str
) -> None:
    needed = {name for name in wanted if not name.endswith(MADE_ON_LOADING)}
    common = sorted(needed & given.keys())
    lines = {
        "missing": sorted(needed - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "mis-shaped": [
            f"{name} is {tuple(given[name].shape)}, not {tuple(wanted[name].shape)}"
            for name in common
            if tuple(wanted[name].shape) != tuple(given[name].shape)
        ],
        "no floating-point numbers of 16 bits or more": [
            f"{name} ({given[name].dtype})"
            for name in common
            if isinstance(given[name], Stored) and not given[name].floats
        ],
    }
    faults = [f"{kind}: {', '.join(names)}" for kind, names in lines.items() if names]
    if faults:
        raise ValueError(f"the weights of {source} do not fit the model; " + "; ".join(faults))
