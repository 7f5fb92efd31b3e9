"""What a model needs on a GPU, found by rehearsing it on the meta device: the code that serves, without any numbers.

Counted are the weights (transformer and text encoder in bfloat16 with what stays float32, FP8 linears in a byte a
number with their scales, the VAE in its precision), the key-value cache, what each slot keeps (prompt, decoder,
picture), and the most that lives at once while a chunk is denoised and another decoded; a step with FP8 linears is
taken to need what one with others does. Not counted: the CUDA context and libraries (about half a gigabyte), what
pipeline.graphs keeps, and what the allocator loses between blocks.

B slots, T latent frames in a chunk, L tokens in a chunk, R text rows.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.fp8 import FP8
from pipeline.checkpoint import FLOAT32_NAMES, MADE_ON_LOADING, UMT5_XXL
from pipeline.conditioning import ImageConditioning
from pipeline.context import cache_bytes
from pipeline.presets import LATER_FRAMES, Preset
from pipeline.stored import stored_as
from pipeline.tiny.vae import TinyVAE
from pipeline.transformer import TimeTerms, Transformer, rope_angles
from pipeline.vae import VAE, StreamingDecoder, WanVAE
from pipeline.vae_precision import at_vae_precision
from pipeline.vae_rows import RowDecoder

GB = 1e9
META = torch.device("meta")


@dataclass(frozen=True)
class Needs:
    """Bytes on the GPU, and how many numbers the transformer has.

    `text` is the part of `weights` that is the text encoder's. `cache` and `kept` are one slot's. `decoding` is one
    chunk's, for slots are decoded one after another; `denoising` is that of a step by how many slots are in it.
    """

    parameters: int
    weights: int
    text: int
    cache: int
    kept: int
    decoding: int
    denoising: Mapping[int, int]

    def total(self, slots: int) -> int:
        return self.weights + slots * (self.cache + self.kept) + self.decoding + self.denoising[slots]


def needs(
    preset: Preset,
    context: int,
    slots: Iterable[int] = (1, 2),
    vae_precision: str = "exact",
    cache: str = "plain",
    attention: str = "auto",
) -> Needs:
    """What live sessions of `preset` take; `context` is the latent frames kept where it has no window.

    The linears are in the preset's own precision, see pipeline.presets.at_precision; `cache` and `attention` are those
    of an engine. Raises ValueError for a name that does not exist, or a VAE precision that is not for this VAE.
    """
    with META, torch.inference_mode():
        model = _transformer(replace(preset, transformer=replace(preset.transformer, precision="plain")))
        held = model if preset.transformer.precision == "plain" else _transformer(preset)
        count = sum(each.numel() for each in model.parameters())
        text = _text_bytes(preset)
        picture = preset.image == "channels"
        vae = _vae_needs(preset.vae, vae_precision, preset.latent_shape, preset.height, preset.width, picture)
        weights = _bytes(held.parameters()) + vae.weights + text
        prompt = model.embed_text(torch.empty(1, 1, preset.transformer.text_dim))
        kept = _bytes(_tensors(prompt)) + vae.kept
        denoising = {count: _denoising(preset, model, count) for count in slots}
        dtype = torch.float32 if preset.vae == "tiny" else torch.bfloat16
        held_keys = cache_bytes(preset, preset.window or context, 1, stored_as(cache, attention, dtype))
    return Needs(count, weights, text, held_keys, kept, vae.decoding, denoising)


def describe(presets: Iterable[Preset], context: int) -> str:
    """A table of the presets, in lines."""
    rows = [("preset", "parameters", "weights", "1 slot", "2 slots", "picture", "what it is")]
    for preset in presets:
        need = needs(preset, context)
        sizes = (_shown(need.weights), _shown(need.total(1)), _shown(need.total(2)))
        picture = f"{preset.width}x{preset.height} at {preset.fps}"
        rows.append((preset.name, _shown_count(need.parameters), *sizes, picture, preset.summary))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if 1 <= column <= 4 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", *_FOOTNOTE.format(context=context).splitlines()])


_FOOTNOTE = """\
parameters: the transformer's. weights: with the text encoder and the VAE, in bfloat16 (the VAE in float32).
1 slot, 2 slots: GPU memory for the weights, the key-value cache (models without a window keep {context} latent frames),
what each viewer's prompt, picture and decoder keep, and a step's workspace; 1 GB is 10^9 bytes. CUDA itself takes
about half a gigabyte more. What fits this machine: chunkcast doctor --preset NAME"""


def _shown(count: float) -> str:
    return f"{count / GB:.1f} GB" if count >= 0.1 * GB else f"{count / GB:.2f} GB"


def _shown_count(count: int) -> str:
    return f"{count / 1e9:.2f}e9" if count >= 1e9 else f"{count / 1e6:.1f}e6"


def _transformer(preset: Preset) -> Transformer:
    """As it lies on a GPU."""
    model = Transformer(preset.transformer).eval().requires_grad_(False)
    if preset.vae == "tiny":  # it runs in float32 everywhere
        return model
    for name, parameter in model.named_parameters():
        if parameter.dtype != FP8 and not (FLOAT32_NAMES.search(name) or name.endswith(MADE_ON_LOADING)):
            parameter.data = parameter.data.bfloat16()
    return model


class _VAENeeds(NamedTuple):
    """Bytes: of the weights, of what one stream keeps between chunks, and the most that lives while one is decoded.

    Or while a picture is encoded, if that is more.
    """

    weights: int
    kept: int
    decoding: int


@functools.cache  # most presets have the same one
def _vae_needs(
    kind: str, precision: str, latent_shape: tuple[int, ...], height: int, width: int, picture: bool
) -> _VAENeeds:
    """`picture`: the stream also keeps the latents of the picture that it continues."""
    channels, _, *size = latent_shape
    whole = (TinyVAE() if kind == "tiny" else WanVAE()).eval().requires_grad_(False)
    vae = at_vae_precision(whole, precision, tuple(size))
    weights = _weights_of(vae)
    decoder = vae.decoder()
    decoding = _decoding(decoder, torch.empty(channels, 1, *size), (3, LATER_FRAMES, height, width))
    kept, image = [decoder], torch.empty(3, height, width)
    if picture:
        decoding = max(decoding, _peak(lambda: kept.append(ImageConditioning(vae.encoder(), image))))
    shared = {id(each) for each in weights}
    return _VAENeeds(_bytes(weights), _bytes(each for each in _tensors(kept) if id(each) not in shared), decoding)


def _weights_of(vae: VAE) -> list[Tensor]:
    """Of all copies that it holds, or of itself."""
    if isinstance(vae, nn.Module):
        return list(vae.parameters())
    modules = [each for each in vars(vae).values() if isinstance(each, nn.Module)]
    return [*_tensors(vae), *(parameter for module in modules for parameter in module.parameters())]


def _decoding(decoder: StreamingDecoder, latent: Tensor, frames: tuple[int, ...]) -> int:
    """The most that lives while a latent frame is decoded, as the engine does one at a time."""
    if isinstance(decoder, RowDecoder):  # it works in what it keeps, and its pictures are copied out
        return _bytes([torch.empty(frames)])
    decoder.decode(latent)  # a stream's first is shorter
    return _peak(lambda: decoder.decode(latent))


def _text_bytes(preset: Preset) -> int:
    """Of the text encoder, which `transformers` need not be imported for."""
    if preset.text == "tiny":
        return 0
    sizes = UMT5_XXL
    width, inner = sizes["d_model"], sizes["num_heads"] * sizes["d_kv"]
    bias = sizes["relative_attention_num_buckets"] * sizes["num_heads"]
    layer = 4 * width * inner + bias + 3 * width * sizes["d_ff"] + 2 * width
    return 2 * (sizes["vocab_size"] * width + sizes["num_layers"] * layer + width)


class _Blind:
    """A Memory that sees nothing: what attention itself allocates is its result."""

    def __init__(self, rope: tuple[Tensor, Tensor]):
        self.rope = rope

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.empty_like(q)


def _denoising(preset: Preset, model: Transformer, slots: int) -> int:
    """The most that lives at once while a chunk of each slot goes through the transformer, its camera's terms included.

    The blocks are alike, so two of them stand for all; what the camera gives each block is counted for all.
    """
    config, shape = preset.transformer, preset.latent_shape
    short = nn.ModuleList(list(model.blocks)[:2])
    every, model.blocks = model.blocks, short
    try:
        text = model.embed_text(torch.empty(slots, 1, config.text_dim))
        time = TimeTerms(torch.empty(slots, config.dim), torch.empty(slots, 6, config.dim))
        camera, per_block = None, 0
        if preset.control != "none":
            plucker = torch.empty(slots, config.camera_channels, *shape[1:])
            pose = None if config.world_map is None else torch.zeros(slots, shape[1], 2, 4)
            camera = model.embed_camera(plucker, pose)
            per_block = _bytes(_tensors(camera[0]))
        positions = torch.zeros(slots, shape[1], dtype=torch.float64)
        memory = _Blind(rope_angles(positions, *preset.token_grid, config.head_width, META))
        latent = torch.empty(slots, config.in_channels, *shape[1:])
        return per_block * len(every) + _peak(lambda: model(latent, time, text, camera, memory))
    finally:
        model.blocks = every


def _bytes(tensors: Iterable[Tensor]) -> int:
    """What lies in the same place counts once."""
    places = [each.untyped_storage() for each in tensors]
    return sum({place._cdata: place.nbytes() for place in places}.values())


def _tensors(held: Any) -> Iterator[Tensor]:
    """Every tensor in plain containers and in the state of streams, but no weights."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, nn.Module):
        return
    elif isinstance(held, Mapping):
        for each in held.values():
            yield from _tensors(each)
    elif isinstance(held, list | tuple):
        for each in held:
            yield from _tensors(each)
    elif hasattr(held, "__dict__"):
        yield from _tensors(vars(held))


class _Live(TorchDispatchMode):
    """Counts the bytes of storages made under it: `now`, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in _tensors(result if isinstance(result, list | tuple) else (result,)):
            self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, count: int) -> None:
        self.now -= count


def _peak(run: Callable[[], object]) -> int:
    """Bytes of the tensors that live at once at most while `run` runs, beside those that were there before."""
    live = _Live()
    with contextlib.ExitStack() as stack:
        stack.enter_context(live)
        run()
    return live.most
