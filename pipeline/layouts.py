"""How public checkpoints are laid out: which files hold which part, and what their tensors are called with us.

Paths are relative to the checkpoint's root, with forward slashes, so that the same rules hold for a folder on disk and
for a listing of the hub.
"""

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

TRANSFORMER_FOLDERS = ("lingbot_world_fast", "transformers", "transformer", ".")
PICKLE_FOLDERS = (".", "checkpoints", "models")  # where training runs' .pt files lie
VAE_FILE, VAE_FOLDER = "Wan2.1_VAE.pth", "vae"
TEXT_FILE, TEXT_FOLDER = "models_t5_umt5-xxl-enc-bf16.pth", "text_encoder"
TOKENIZER_FOLDERS = ("google/umt5-xxl", "tokenizer")
CONFIG = "config.json"
LORA_CONFIG = "adapter_config.json"  # beside a LoRA, with its alpha
WRAPPERS = ("model.", "module.")  # what training put before every name
INNER_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")  # and before any part of it

Rename = Callable[[str], str]


class Layout(NamedTuple):
    """The files of each part; none where a part is not there.

    `transformer` may be several .pt files to look into, and holds .safetensors and .pt files where both may be meant.
    """

    transformer: tuple[str, ...]
    vae: tuple[str, ...]
    text: tuple[str, ...]
    tokenizer: tuple[str, ...]


def find_parts(names: Iterable[str]) -> Layout:
    """Which of the files `names` belong to which part."""
    files = sorted(names)
    return Layout(
        _transformer_files(files),
        _file_or_folder(files, VAE_FILE, VAE_FOLDER),
        _file_or_folder(files, TEXT_FILE, TEXT_FOLDER),
        next((found for folder in TOKENIZER_FOLDERS if (found := _inside(files, folder, ""))), ()),
    )


def _transformer_files(files: list[str]) -> tuple[str, ...]:
    pickles = next((found for folder in PICKLE_FOLDERS if (found := _inside(files, folder, ".pt"))), ())
    for folder in TRANSFORMER_FOLDERS:
        if weights := _weights_inside(files, folder):
            # At the root lies the base model of some, beside which people put what was trained from it.
            return weights + pickles if folder == "." else weights
    return pickles


def _file_or_folder(files: list[str], file: str, folder: str) -> tuple[str, ...]:
    return (file,) if file in files else _weights_inside(files, folder)


def _weights_inside(files: list[str], folder: str) -> tuple[str, ...]:
    """The folder's .safetensors with their index and configuration."""
    weights = _inside(files, folder, ".safetensors") + _inside(files, folder, ".safetensors.index.json")
    return weights + tuple(f for f in _inside(files, folder, CONFIG) if PurePosixPath(f).name == CONFIG) * bool(weights)


def _inside(files: list[str], folder: str, ending: str) -> tuple[str, ...]:
    return tuple(f for f in files if PurePosixPath(f).parent == PurePosixPath(folder) and f.endswith(ending))


def transformer_name(name: str) -> str:
    """Ours for a tensor's name in a public transformer: wrappers of training go, diffusers' names are translated."""
    return _without_diffusers(without_wrappers(name))


def without_wrappers(name: str) -> str:
    """A name as it was before training wrapped the model."""
    for wrapper in INNER_WRAPPERS:
        name = name.replace(wrapper, "")
    while wrapper := next((each for each in WRAPPERS if name.startswith(each)), ""):
        name = name.removeprefix(wrapper)
    return name


def _renamed(name: str, table: dict[str, str]) -> str:
    """`name` with its longest leading module that is in `table` replaced; others stay as they are."""
    module, rest = name, ""
    while module not in table:
        module, dot, last = module.rpartition(".")
        if not dot:
            return name
        rest = f".{last}{rest}"
    return table[module] + rest


_DIFFUSERS_TOP = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
}
_DIFFUSERS_BLOCK = {
    "scale_shift_table": "modulation",
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
} | {
    f"{theirs}.{their_part}": f"{ours}.{our_part}"
    for theirs, ours in (("attn1", "self_attn"), ("attn2", "cross_attn"))
    for their_part, our_part in (
        *(("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o")),
        *(("norm_q", "norm_q"), ("norm_k", "norm_k")),
    )
}


def _without_diffusers(name: str) -> str:
    if match := re.fullmatch(r"(blocks\.\d+\.)(.+)", name):
        return match[1] + _renamed(match[2], _DIFFUSERS_BLOCK)
    return _renamed(name, _DIFFUSERS_TOP)


_VAE_TOP = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
_VAE_SIDE = {
    "conv_in": "conv1",
    "norm_out": "head.0",
    "conv_out": "head.2",
    "mid_block.resnets.0": "middle.0",
    "mid_block.attentions.0": "middle.1",
    "mid_block.resnets.1": "middle.2",
}
_VAE_RESIDUAL = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}


def vae_rename(names: Collection[str], residual_blocks: int) -> Rename:
    """What translates the names of a public VAE; diffusers numbers its blocks by stage, the .pth from first to last."""
    if "quant_conv.weight" not in names:
        return lambda name: name
    stage = residual_blocks + 2  # a stage of the decoder: one block more than the encoder's, then its upsampling

    def rename(name: str) -> str:
        side, dot, rest = name.partition(".")
        if side not in ("encoder", "decoder"):
            return _renamed(name, _VAE_TOP)
        if match := re.fullmatch(r"down_blocks\.(\d+)\.(.+)", rest):
            return f"{side}.downsamples.{match[1]}.{_renamed(match[2], _VAE_RESIDUAL)}"
        if match := re.fullmatch(r"up_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", rest):
            place = int(match[1]) * stage + int(match[2])
            return f"{side}.upsamples.{place}.{_renamed(match[3], _VAE_RESIDUAL)}"
        if match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.(.+)", rest):
            return f"{side}.upsamples.{int(match[1]) * stage + stage - 1}.{match[2]}"
        if match := re.fullmatch(r"(mid_block\.resnets\.\d)\.(.+)", rest):
            return f"{side}.{_VAE_SIDE.get(match[1], match[1])}.{_renamed(match[2], _VAE_RESIDUAL)}"
        return side + dot + _renamed(rest, _VAE_SIDE)

    return rename


_UMT5_TOP = {
    "token_embedding": "shared",
    "encoder.embed_tokens": "shared",  # transformers names the one table twice
    "norm": "encoder.final_layer_norm",
}
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


def umt5_name(name: str) -> str:
    """The name in transformers of a tensor of the published umt5 .pth; unknown ones stay, as transformers' own do."""
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name)
    if match is None:
        return _renamed(name, _UMT5_TOP)
    if match[2] not in _UMT5_BLOCK:
        return name
    return f"encoder.block.{match[1]}.layer.{_UMT5_BLOCK[match[2]]}.weight"
