"""The Wan decoder on a Hopper GPU in bfloat16: the same network as pipeline.vae over the kernels of kernels.conv.

Pictures are rows of channels (see kernels.conv). Every causal convolution has two pictures of its input as its past;
they stay where they were written, in a ring of one arena for each resolution, and a table says where. What is large
goes through one picture at a time, so beside the past there is room for few. All that convolutions see is
bfloat16; they accumulate in float32, and sums between them are stored and normed in float32. The last convolution keeps
no past: each picture's share of the three that see it is added up in float32.

C channels, N frames of a step, T latent frames, h w latent height and width.
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
from pipeline.vae import Residual, RMSNorm, SpatialAttention, Upsample, WanVAE

TILES = {
    384: Tile(128, 128, stages=4),
    192: Tile(128, 128, 64, stages=4),
    96: Tile(128, 64, 32, warps=4),
    9: Tile(128, 16, warps=4),
}
"""By the outputs of a convolution."""
MOST = 4  # latent frames that go through the lowest resolution at once


class Rings:
    """Which pictures of an arena are whose past; the others are free. All on the host."""

    def __init__(self, layers: Sequence[str], free: int):
        self._past = {layer: [2 * number, 2 * number + 1] for number, layer in enumerate(layers)}
        self._free = list(range(2 * len(layers), 2 * len(layers) + free))

    def extend(self, layer: str, count: int) -> list[int]:
        """`count` new pictures behind the layer's past; their numbers."""
        new = [self._free.pop() for _ in range(count)]
        self._past[layer] += new
        return new

    def read(self, layer: str) -> list[int]:
        """The past and the new pictures; all but the last two are free from the next call on."""
        frames = self._past[layer]
        self._past[layer] = frames[-2:]
        self._free[:0] = frames[:-2]
        return frames


class Step(NamedTuple):
    """One launch: `plan` gives the numbers of its table, in the order of the launches; `launch` gets them on the GPU.

    `name` is what a measurement calls it: the resolution, 0 to 3, and what is done there.
    """

    name: str
    plan: Callable[[], list[int]]
    launch: Callable[[Tensor], None]


class Weights(NamedTuple):
    """Of the decoder, in bfloat16, as the kernels want them; norms and biases in float32."""

    kernels: dict[torch.nn.Module, Kernel]
    scales: dict[torch.nn.Module, Tensor]
    head: Kernel
    dtype: torch.dtype


def prepare(vae: WanVAE, dtype: torch.dtype = torch.bfloat16) -> Weights:
    decoder = vae._modules["decoder"]
    kernels, scales = {}, {}
    for module in decoder.modules():
        if isinstance(module, RMSNorm):
            scales[module] = (module.gamma.float().flatten() * module.gamma.numel() ** 0.5).contiguous()
        elif isinstance(module, Upsample):
            conv = module.resample[1]
            kernels[module] = _cast(doubling_kernel(conv.weight.float(), conv.bias), dtype)
        elif isinstance(module, torch.nn.Conv3d):
            kernels[module] = _cast(kernel(module.weight, module.bias), dtype)
    last = decoder.head[2]
    shares = last.weight.movedim(2, 0).flatten(0, 1)  # (3 * 3, C, 3, 3): by how many frames later, then by colour
    head = kernel(shares, torch.cat((last.bias.new_zeros(6), last.bias)))
    return Weights(kernels, scales, _cast(head, dtype), dtype)


def _cast(taps: Kernel, dtype: torch.dtype) -> Kernel:
    return taps._replace(weights=taps.weights.to(dtype))


class RowDecoder:
    """A StreamingDecoder as pipeline.vae.WanDecoder is, for latents of one size."""

    def __init__(self, vae: WanVAE, height: int, width: int, weights: Weights | None = None, groups=(2, 1)):
        """height, width: of the latents. `groups`: frames that go through the second and third resolution at once."""
        self.vae, self._weights = vae, weights or prepare(vae)
        self._decoder = vae._modules["decoder"]
        self._planes = [Plane(height, width)]
        for _ in range(3):
            self._planes.append(self._planes[-1].doubled)
        self._groups = groups
        self._programs: dict[tuple[int, bool], list[Step]] = {}
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._make_arenas()
        self._mean, self._std = (self._input.new_tensor(each) for each in (vae.config.mean, vae.config.std))
        self.reset()

    @property
    def reach(self) -> int:
        return self.vae.decoder().reach

    # What a stream keeps, and what a step needs

    def _make_arenas(self) -> None:
        stages = [layer for layer in self._decoder.upsamples if isinstance(layer, Residual)]
        self._blocks = [stages[3 * stage : 3 * stage + 3] for stage in range(4)]
        self._ups = [layer for layer in self._decoder.upsamples if isinstance(layer, Upsample)]
        lowest, second, third, full = self._planes
        like = self.vae.conv1.weight.new_empty(0, dtype=self._weights.dtype)
        wide, mid, narrow = (self._channels(stage) for stage in (0, 2, 3))
        two, three = self._groups
        both = [f"{block}{conv}" for block in range(3) for conv in (0, 1)]
        self._layers = [
            ["middle00", "middle01", "middle10", "middle11", *both, "time"], [*both[1:], "time"], both, both, ["first"],
        ]  # fmt: skip
        self._free = [2 * MOST, 2 * two, 2 * three, 2, two]
        planes = [lowest, second, third, full, second]
        channels = [wide, wide, mid, narrow, wide // 2]
        self._ring_arenas = [
            Arena.zeros(plane, 2 * len(layers) + free, width, like)
            for plane, layers, free, width in zip(planes, self._layers, self._free, channels, strict=True)
        ]
        self._latents = Arena.zeros(lowest, 2 + MOST, self.vae.config.latent_channels, like)
        self._shares = Arena.zeros(full, 4, 9, like.float())
        exact = like.float()
        self._x = [
            Arena.zeros(lowest, MOST, wide, exact),
            Arena.zeros(second, two, wide, exact),
            Arena.zeros(third, three, mid, exact),
            Arena.zeros(full, 1, narrow, exact),
            Arena.zeros(second, two, wide // 2, like),
        ]
        self._y = [Arena.zeros(lowest, MOST, wide, exact), Arena.zeros(second, two, wide, exact)]
        self._before_full = Arena.zeros(third, three, mid, like)
        self._paired = [Arena.zeros(lowest, 2 * MOST, wide, like), Arena.zeros(second, 2 * two, wide, like)]
        self._head_input = Arena.zeros(full, 1, narrow, like)
        device = like.device
        self._frames = torch.empty(4 * MOST, 3, full.height, full.width, dtype=torch.float32, device=device)
        self._input = torch.empty(MOST, lowest.height, lowest.width, self.vae.config.latent_channels, device=device)

    def _channels(self, stage: int) -> int:
        return self._blocks[stage][0].residual[2].out_channels

    def reset(self) -> None:
        """Begin a new stream."""
        self._fresh = True
        for arena in (*self._ring_arenas, self._latents, self._shares):
            arena.rows.zero_()
        self._rings = [Rings(layers, free) for layers, free in zip(self._layers, self._free, strict=True)]
        self._share_rings = Rings(["head"], 2)

    # Decoding

    def decode(self, latent: Tensor) -> Tensor:
        """Normalised latents (C, T, h, w), T at least 1, to frames (3, N, H, W), clamped to [-1, 1]."""
        return self.decode_unclamped(latent).clamp(-1, 1)

    def decode_unclamped(self, latent: Tensor) -> Tensor:
        """The same as the network gives it, a little out of range where it overshoots."""
        pieces = latent.split([1, latent.shape[1] - 1], dim=1) if self._fresh else (latent,)
        made = [self._decode(part) for piece in pieces for part in piece.split(MOST, dim=1) if part.shape[1]]
        return torch.cat(made).transpose(0, 1)

    def _decode(self, latent: Tensor) -> Tensor:
        """Up to MOST latent frames to frames (N, 3, H, W)."""
        count = latent.shape[1]
        self._input[:count].copy_(latent.movedim(0, -1))
        steps = self.steps(count)
        numbers = [step.plan() for step in steps]
        flat = torch.tensor([each for some in numbers for each in some], dtype=torch.int32)
        if self._input.is_cuda:
            flat = flat.pin_memory()
        table = self._table(count, len(flat))
        table.copy_(flat, non_blocking=True)
        graph = None if self._fresh else self._graphs.get(count)
        if graph is not None:
            graph.replay()
        else:
            self._launch(steps, [len(some) for some in numbers], table)
        frames = count if self._fresh else count * self.vae.config.group
        self._fresh = False
        return self._frames[:frames].clone()

    def _launch(self, steps: Sequence[Step], lengths: Sequence[int], table: Tensor) -> None:
        for step, part in zip(steps, table.split(list(lengths)), strict=True):
            step.launch(part)

    def _table(self, count: int, length: int) -> Tensor:
        key = ("table", count, self._fresh)
        if key not in self._programs:
            self._programs[key] = torch.empty(length, dtype=torch.int32, device=self._input.device)
        return self._programs[key]

    def capture(self, count: int) -> None:
        """Make `count` latent frames at a time one CUDA graph; after a decode of as many, in a stream's middle."""
        steps = self.steps(count)
        lengths = [len(step.plan()) for step in steps]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._launch(steps, lengths, self._table(count, sum(lengths)))
        self._graphs[count] = graph
        self.reset()

    def steps(self, count: int) -> list[Step]:
        key = (count, self._fresh)
        if key not in self._programs:
            self._programs[key] = self._program(count)
        return self._programs[key]

    # The network as launches

    def _program(self, count: int) -> list[Step]:
        steps = [Step("0 enter", list, lambda _: self._enter(count))]
        steps += self._lowest(count)
        made = 0
        for source, numbers in self._grouped(0, count, self._groups[0]):
            steps += self._second(source, numbers)
            for after, pictures in self._grouped(1, len(numbers), self._groups[1]):
                steps += self._third(after, pictures)
                for number in range(len(pictures)):
                    steps += self._full(number, made)
                    made += 1
        return steps

    def _grouped(self, stage: int, count: int, group: int) -> list[tuple[Arena, list[int]]]:
        """Where the pictures for the next resolution's convolution lie, a group at a time; doubled in time by now."""
        total = count if self._fresh else 2 * count
        numbers = list(range(total))
        return [(self._paired[stage], numbers[start : start + group]) for start in range(0, total, group)]

    def _enter(self, count: int) -> None:
        """The latents behind those before them, as the decoder's first convolution wants them."""
        arena, keep = self._latents, 2 + MOST - count
        past = [arena.frame(number + count).clone() for number in range(keep)]
        for number, picture in enumerate(past):
            arena.frame(number).copy_(picture)
        weight = self.vae.conv2.weight.flatten(1).float()
        latents = F.linear(self._input[:count] * self._std + self._mean, weight, self.vae.conv2.bias.float())
        for number, picture in enumerate(latents):
            arena.frame(keep + number).copy_(picture)

    def _lowest(self, count: int) -> list[Step]:
        newest = list(range(MOST - count, 2 + MOST))
        x, numbers = self._x[0], list(range(count))
        steps = [self._convolve(self._latents, lambda: newest, self._decoder.conv1, count, kept=(x, lambda: numbers))]
        for block, name in zip((0, 2), ("middle0", "middle1"), strict=True):
            steps += self._residual(0, self._decoder.middle[block], name, count)
            if block == 0:
                steps.append(Step("0 attention", list, lambda _: self._attend(self._decoder.middle[1], count)))
        return steps + self._residuals(0, count)

    def _residuals(self, stage: int, count: int) -> list[Step]:
        """Of the two lower resolutions; the last goes where the doubling of time looks for it."""
        steps = []
        for number, block in enumerate(self._blocks[stage]):
            steps += self._residual(stage, block, str(number), count, last=number == 2)
        if not self._fresh:
            up, rings, pairs = self._ups[stage], self._rings_of(stage), list(range(2 * count))
            steps.append(
                self._convolve(
                    self._ring_arenas[stage], lambda: rings().read("time"), up.time_conv, count,
                    kept=(self._paired[stage], lambda: pairs), interleaved=True,
                )
            )  # fmt: skip
        return steps

    def _residual(self, stage: int, block: Residual, name: str, count: int, last: bool = False) -> list[Step]:
        """x = shortcut(x) + conv(norm(conv(norm(x)))), where the channels are too many for one block of outputs."""
        arena, rings, x, y = self._ring_arenas[stage], self._rings_of(stage), self._x[stage], self._y[stage]
        numbers = list(range(count))
        here = lambda: numbers  # noqa: E731
        steps = []
        if block.shortcut is None:
            steps.append(
                self._norm(x, here, block.residual[0], arena, lambda: rings().extend(f"{name}0", count), count)
            )
            steps.append(
                self._convolve(arena, lambda: rings().read(f"{name}0"), block.residual[2], count, kept=(y, here))
            )
        else:
            narrow, first, few = self._x[4], self._ring_arenas[4], self._rings_of(4)
            steps.append(
                self._norm(narrow, here, block.residual[0], first, lambda: few().extend("first", count), count)
            )
            steps.append(self._convolve(first, lambda: few().read("first"), block.residual[2], count, kept=(y, here)))
            steps.append(self._convolve(narrow, here, block.shortcut, count, kept=(x, here)))
        steps.append(self._norm(y, here, block.residual[3], arena, lambda: rings().extend(f"{name}1", count), count))
        kept = (x, here)
        if last:
            kept = (self._paired[stage], here) if self._fresh else (arena, lambda: rings().extend("time", count))
        steps.append(
            self._convolve(
                arena, lambda: rings().read(f"{name}1"), block.residual[6], count, residual=(x, here), kept=kept
            )
        )
        return steps

    def _second(self, source: Arena, numbers: list[int]) -> list[Step]:
        count = len(numbers)
        new = list(range(count))
        up = self._convolve(source, lambda: numbers, self._ups[0], count, kept=(self._x[4], lambda: new))
        return [up, *self._residuals(1, count)]

    def _third(self, source: Arena, numbers: list[int]) -> list[Step]:
        return self._fused(2, source, numbers, list(range(len(numbers))))

    def _full(self, number: int, made: int) -> list[Step]:
        steps = self._fused(3, self._before_full, [number], [0])
        shares = self._share_rings_of()
        steps.append(
            Step(
                "3 head",
                lambda: [0, *shares().extend("head", 1)],
                lambda table: convolve(
                    self._head_input, self._weights.head, Then(kept=self._shares), 1, table, TILES[9]
                ),
            )
        )
        frames = self._frames[made]
        steps.append(
            Step("3 shares", lambda: shares().read("head"), lambda table: add_shares(self._shares, table, frames))
        )
        return steps

    def _fused(self, stage: int, source: Arena, numbers: list[int], new: list[int]) -> list[Step]:
        """A resolution whose norms are done by the convolutions before them, the doubling before it included."""
        arena, rings, x, count = self._ring_arenas[stage], self._rings_of(stage), self._x[stage], len(new)
        here = lambda: new  # noqa: E731
        blocks = self._blocks[stage]

        def behind(name: str, norm: RMSNorm):
            return arena, lambda: rings().extend(name, count), norm

        steps = [
            self._convolve(
                source, lambda: numbers, self._ups[stage - 1], count, kept=(x, here),
                normed=behind("00", blocks[0].residual[0]),
            )
        ]  # fmt: skip
        for number, block in enumerate(blocks):
            steps.append(
                self._convolve(
                    arena, lambda name=f"{number}0": rings().read(name), block.residual[2], count,
                    normed=behind(f"{number}1", block.residual[3]),
                )
            )  # fmt: skip
            kept, normed = (x, here), None
            if number < 2:
                normed = behind(f"{number + 1}0", blocks[number + 1].residual[0])
            elif stage == 2:
                kept = (self._before_full, here)
            else:
                kept, normed = None, (self._head_input, here, self._decoder.head[0])
            steps.append(
                self._convolve(
                    arena, lambda name=f"{number}1": rings().read(name), block.residual[6], count,
                    residual=(x, here), kept=kept, normed=normed,
                )
            )  # fmt: skip
        return steps

    def _rings_of(self, stage: int) -> Callable[[], Rings]:
        return lambda: self._rings[stage]  # reset() makes new ones

    def _share_rings_of(self) -> Callable[[], Rings]:
        return lambda: self._share_rings

    def _convolve(self, source, reads, layer, count, residual=None, kept=None, normed=None, interleaved=False) -> Step:
        taps = self._weights.kernels[layer]
        then = Then(
            kept=kept and kept[0],
            residual=residual and residual[0],
            normed=normed and normed[0],
            scale=normed and self._weights.scales[normed[2]],
            interleaved=interleaved,
        )
        places = [each[1] for each in (residual, kept, normed) if each]
        tile = TILES.get(taps.outputs, TILES[384])

        def plan() -> list[int]:
            # What is written is taken before what is read is freed: both are in use at the same time.
            written = [number for place in places for number in place()]
            return [*reads(), *written]

        name = f"{self._stage(source)} {source.channels}-{taps.outputs} {taps.frames}x{taps.lines}" + " up" * (
            taps.phases > 1
        )
        return Step(name, plan, lambda table: convolve(source, taps, then, count, table, tile))

    def _stage(self, arena: Arena) -> int:
        return self._planes.index(arena.plane)

    def _norm(self, source, reads, norm, target, writes, count) -> Step:
        scale = self._weights.scales[norm]
        return Step(
            f"{self._stage(source)} norm",
            lambda: [*reads(), *writes()],
            lambda table: norm_silu_frames(source, scale, target, count, table),
        )

    def _attend(self, layer: SpatialAttention, count: int) -> None:
        dtype = self._weights.dtype
        for number in range(count):
            picture = self._x[0].frame(number)
            scale = self._weights.scales[layer.norm]
            normed = (F.normalize(picture.float(), dim=-1) * scale).to(dtype).flatten(0, 1)
            qkv = F.linear(normed, layer.to_qkv.weight.flatten(1).to(dtype), layer.to_qkv.bias.to(dtype))
            q, k, v = qkv[None, None].chunk(3, dim=-1)  # (1, 1, hw, C)
            seen = F.scaled_dot_product_attention(q, k, v)[0, 0]
            update = F.linear(seen, layer.proj.weight.flatten(1).to(dtype), layer.proj.bias.to(dtype))
            picture += update.view_as(picture)
