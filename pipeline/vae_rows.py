"""The Wan decoder on a Hopper GPU in 16 bits: the same network as pipeline.vae over the kernels of kernels.conv.

Pictures are rows of channels (see kernels.conv). Every causal convolution has two pictures of its input as its past;
they stay where they were written, in a ring of one arena for each resolution, and a table says where. One picture at a
time goes through each resolution, so beside the past there is room for two, and where one is summed. All that
convolutions see has 16 bits; they accumulate in float32, and sums between them are stored and normed in float32. The
last convolution keeps no past: each picture's share of the three that see it is added up in float32.

C channels, T latent frames, h w latent height and width, H W picture height and width in pixels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.conv import (
    Arena,
    Kernel,
    Plane,
    Then,
    Tile,
    add_shares,
    convolve,
    doubling_kernel,
    kernel,
    norm_silu_frames,
)
from pipeline.vae import RMSNorm, SpatialAttention, Upsample, WanVAE, WanVAEConfig

TILES = {
    384: Tile(128, 128, stages=4),
    192: Tile(128, 128, 64, stages=4),
    96: Tile(128, 64, 32, warps=4),
    9: Tile(128, 16, warps=4),
}
"""By the outputs of a convolution."""
BOTH = [f"{block}{conv}" for block in range(3) for conv in (0, 1)]
LAYERS = [
    ["middle00", "middle01", "middle20", "middle21", *BOTH, "time"], [*BOTH[1:], "time"], BOTH, BOTH, ["00"],
]  # fmt: skip
"""What has a past, by arena: one for each resolution, and one for the first of the second, which has fewer channels."""
NARROW = 4  # that one

Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""From a run on fixed addresses to one that repeats it and gives a result of its own, as pipeline.graphs.Capture."""


class Rings:
    """Which pictures of an arena are whose past; the others are free. All on the host."""

    def __init__(self, layers: Sequence[str], free: int):
        self._past = {layer: [2 * number, 2 * number + 1] for number, layer in enumerate(layers)}
        self._free = list(range(2 * len(layers), 2 * len(layers) + free))
        self._passing: dict[str, int] = {}

    def extend(self, layer: str) -> int:
        """A new picture behind the layer's past; its number."""
        self._past[layer].append(self._free.pop())
        return self._past[layer][-1]

    def see(self, layer: str) -> list[int]:
        """The past and the new picture."""
        return list(self._past[layer])

    def read(self, layer: str) -> list[int]:
        """The same for the last time: all but the last two are free from the next call on."""
        frames = self._past[layer]
        self._past[layer] = frames[-2:]
        self._free[:0] = frames[:-2]
        return frames

    def lend(self, name: str) -> int:
        """A picture that is read once and is nobody's past."""
        self._passing[name] = self._free.pop()
        return self._passing[name]

    def take_back(self, name: str) -> list[int]:
        number = self._passing.pop(name)
        self._free.insert(0, number)
        return [number]


class Step(NamedTuple):
    """One launch: `plan` gives the numbers of its table, in the order of the launches; `launch` gets them on the GPU.

    `name` is what a measurement calls it: the resolution, 0 to 3, and what is done there.
    """

    name: str
    plan: Callable[[], list[int]]
    launch: Callable[[Tensor], None]


class Program:
    """The launches of a latent frame, and their tables, one behind the other in a tensor that stays."""

    def __init__(self, steps: list[Step], device: torch.device):
        self.steps, self._device = steps, device
        self._table: Tensor | None = None

    def plan(self) -> None:
        """Where the pictures of the next launch lie; a stream's next latent frame each time."""
        numbers = [step.plan() for step in self.steps]
        flat = torch.tensor([each for some in numbers for each in some], dtype=torch.int32)
        if self._table is None:
            self._table = torch.empty_like(flat, device=self._device)
            self._parts = self._table.split([len(some) for some in numbers])
        if self._table.is_cuda:
            flat = flat.pin_memory()
        self._table.copy_(flat, non_blocking=True)

    def launches(self) -> list[tuple[str, Callable[[], None]]]:
        """By name, for who measures them."""
        return [
            (step.name, lambda step=step, part=part: step.launch(part))
            for step, part in zip(self.steps, self._parts, strict=True)
        ]

    def launch(self) -> None:
        for step, part in zip(self.steps, self._parts, strict=True):
            step.launch(part)


class Attention(NamedTuple):
    """Of the middle, in the dtype of the decoder."""

    to_qkv: tuple[Tensor, Tensor]
    proj: tuple[Tensor, Tensor]


class Weights(NamedTuple):
    """Of the decoder, in 16 bits, as the kernels want them, by the module's name; norms and biases in float32.

    `enter` is the convolution before the decoder, a matrix and a bias in float32. A convolution in time makes two
    pictures; it lies here as two.
    """

    config: WanVAEConfig
    kernels: dict[str, Kernel]
    scales: dict[str, Tensor]
    attention: Attention
    enter: tuple[Tensor, Tensor]
    dtype: torch.dtype


def rows_missing(config: WanVAEConfig) -> str | None:
    """Why RowDecoder cannot decode for a VAE of these sizes, or None."""
    wan, found = (
        (each.multipliers, each.residual_blocks, each.temporal_downsample) for each in (WanVAEConfig(), config)
    )
    if found != wan:
        return f"it knows multipliers, residual blocks and halvings of time {wan}, not {found}"
    if config.dim % 8 or config.latent_channels % 8:  # the copy engine wants rows of whole 16 bytes
        return f"it takes multiples of 8 channels, not {config.dim} and {config.latent_channels} latent ones"
    for outputs in (config.dim, 2 * config.dim):  # of the two resolutions whose norms the convolutions do
        if outputs > _tile(outputs).outputs + _tile(outputs).more:
            return f"it takes 96 channels at full resolution, or at most 64, not {config.dim}"
    return None


def _tile(outputs: int) -> Tile:
    return TILES.get(outputs, TILES[384])


def prepare(vae: WanVAE, dtype: torch.dtype = torch.bfloat16) -> Weights:
    """Copies all: nothing of `vae` stays in use."""
    assert (reason := rows_missing(vae.config)) is None, reason
    decoder = vae._modules["decoder"]
    kernels, scales = {}, {}
    for name, module in decoder.named_modules():
        if isinstance(module, RMSNorm):
            scales[name] = (module.gamma.float().flatten() * module.gamma.numel() ** 0.5).contiguous()
        elif isinstance(module, Upsample):
            conv = module.resample[1]
            kernels[name] = doubling_kernel(conv.weight.float(), conv.bias)
        elif name.endswith("time_conv"):
            for half, (weight, bias) in enumerate(zip(module.weight.chunk(2), module.bias.chunk(2), strict=True)):
                kernels[f"{name}.{half}"] = kernel(weight, bias)
        elif isinstance(module, torch.nn.Conv3d) and module is not decoder.head[2]:
            kernels[name] = kernel(module.weight, module.bias)
    last = decoder.head[2]
    shares = last.weight.movedim(2, 0).flatten(0, 1)  # (3 * 3, C, 3, 3): by how many frames later, then by colour
    kernels["head"] = kernel(shares, torch.cat((last.bias.new_zeros(6), last.bias)))
    kernels = {name: _own(taps, dtype) for name, taps in kernels.items()}
    enter = (vae.conv2.weight.flatten(1).float().clone(), vae.conv2.bias.float().clone())
    return Weights(vae.config, kernels, scales, _attention(decoder.middle[1], dtype), enter, dtype)


def _own(taps: Kernel, dtype: torch.dtype) -> Kernel:
    return taps._replace(weights=taps.weights.to(dtype, copy=True), bias=taps.bias.clone())


def _attention(layer: SpatialAttention, dtype: torch.dtype) -> Attention:
    parts = ((conv.weight.flatten(1), conv.bias) for conv in (layer.to_qkv, layer.proj))
    return Attention(*(tuple(each.to(dtype, copy=True) for each in pair) for pair in parts))


class Place(NamedTuple):
    """Pictures of an arena: `numbers` says which, each time anew."""

    arena: Arena
    numbers: Callable[[], list[int]]


class RowDecoder:
    """A StreamingDecoder as pipeline.vae.WanDecoder is, for latents of one size."""

    def __init__(self, weights: Weights, height: int, width: int):
        """height, width: of the latents."""
        self._weights, self.reach = weights, weights.config.reach
        self._programs: dict[bool, Program] = {}
        self._replay: Callable[[], Tensor] | None = None
        self._make_arenas(height, width)
        self._mean, self._std = (self._input.new_tensor(each) for each in (weights.config.mean, weights.config.std))
        self.reset()

    # What a stream keeps, and what a step needs

    def _make_arenas(self, height: int, width: int) -> None:
        lowest = Plane(height, width)
        second, third, full = lowest.doubled, lowest.doubled.doubled, lowest.doubled.doubled.doubled
        self._planes = [lowest, second, third, full]
        wide, _, mid, narrow = (
            self._weights.kernels[f"upsamples.{4 * stage}.residual.2"].outputs for stage in range(4)
        )
        exact, latent_channels = self._weights.enter[0], self._weights.config.latent_channels
        like = exact.new_empty(0, dtype=self._weights.dtype)
        kinds = [(lowest, wide), (second, wide), (third, mid), (full, narrow), (second, wide // 2)]
        self._free = [2, 2, 2, 2, 1]
        self._ring_arenas = [
            Arena.zeros(plane, 2 * len(layers) + free, channels, like)
            for (plane, channels), layers, free in zip(kinds, LAYERS, self._free, strict=True)
        ]
        self._latents = Arena.zeros(lowest, 3, latent_channels, like)
        self._make_sums(kinds[:4], exact)
        self._few = Arena.zeros(second, 1, wide // 2, like)  # its margins are read: nothing else may lie there
        self._shares = Arena.zeros(full, 1, 9, exact)
        self._late = exact.new_zeros(2, 3, full.height, full.width)
        self._frames = exact.new_zeros(self._weights.config.group, 3, full.height, full.width)
        self._input = exact.new_zeros(height, width, latent_channels)

    def _make_sums(self, kinds: list[tuple[Plane, int]], like: Tensor) -> None:
        """What residual layers add to, float32; one resolution is done with its own before the next begins."""
        sizes = [(2 * plane.lead + plane.pixels) * channels for plane, channels in kinds]
        place = like.new_zeros(max(2 * sizes[0], 2 * sizes[1], *sizes[2:]))
        parts = [place[:size].unflatten(0, (-1, channels)) for size, (_, channels) in zip(sizes, kinds, strict=True)]
        self._x = [Arena(plane, rows) for rows, (plane, _) in zip(parts, kinds, strict=True)]
        self._y = [
            Arena(plane, place[size : 2 * size].unflatten(0, (-1, channels)))
            for size, (plane, channels) in zip(sizes[:2], kinds, strict=False)
        ]

    def reset(self) -> None:
        """Begin a new stream."""
        self._fresh = True
        for arena in (*self._ring_arenas, self._latents):
            arena.rows.zero_()
        self._late.zero_()
        self._rings = [Rings(layers, free) for layers, free in zip(LAYERS, self._free, strict=True)]

    # Decoding

    def decode(self, latent: Tensor) -> Tensor:
        """Normalised latents (C, T, h, w), T at least 1, to frames (3, N, H, W), clamped to [-1, 1]."""
        return self.decode_unclamped(latent).clamp_(-1, 1)

    def decode_unclamped(self, latent: Tensor) -> Tensor:
        """The same as the network gives it, a little out of range where it overshoots."""
        made = [self._decode(each) for each in latent.unbind(1)]
        return (made[0] if len(made) == 1 else torch.cat(made)).transpose(0, 1)

    def _decode(self, latent: Tensor) -> Tensor:
        """A latent frame (C, h, w) to frames (N, 3, H, W)."""
        self._input.copy_(latent.movedim(0, -1))
        program = self.program()
        program.plan()
        if self._replay and not self._fresh:
            return self._replay()
        program.launch()
        frames = 1 if self._fresh else len(self._frames)
        self._fresh = False
        return self._frames[:frames].clone()

    def program(self) -> Program:
        """What the next latent frame will be."""
        if self._fresh not in self._programs:
            self._programs[self._fresh] = Program(self._steps(), self._input.device)
        return self._programs[self._fresh]

    def record(self, record: Record) -> None:
        """From now on a latent frame in a stream's middle is one launch; one such has been decoded before."""
        program = self._programs[False]

        def run() -> Tensor:
            program.launch()
            return self._frames

        self._replay = record(run)

    # The network as launches

    def _steps(self) -> list[Step]:
        steps, made = [Step("0 enter", list, lambda _: self._enter()), *self._lowest()], 0
        for second in self._pictures(0):
            steps += [*second, *self._second()]
            for third in self._pictures(1):
                steps += [*third, *self._fused(2), *self._fused(3), *self._emit(self._frames[made])]
                made += 1
        return steps

    def _pictures(self, stage: int) -> list[list[Step]]:
        """What makes the pictures that go on to the next resolution, one after the other."""
        if self._fresh:
            return [[]]  # the last residual layer has made it
        arena, rings = self._ring_arenas[stage], self._rings_of(stage)
        seen = [Place(arena, lambda: rings().see("time")), Place(arena, lambda: rings().read("time"))]
        name = f"upsamples.{4 * stage + 3}.time_conv"
        return [[self._convolve(f"{name}.{half}", place, kept=self._lent(stage))] for half, place in enumerate(seen)]

    def _enter(self) -> None:
        """The latent behind the two before it, as the decoder's first convolution wants them."""
        pictures = [self._latents.frame(number) for number in range(3)]
        pictures[0].copy_(pictures[1])
        pictures[1].copy_(pictures[2])
        pictures[2].copy_(F.linear(self._input * self._std + self._mean, *self._weights.enter))

    def _lowest(self) -> list[Step]:
        x = _only(self._x[0])
        steps = [self._convolve("conv1", Place(self._latents, lambda: [0, 1, 2]), kept=x)]
        steps += self._residual(0, "middle.0", "middle0", kept=x)
        steps.append(Step("0 attention", list, lambda _: self._attend()))
        return steps + self._residual(0, "middle.2", "middle2", kept=x) + self._residuals(0)

    def _second(self) -> list[Step]:
        up = self._convolve("upsamples.3", self._taken_back(0), kept=_only(self._few))
        return [up, *self._residuals(1)]

    def _residuals(self, stage: int) -> list[Step]:
        """Of the two lower resolutions; the last goes to where the doubling of time or the next resolution finds it."""
        last = self._lent(stage) if self._fresh else self._new(stage, "time")
        places = [_only(self._x[stage]), _only(self._x[stage]), last]
        steps = []
        for block, place in enumerate(places):
            steps += self._residual(stage, f"upsamples.{4 * stage + block}", str(block), kept=place)
        return steps

    def _residual(self, stage: int, layer: str, name: str, kept: Place) -> list[Step]:
        """kept = shortcut(x) + conv(norm(conv(norm(x)))), where the channels are too many for one block of outputs."""
        x, y, first, steps = _only(self._x[stage]), _only(self._y[stage]), stage, []
        source = x
        if f"{layer}.shortcut" in self._weights.kernels:
            source, first = _only(self._few), NARROW
            steps.append(self._convolve(f"{layer}.shortcut", source, kept=x))
        return [
            *steps,
            self._norm(f"{layer}.residual.0", source, self._new(first, f"{name}0")),
            self._convolve(f"{layer}.residual.2", self._past(first, f"{name}0"), kept=y),
            self._norm(f"{layer}.residual.3", y, self._new(stage, f"{name}1")),
            self._convolve(f"{layer}.residual.6", self._past(stage, f"{name}1"), residual=x, kept=kept),
        ]

    def _fused(self, stage: int) -> list[Step]:
        """A resolution whose norms are done by the convolutions before them, the doubling before it included."""
        x, layer = _only(self._x[stage]), f"upsamples.{4 * stage}"

        first = (f"{layer}.residual.0", self._new(stage, "00"))
        steps = [self._convolve(f"upsamples.{4 * stage - 1}", self._taken_back(stage - 1), kept=x, normed=first)]
        for block in range(3):
            layer, after = f"upsamples.{4 * stage + block}", f"upsamples.{4 * stage + block + 1}"
            inner = (f"{layer}.residual.3", self._new(stage, f"{block}1"))
            kept, normed = x, None
            if block < 2:
                normed = (f"{after}.residual.0", self._new(stage, f"{block + 1}0"))
            elif stage == 2:
                kept = self._lent(stage)
            else:
                kept, normed = None, ("head.0", self._lent(stage))
            steps += [
                self._convolve(f"{layer}.residual.2", self._past(stage, f"{block}0"), normed=inner),
                self._convolve(f"{layer}.residual.6", self._past(stage, f"{block}1"), x, kept, normed),
            ]
        return steps

    def _emit(self, frame: Tensor) -> list[Step]:
        add = Step("3 shares", list, lambda _: add_shares(self._shares, self._late, frame))
        return [self._convolve("head", self._taken_back(3), kept=_only(self._shares)), add]

    # Where pictures lie

    def _rings_of(self, stage: int) -> Callable[[], Rings]:
        return lambda: self._rings[stage]  # reset() makes new ones

    def _new(self, stage: int, layer: str) -> Place:
        rings = self._rings_of(stage)
        return Place(self._ring_arenas[stage], lambda: [rings().extend(layer)])

    def _past(self, stage: int, layer: str) -> Place:
        rings = self._rings_of(stage)
        return Place(self._ring_arenas[stage], lambda: rings().read(layer))

    def _lent(self, stage: int) -> Place:
        """For what the next resolution, or the last convolution, sees once."""
        rings = self._rings_of(stage)
        return Place(self._ring_arenas[stage], lambda: [rings().lend("next")])

    def _taken_back(self, stage: int) -> Place:
        rings = self._rings_of(stage)
        return Place(self._ring_arenas[stage], lambda: rings().take_back("next"))

    # One launch

    def _convolve(
        self,
        layer: str,
        source: Place,
        residual: Place | None = None,
        kept: Place | None = None,
        normed: tuple[str, Place] | None = None,
    ) -> Step:
        """`normed`: the name of the norm, and where its result goes."""
        taps, behind = self._weights.kernels[layer], normed and normed[1]
        then = Then(
            kept=kept and kept.arena,
            residual=residual and residual.arena,
            normed=behind and behind.arena,
            scale=normed and self._weights.scales[normed[0]],
        )
        places, tile = [each for each in (residual, kept, behind) if each], _tile(taps.outputs)

        def plan() -> list[int]:
            # What is written is taken before what is read is freed: both are in use at the same time.
            written = [number for place in places for number in place.numbers()]
            return [*source.numbers(), *written]

        name = f"{self._stage(source.arena)} {source.arena.channels}-{taps.outputs} {taps.frames}x{taps.lines}"
        name += " up" * (taps.phases > 1) + " sum" * (residual is not None)
        return Step(name, plan, lambda table: convolve(source.arena, taps, then, 1, table, tile))

    def _norm(self, norm: str, source: Place, target: Place) -> Step:
        scale = self._weights.scales[norm]
        return Step(
            f"{self._stage(source.arena)} norm",
            lambda: [*source.numbers(), *target.numbers()],
            lambda table: norm_silu_frames(source.arena, scale, target.arena, 1, table),
        )

    def _stage(self, arena: Arena) -> int:
        return self._planes.index(arena.plane)

    def _attend(self) -> None:
        dtype, weights, picture = self._weights.dtype, self._weights.attention, self._x[0].frame(0)
        scale = self._weights.scales["middle.1.norm"]
        normed = (F.normalize(picture, dim=-1) * scale).to(dtype).flatten(0, 1)
        q, k, v = F.linear(normed, *weights.to_qkv)[None, None].chunk(3, dim=-1)  # (1, 1, hw, C)
        seen = F.scaled_dot_product_attention(q, k, v)[0, 0]
        picture += F.linear(seen, *weights.proj).view_as(picture)


def _only(arena: Arena) -> Place:
    """The picture of an arena that has one."""
    return Place(arena, lambda: [0])
