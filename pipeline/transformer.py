"""The causal Wan transformer: configuration, attention, block, model, to be read from top to bottom.

It maps the noisy latents of one chunk to their flow and knows nothing of the stream around it: what self-attention
sees beside the chunk, and where in time the chunk stands, is the caller's `Memory`. Module and parameter names are
those of the public checkpoints.

B slots, T latent frames in a chunk, h w latent height and width, L = T*h*w/4 tokens in a chunk, C model width, H heads,
D = C/H head width, R text rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import fused
from kernels.attention import Choice, attention
from kernels.compiled import compiled
from kernels.fp8_attention import value_scale
from kernels.fused import PLAIN, Regions, Rows
from kernels.linear import PRECISIONS, join, linear, plain_weight
from kernels.rows import by_hand
from pipeline.world_map import WorldMap, WorldMapConfig

PATCH = 2  # latent pixels along each side of a token; a token is one latent frame deep
ROPE_THETA = 10000.0
TIME_PERIOD = 10000.0


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of one model; raises ValueError where they do not fit together.

    `camera_channels` is how many channels the folded camera map has (384 Plucker, 448 with WASD flags, 0 for a model
    without camera control). `precision` is that of the blocks' linears, see kernels.linear.
    """

    dim: int
    ffn_dim: int
    heads: int
    layers: int
    in_channels: int
    out_channels: int = 16
    text_dim: int = 4096
    text_rows: int = 512
    time_frequencies: int = 256
    camera_channels: int = 0
    world_map: WorldMapConfig | None = None
    precision: str = "plain"

    def __post_init__(self) -> None:
        if self.dim % self.heads or self.head_width % 2:
            raise ValueError(f"dim {self.dim} over {self.heads} heads must give an even head width")
        if self.time_frequencies % 2:
            raise ValueError(f"time_frequencies {self.time_frequencies} must be even: cosines and sines")
        if self.world_map is not None and not self.camera_channels:
            raise ValueError("a world map is part of the camera embedding; camera_channels must not be 0")
        if self.precision not in PRECISIONS:
            raise ValueError(f"no linear precision {self.precision!r}; there are {', '.join(PRECISIONS)}")

    @property
    def head_width(self) -> int:
        return self.dim // self.heads


class TextTerms(NamedTuple):
    """Keys and values of the prompt in one layer's cross-attention, (B, R, H, D) each; a prompt's, not a step's."""

    k: Tensor
    v: Tensor


class CameraTerms(NamedTuple):
    """What the camera does to the stream of one layer, (B, L, C) each; the same in every step of a chunk."""

    scale: Tensor
    shift: Tensor


class TimeTerms(NamedTuple):
    """e: (B, C) for the head; e0: (B, 6, C) for the blocks; float32."""

    e: Tensor
    e0: Tensor


class Memory(Protocol):
    """What self-attention sees; the caller owns it.

    rope: cosines and sines of this chunk's tokens, (B, L, D/2) float32 each.
    """

    rope: tuple[Tensor, Tensor]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v: (B, L, H, D), with RMSNorm and RoPE applied to q and k. Returns (B, L, H, D)."""


def rope_angles(
    positions: Tensor, rows: int, columns: int, head_width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding of whole latent frames, (B, T*rows*columns, D/2) float32 each.

    positions: (B, T) float64, the latent frames' absolute indexes, of any size; rows, columns: the token grid. Angles
    are made in float64: a float32 angle is off by 1e-3 rad after 10,000 latent frames. Of the D/2 pairs, rows and
    columns take D//6 each and time the rest.
    """
    per_side = head_width // 6
    time = positions.to(device).unsqueeze(-1) * time_frequencies(head_width, device)
    frequencies = _frequencies(per_side, device)
    down = torch.arange(rows, dtype=torch.float64, device=device).unsqueeze(-1) * frequencies
    across = torch.arange(columns, dtype=torch.float64, device=device).unsqueeze(-1) * frequencies
    grid = (*positions.shape, rows, columns, -1)
    angles = torch.cat(
        (time[:, :, None, None].expand(grid), down[:, None].expand(grid), across.expand(grid)), dim=-1
    ).flatten(1, 3)
    return angles.cos().float(), angles.sin().float()


def time_frequencies(head_width: int, device: torch.device | str) -> Tensor:
    """Radians a latent frame of the pairs that carry time, which come first; float64."""
    return _frequencies(head_width // 2 - 2 * (head_width // 6), device)


def _frequencies(pairs: int, device: torch.device | str) -> Tensor:
    exponent = torch.arange(pairs, dtype=torch.float64, device=device) / max(pairs, 1)
    return ROPE_THETA**-exponent


def timestep_sinusoid(timestep: Tensor, width: int) -> Tensor:
    """(B,) timesteps to (B, width) float32: cosines, then sines, of t * 10000^(-i / (width/2)), made in float64."""
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float64, device=timestep.device) / half
    angle = timestep.double().unsqueeze(-1) * TIME_PERIOD**-exponent
    return torch.cat((angle.cos(), angle.sin()), dim=-1).float()


class RMSNorm(nn.Module):
    """Over the whole model width, before the split into heads; kernels.fused computes it."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class LayerNorm(nn.Module):
    """With affine; kernels.fused computes it."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))


class Attention(nn.Module):
    """The projections that self- and cross-attention share."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads = config.heads
        for name in ("q", "k", "v", "o"):
            setattr(self, name, linear(config.dim, config.dim, precision=config.precision))
        self.norm_q = RMSNorm(config.dim)
        self.norm_k = RMSNorm(config.dim)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class SelfAttention(Attention):
    def __init__(self, config: TransformerConfig):
        super().__init__(config)
        self._joint: tuple[nn.Module, ...] = ()  # in a tuple, because its weights are q's, k's and v's and have a name

    def join(self) -> None:
        """Make q, k and v one product from now on."""
        self._joint = self._joint or (join((self.q, self.k, self.v)),)

    def forward(self, x: Rows, layer: int, memory: Memory, regions: Regions) -> Tensor:
        """x: (B, L, C)."""
        q, k, v = self._joint[0](x).chunk(3, dim=-1) if self._joint else (self.q(x), self.k(x), self.v(x))
        q, k = regions.heads(q, k, (self.norm_q.weight, self.norm_k.weight), memory.rope, self.heads)
        return self.o(regions.as_rows(memory.attend(layer, q, k, self.split(v)).flatten(2)))


class CrossAttention(Attention):
    def embed(self, text: Tensor) -> TextTerms:
        """text: (B, R, C)."""
        return TextTerms(self.split(fused.rms_norm(self.k(text), self.norm_k.weight)), self.split(self.v(text)))

    def forward(self, x: Rows, text: TextTerms, regions: Regions, backend: str | Choice = "auto") -> Tensor:
        """x: (B, L, C). All rows are attended to, the padded ones too, as in training."""
        q = regions.query(self.q(x), self.norm_q.weight, self.heads)
        return self.o(regions.as_rows(attention(q, text.k, text.v, backend).flatten(2)))


class Block(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 6, config.dim) / math.sqrt(config.dim))
        self.self_attn = SelfAttention(config)
        self.norm3 = LayerNorm(config.dim)
        self.cross_attn = CrossAttention(config)
        self.ffn = nn.Sequential(
            linear(config.dim, config.ffn_dim, precision=config.precision),
            nn.GELU("tanh"),
            linear(config.ffn_dim, config.dim, precision=config.precision),
        )
        if config.camera_channels:
            for name in ("cam_injector_layer1", "cam_injector_layer2", "cam_scale_layer", "cam_shift_layer"):
                setattr(self, name, linear(config.dim, config.dim, precision=config.precision))

    def embed_camera(self, camera: Tensor) -> CameraTerms:
        """camera: (B, L, C), the camera embedding."""
        c = camera + self.cam_injector_layer2(F.silu(self.cam_injector_layer1(camera)))
        return CameraTerms(self.cam_scale_layer(c), self.cam_shift_layer(c))

    def value_size(self, e0: Tensor) -> float:
        """The root mean square that self-attention's values should have. e0: (1, 6, C).

        Of numbers that a LayerNorm gives, independent and of size 1, after modulation and the product.
        """
        shift, scale = (self.modulation.float() + e0)[0, :2]
        layer = self.self_attn.v
        weight = plain_weight(layer).float()
        mean = weight @ shift if layer.bias is None else weight @ shift + layer.bias.float()
        return float(((weight * (1 + scale)).square().sum(1) + mean.square()).mean().sqrt())

    def forward(
        self,
        x: Tensor,
        layer: int,
        e0: Tensor,
        text: TextTerms,
        camera: CameraTerms | None,
        memory: Memory,
        regions: Regions,
        backend: str | Choice = "auto",
    ) -> Tensor:
        """x: (B, L, C); e0: (B, 6, C) float32."""
        terms, norm3 = self.modulation.float() + e0, self.norm3
        update = self.self_attn(regions.enter(x, terms), layer, memory, regions)
        x, seen = regions.after_attention(x, update, terms, camera, norm3.weight, norm3.bias)
        x, seen = regions.after_text(x, self.cross_attn(seen, text, regions, backend), terms)
        return regions.leave(x, self.ffn[2](regions.activate(self.ffn[0](seen))), terms)


class Head(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / math.sqrt(config.dim))
        self.head = nn.Linear(config.dim, PATCH * PATCH * config.out_channels)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x: (B, L, C); e: (B, C) float32. Returns (B, L, 4 * output channels)."""
        shift, scale = (self.modulation.float() + e.unsqueeze(1)).chunk(2, dim=1)
        return self.head(fused.norm_modulate(x, shift, scale))


class Transformer(nn.Module):
    """The `embed_*` methods make what a prompt, a chunk's camera and a timestep cost once; `forward` is one step."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        dim = config.dim
        patch = (1, PATCH, PATCH)
        self.patch_embedding = nn.Conv3d(config.in_channels, dim, kernel_size=patch, stride=patch)
        self.text_embedding = nn.Sequential(nn.Linear(config.text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(config.time_frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        if config.camera_channels:
            self.patch_embedding_wancamctrl = nn.Linear(config.camera_channels * PATCH * PATCH, dim)
            self.c2ws_hidden_states_layer1 = nn.Linear(dim, dim)
            self.c2ws_hidden_states_layer2 = nn.Linear(dim, dim)
        if config.world_map is not None:
            self.world_map = WorldMap(config.world_map, dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = Head(config)
        self.regions = PLAIN
        self.backend: str | Choice = "auto"  # of the attention to the text, see kernels.attention

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embedding.weight.dtype

    def fuse(self, backend: str = "inductor") -> None:
        """For inference on a GPU: q, k and v as one product, and compiled what lies between the products.

        The weights keep their names and must be in their place; a second call changes nothing. Results differ by
        rounding. `backend` is torch.compile's.
        """
        for block in self.blocks:
            block.self_attn.join()
        if self.patch_embedding.weight.is_cuda:
            torch.cuda.empty_cache()  # of the places that q, k and v had, too small for anything as large as them all
        if self.regions is PLAIN:
            quantized = self.config.precision == "fp8"
            self.regions = by_hand(compiled(quantized, backend), quantized)

    @torch.inference_mode()
    def value_scales(self, times: Sequence[TimeTerms]) -> list[float]:
        """What attention in FP8 multiplies the values of each layer's self-attention with, powers of two.

        By the largest values that the layer is expected to make at these times, (1, ...) each.
        """
        return [value_scale(max(block.value_size(time.e0) for time in times)) for block in self.blocks]

    def embed_text(self, rows: Tensor) -> list[TextTerms]:
        """rows: (B, R <= text_rows, text_dim), padded here with zeros to text_rows. Returns one TextTerms a layer.

        Raises ValueError for more than text_rows rows.
        """
        missing = self.config.text_rows - rows.shape[1]
        if missing < 0:
            raise ValueError(f"the prompt has {rows.shape[1]} rows; the model takes at most {self.config.text_rows}")
        text = self.text_embedding(F.pad(rows.to(self.dtype), (0, 0, 0, missing)))
        return [block.cross_attn.embed(text) for block in self.blocks]

    def embed_camera(self, plucker: Tensor, pose: Tensor | None = None) -> list[CameraTerms]:
        """plucker: (B, camera_channels, T, h, w); pose: (B, T, 2, 4) where the model has a world map, else None.

        Returns one CameraTerms a layer.
        """
        _, _, _, h, w = plucker.shape
        camera = self.patch_embedding_wancamctrl(_patches(plucker.to(self.dtype)))
        if self.config.world_map is not None:
            camera = camera + self.world_map(pose, rows=h // PATCH, columns=w // PATCH).to(camera.dtype)
        camera = camera + self.c2ws_hidden_states_layer2(F.silu(self.c2ws_hidden_states_layer1(camera)))
        return [block.embed_camera(camera) for block in self.blocks]

    def embed_time(self, timestep: Tensor) -> TimeTerms:
        """timestep: (B,) from 0 (clean) to 1000 (noise). float32 throughout, also under autocast."""
        first, _, second = self.time_embedding
        with torch.autocast(timestep.device.type, enabled=False):
            hidden = F.silu(_linear32(first, timestep_sinusoid(timestep, self.config.time_frequencies)))
            e = _linear32(second, hidden)
            e0 = _linear32(self.time_projection[1], F.silu(e))
        return TimeTerms(e, e0.unflatten(1, (6, -1)))

    def forward(
        self, latent: Tensor, time: TimeTerms, text: list[TextTerms], camera: list[CameraTerms] | None, memory: Memory
    ) -> Tensor:
        """latent: (B, in_channels, T, h, w), noisy latents and what they are conditioned on; h and w even.

        `camera` is None for a model without camera control. Returns what the preset's `prediction` names,
        (B, out_channels, T, h, w) in the dtype of the weights.
        """
        _, _, frames, h, w = latent.shape
        # As a matrix product: 3-D convolutions are slow on CPUs and in several versions of torch. And in the weights'
        # dtype: under autocast it comes out narrower than the residual stream should be.
        embed = self.patch_embedding
        x = F.linear(_patches(latent.to(self.dtype)), embed.weight.flatten(1), embed.bias).to(self.dtype)
        for layer, block in enumerate(self.blocks):
            held = None if camera is None else camera[layer]
            x = block(x, layer, time.e0, text[layer], held, memory, self.regions, self.backend)
        return _unpatchify(self.head(x, time.e), frames, h // PATCH, w // PATCH)


def _linear32(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.float(), layer.bias.float())


def _patches(x: Tensor) -> Tensor:
    """(B, C, T, h, w) to (B, L, C*4), features in the order channel, row, column."""
    grid = x.unflatten(4, (-1, PATCH)).unflatten(3, (-1, PATCH))  # (B, C, T, h/2, 2, w/2, 2)
    return grid.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)


def _unpatchify(x: Tensor, frames: int, rows: int, columns: int) -> Tensor:
    """(B, L, 4*C), features in the order row, column, channel, to (B, C, T, h, w)."""
    grid = x.unflatten(2, (PATCH, PATCH, -1)).unflatten(1, (frames, rows, columns))
    return grid.permute(0, 6, 1, 2, 4, 3, 5).flatten(5).flatten(3, 4)
