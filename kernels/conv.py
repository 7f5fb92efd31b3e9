"""Convolutions that look back in time, as matrix products over shifted rows, with what follows them in the same pass.

A picture of H x W pixels is held as rows of channels with one column of zeros behind each line and one line of zeros
behind the last: (H + 1) * (W + 1) rows. Moving by a line or a column is then adding to a row number, and what hangs
over an edge meets zeros. Pixels that are neighbours in a line lie one behind the other, so each line of a kernel is one
product, as deep as its width times the channels: 3 x 3 x 3 is nine products. An arena is a stack of such pictures with
some zeros before the first and after the last; which of them a convolution reads and writes is told by a table on the
GPU, so a stream's past is never copied and a CUDA graph serves whatever the table says.

C channels in, O channels out, N frames, H W the height and width of a picture in pixels.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl
    from triton.tools.tensor_descriptor import TensorDescriptor
except ImportError:  # torch for a CPU comes without it; everything here has a plain form
    triton = None

CAPABILITY = (9, 0)  # the copy engine for tiles
DEPTH = 64  # channels of a product's step: 128 bytes, the widest row that the copy engine swizzles
TAIL = 32  # of the last step of a line, where a whole one would be half zeros: 3 times 96 channels are four and a half


class Plane(NamedTuple):
    """Where the pixels of a picture lie among its rows."""

    height: int
    width: int

    @property
    def stride(self) -> int:
        return self.width + 1

    @property
    def pixels(self) -> int:
        return (self.height + 1) * (self.width + 1)

    @property
    def lead(self) -> int:
        """Rows of zeros before the first picture of an arena and after its last."""
        return self.width + 5

    @property
    def doubled(self) -> "Plane":
        return Plane(2 * self.height, 2 * self.width)


class Arena(NamedTuple):
    """A stack of pictures; rows: (lead + N * pixels + lead, C)."""

    plane: Plane
    rows: Tensor

    @classmethod
    def zeros(cls, plane: Plane, frames: int, channels: int, like: Tensor) -> "Arena":
        return cls(plane, like.new_zeros(2 * plane.lead + frames * plane.pixels, channels))

    @property
    def channels(self) -> int:
        return self.rows.shape[1]

    def frame(self, number: int) -> Tensor:
        """The pixels of one picture, (H, W, C); a view."""
        first = self.plane.lead + number * self.plane.pixels
        lines = self.rows[first : first + self.plane.pixels].unflatten(0, (-1, self.plane.stride))
        return lines[:-1, :-1]


class Tile(NamedTuple):
    """How a product is cut: rows, outputs (in one or two parts), warps, stages of the pipeline."""

    rows: int
    outputs: int
    more: int = 0
    warps: int = 8
    stages: int = 3


class Kernel(NamedTuple):
    """Weights as the products want them: (phases * O, frames * lines * span); bias (O,), float32.

    `span` is width * C up to a multiple of TAIL. The product of a row starts `up` lines and `left` pixels before it.
    """

    weights: Tensor
    bias: Tensor
    outputs: int
    frames: int
    lines: int
    up: int
    left: int
    phases: int = 1


def kernel(weight: Tensor, bias: Tensor) -> Kernel:
    """Of a convolution with weight (O, C, kt, kh, kw) or (O, C, kh, kw); kh and kw odd."""
    weight = weight if weight.dim() == 5 else weight.unsqueeze(2)
    outputs, _, frames, lines, width = weight.shape
    return Kernel(_as_rows(weight), bias.float(), outputs, frames, lines, lines // 2, width // 2)


def doubling_kernel(weight: Tensor, bias: Tensor) -> Kernel:
    """Of a 3 x 3 convolution (O, C, 3, 3) behind a doubling of height and width by the nearest neighbour.

    Each of the four kinds of pixels of the result sees 2 x 2 of the small picture: 4/9 of the arithmetic.
    """
    outputs = weight.shape[0]
    folded = [_fold(_fold(weight, 2, down), 3, right) for down in (0, 1) for right in (0, 1)]
    rows = torch.cat([_as_rows(each.unsqueeze(2)) for each in folded])
    return Kernel(rows, bias.float(), outputs, 1, 2, 1, 1, phases=4)


def _fold(weight: Tensor, dim: int, second: int) -> Tensor:
    """Three taps along `dim` on doubled pixels to two on the pixels; `second`: for the second of each pair."""
    first, middle, last = weight.double().unbind(dim)
    taps = (first + middle, last) if second else (first, middle + last)
    return torch.stack(taps, dim).to(weight.dtype)


def _as_rows(weight: Tensor) -> Tensor:
    rows = weight.movedim(1, -1).flatten(3)  # (O, kt, kh, kw * C)
    return F.pad(rows, (0, -rows.shape[-1] % TAIL)).flatten(1).contiguous()


class Then(NamedTuple):
    """What becomes of a convolution's result: plus `residual`, kept in `kept`, normed with SiLU in `normed`.

    `scale` (O,) is the norm's gamma times sqrt(O), float32. Of the places the table tells which pictures they are.
    """

    kept: Arena | None = None
    residual: Arena | None = None
    normed: Arena | None = None
    scale: Tensor | None = None


def conv_missing(device: torch.device) -> str | None:
    """Why convolve() cannot run on `device`, or None."""
    if device.type != "cuda":
        return None  # plainly, for checking
    if triton is None:
        return "this torch has no Triton"
    if (found := torch.cuda.get_device_capability(device)) < CAPABILITY:
        return f"it needs compute capability {CAPABILITY[0]}.{CAPABILITY[1]}, this GPU has {found[0]}.{found[1]}"
    return None


def convolve(source: Arena, taps: Kernel, then: Then, count: int, table: Tensor, tile: Tile) -> None:
    """Result n of `count` sees the pictures table[n] to table[n + frames - 1] of source.

    table, int32: count + frames - 1 pictures of source, then for each of `residual`, `kept`, `normed` that there are
    count more. `kept` may be `residual`. With 4 phases the results lie on the doubled plane. Where `normed` is wanted,
    tile.outputs + tile.more is at least O. Margins of what is written are zeros, but on a doubled plane they are left
    as they are. On a GPU it takes compute capability 9 and rows of whole 16 bytes, so C a multiple of 8 in 16 bits; on
    a CPU it is computed plainly, for checking.
    """
    for arena in (then.residual, then.kept, then.normed):
        assert arena is None or arena.channels == taps.outputs, (arena.channels, taps.outputs)
    assert then.normed is None or taps.outputs <= tile.outputs + tile.more, (taps.outputs, tile)
    if not source.rows.is_cuda:
        return _convolve_plainly(source, taps, then, count, table.tolist())
    return _launch(source, taps, then, count, table, tile)


def _launch(source: Arena, taps: Kernel, then: Then, count: int, table: Tensor, tile: Tile) -> None:
    """convolve() in a kernel."""
    plane, made = source.plane, (then.kept or then.normed)
    span = taps.weights.shape[1] // (taps.frames * taps.lines)
    residual_at = count + taps.frames - 1
    kept_at = residual_at + count * (then.residual is not None)
    normed_at = kept_at + count * (then.kept is not None)
    assert len(table) == normed_at + count * (then.normed is not None), (len(table), normed_at)
    depths = (DEPTH, TAIL)
    rows = [_rows_of(source, span, tile.rows, depth) for depth in depths]
    parts = [_weights_of(taps, width, depth) for depth in depths for width in (tile.outputs, tile.more or tile.outputs)]
    blocks = triton.cdiv(taps.outputs, tile.outputs + tile.more)
    grid = (blocks * taps.phases, triton.cdiv(plane.pixels, tile.rows), count)
    places = [then.residual, then.kept, then.normed]
    _convolve[grid](
        *rows, *parts, table, taps.bias, then.scale if then.scale is not None else taps.bias,
        *((each or made).rows for each in places),
        plane.pixels, plane.stride, plane.lead, plane.height, plane.width,
        made.plane.pixels, made.plane.stride, made.plane.lead,
        taps.outputs, residual_at, kept_at, normed_at,
        BLOCKS=blocks, FRAMES=taps.frames, LINES=taps.lines, SPAN=span, UP=taps.up, LEFT=taps.left,
        PHASES=taps.phases, ROWS=tile.rows, FIRST=tile.outputs, MORE=tile.more, DEPTH=DEPTH, TAIL=TAIL,
        RESIDUAL=then.residual is not None, KEPT=then.kept is not None, NORMED=then.normed is not None,
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip


def _convolve_plainly(source: Arena, taps: Kernel, then: Then, count: int, table: list[int]) -> None:
    """convolve() as it is defined, in float32."""
    pictures, places = table[: count + taps.frames - 1], iter(table[count + taps.frames - 1 :])
    at = {}
    for name, arena in (("residual", then.residual), ("kept", then.kept), ("normed", then.normed)):
        at[name] = [next(places) for _ in range(count if arena else 0)]
    for number in range(count):
        made = _phases_joined([_products(source, taps, pictures[number:], phase) for phase in range(taps.phases)])
        made = made + taps.bias
        if then.residual is not None:
            made = made + then.residual.frame(at["residual"][number]).float()
        if then.kept is not None:
            then.kept.frame(at["kept"][number]).copy_(made)
        if then.normed is not None:
            then.normed.frame(at["normed"][number]).copy_(F.silu(F.normalize(made, dim=-1) * then.scale))


def _products(source: Arena, taps: Kernel, pictures: Sequence[int], phase: int) -> Tensor:
    """(H, W, O) of one kind of pixels; a row's product starts at a shifted row, whatever lies there."""
    plane, channels = source.plane, source.channels
    span = taps.weights.shape[1] // (taps.frames * taps.lines)
    weights = taps.weights[phase * taps.outputs : (phase + 1) * taps.outputs].float()
    parts = weights.unflatten(1, (taps.frames, taps.lines, span))
    total = weights.new_zeros(plane.pixels, taps.outputs)
    for frame, line in itertools.product(range(taps.frames), range(taps.lines)):
        down, right = line - taps.up + phase // 2, phase % 2 - taps.left
        first = plane.lead + pictures[frame] * plane.pixels + down * plane.stride + right
        rows = source.rows.as_strided((plane.pixels, span), (channels, 1), first * channels)
        total += rows.float() @ parts[:, frame, line].T
    return total.unflatten(0, (-1, plane.stride))[:-1, :-1]


def _phases_joined(phases: list[Tensor]) -> Tensor:
    """(H, W, O) of one kind of pixels, or (2H, 2W, O) of the four kinds."""
    if len(phases) == 1:
        return phases[0]
    rows = [torch.stack(pair, dim=2).flatten(1, 2) for pair in (phases[:2], phases[2:])]
    return torch.stack(rows, dim=1).flatten(0, 1)


def _rows_of(source: Arena, span: int, rows: int, depth: int) -> "TensorDescriptor":
    """Rows that overlap: each holds `span` channels from its pixel on."""
    channels, beyond = source.channels, -(-span // source.channels) - 1
    return TensorDescriptor(source.rows, [len(source.rows) - beyond, span], [channels, 1], [rows, depth])


def _weights_of(taps: Kernel, outputs: int, depth: int) -> "TensorDescriptor":
    return TensorDescriptor(taps.weights, list(taps.weights.shape), list(taps.weights.stride()), [outputs, depth])


def norm_silu_frames(source: Arena, scale: Tensor, target: Arena, count: int, table: Tensor, silu: bool = True) -> None:
    """Norm `count` pictures, table[:count] of source to table[count:] of target; scale: gamma * sqrt(C), float32."""
    if not source.rows.is_cuda:
        for number, place in zip(*table.unflatten(0, (2, count)).tolist(), strict=True):
            normed = F.normalize(source.frame(number).float(), dim=-1) * scale
            target.frame(place).copy_(F.silu(normed) if silu else normed)
    else:
        _launch_norms(source, scale, target, count, table, silu)


def _launch_norms(source: Arena, scale: Tensor, target: Arena, count: int, table: Tensor, silu: bool = True) -> None:
    """norm_silu_frames() in a kernel."""
    block = triton.next_power_of_2(source.channels)
    rows = max(1, 8192 // block)
    _norm_frames[(triton.cdiv(source.plane.pixels, rows), count)](
        source.rows, scale, target.rows, table, source.plane.pixels, source.plane.lead, source.channels, count,
        ROWS=rows, BLOCK=block, SILU=silu, num_warps=8,
    )  # fmt: skip


def add_shares(shares: Arena, late: Tensor, frame: Tensor) -> None:
    """frame (3, H, W) = late[0] + the last three channels of the shares' picture; all float32.

    late (2, 3, H, W), what is known of the next two frames, moves on by a frame: the three channels in the middle are
    for the next one, the first three for the one behind it.
    """
    if shares.rows.is_cuda:
        _launch_shares(shares, late, frame)
    else:
        third, second, first = shares.frame(0).movedim(-1, 0).split(3)
        frame.copy_(late[0] + first)
        late[0] = late[1] + second
        late[1] = third


def _launch_shares(shares: Arena, late: Tensor, frame: Tensor) -> None:
    """add_shares() in a kernel."""
    plane, block = shares.plane, 1024
    _add_shares[(triton.cdiv(plane.height * plane.width, block),)](
        shares.rows, late, frame, plane.stride, plane.lead, plane.width, plane.height * plane.width, BLOCK=block
    )


def norm_silu(x: Tensor, gamma: Tensor) -> Tensor:
    """silu(x / ||x|| * sqrt(C) * gamma) over the channels. x: (B, C, ...); gamma: (C, 1, ...).

    In one pass and in float32 where x lies channels-last on a GPU, else as PyTorch computes it.
    """
    if x.is_cuda and triton is not None and x.movedim(1, -1).is_contiguous():
        return _norm_silu_rows(x, gamma)
    return norm_silu_reference(x, gamma)


def norm_silu_reference(x: Tensor, gamma: Tensor) -> Tensor:
    return F.silu(F.normalize(x, dim=1) * (gamma * x.shape[1] ** 0.5))


def _norm_silu_rows(x: Tensor, gamma: Tensor) -> Tensor:
    out = torch.empty_like(x)
    channels = x.shape[1]
    count, block = x.numel() // channels, triton.next_power_of_2(channels)
    rows = max(1, 8192 // block)
    _norm_rows[(triton.cdiv(count, rows),)](x, gamma, out, count, channels, channels**0.5, rows, block, num_warps=8)
    return out


if triton is not None:

    @triton.jit
    def _normed(values, scale, SILU: tl.constexpr):
        length = tl.maximum(tl.sqrt(tl.sum(values * values, axis=1)), 1e-12)
        normed = values / length[:, None] * scale[None, :]
        return normed * tl.sigmoid(normed) if SILU else normed

    @triton.jit
    def _norm_rows(x, gamma, out, count, channels, root, ROWS: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, BLOCK)
        inside = (row < count)[:, None] & (column < channels)[None, :]
        places = row[:, None] * channels + column[None, :]
        values = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(gamma + column, mask=column < channels, other=0.0).to(tl.float32) * root
        tl.store(out + places, _normed(values, scale, True).to(out.dtype.element_ty), mask=inside)

    @triton.jit
    def _norm_frames(
        x, scale, out, table, pixels, lead, channels, count,
        ROWS: tl.constexpr, BLOCK: tl.constexpr, SILU: tl.constexpr,
    ):  # fmt: skip
        number = tl.program_id(1)
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column = tl.arange(0, BLOCK)
        inside = (row < pixels)[:, None] & (column < channels)[None, :]
        source = (lead + tl.load(table + number) * pixels + row).to(tl.int64)[:, None] * channels + column[None, :]
        target = (lead + tl.load(table + count + number) * pixels + row).to(tl.int64)[:, None] * channels
        values = tl.load(x + source, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(scale + column, mask=column < channels, other=0.0)
        normed = _normed(values, factor, SILU)
        tl.store(out + target + column[None, :], normed.to(out.dtype.element_ty), mask=inside)

    @triton.jit
    def _add_shares(shares, late, frame, stride, lead, width, count, BLOCK: tl.constexpr):
        pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = pixel < count
        row = (pixel // width * stride + pixel % width + lead) * 9
        for colour in tl.static_range(3):
            place = colour * count + pixel
            next_one = tl.load(late + place, mask=inside, other=0.0)
            behind_it = tl.load(late + 3 * count + place, mask=inside, other=0.0)
            tl.store(frame + place, next_one + tl.load(shares + row + 6 + colour, mask=inside, other=0.0), mask=inside)
            second = tl.load(shares + row + 3 + colour, mask=inside, other=0.0)
            tl.store(late + place, behind_it + second, mask=inside)
            third = tl.load(shares + row + colour, mask=inside, other=0.0)
            tl.store(late + 3 * count + place, third, mask=inside)

    @triton.jit
    def _complete(
        total, bias, residual, kept, at_residual, at_kept, channel, width, valid, written,
        RESIDUAL: tl.constexpr, KEPT: tl.constexpr,
    ):  # fmt: skip
        """Bias, residual, zeros in the margins; stored if wanted."""
        real = (channel < width)[None, :]
        total += tl.load(bias + channel, mask=channel < width, other=0.0)[None, :]
        if RESIDUAL:
            places = at_residual[:, None] * width + channel[None, :]
            total += tl.load(residual + places, mask=valid[:, None] & real, other=0.0).to(tl.float32)
        total = tl.where(valid[:, None] & real, total, 0.0)
        if KEPT:
            places = at_kept[:, None] * width + channel[None, :]
            tl.store(kept + places, total.to(kept.dtype.element_ty), mask=written[:, None] & real)
        return total

    @triton.jit
    def _store_normed(total, length, scale, normed, at, channel, width, written):
        real = channel < width
        value = total / length[:, None] * tl.load(scale + channel, mask=real, other=0.0)[None, :]
        value = value * tl.sigmoid(value)
        places = at[:, None] * width + channel[None, :]
        tl.store(normed + places, value.to(normed.dtype.element_ty), mask=written[:, None] & real[None, :])

    @triton.jit
    def _multiply(
        rows, first_part, second_part, total, other, oldest, middle, newest, stride, weight, start,
        FRAMES: tl.constexpr, LINES: tl.constexpr, SPAN: tl.constexpr, STEPS: tl.constexpr,
        FIRST: tl.constexpr, MORE: tl.constexpr, DEPTH: tl.constexpr,
    ):  # fmt: skip
        """STEPS products of DEPTH channels from `start` on, of each line: of the FIRST outputs, and of MORE others."""
        for step in range(FRAMES * LINES * STEPS):
            line = step // STEPS
            channel = start + (step % STEPS) * DEPTH
            picture = tl.where(line < LINES, oldest, tl.where(line < 2 * LINES, middle, newest))
            a = rows.load([picture + (line % LINES) * stride, channel])
            total = tl.dot(a, first_part.load([weight, line * SPAN + channel]).T, total)
            if MORE:
                other = tl.dot(a, second_part.load([weight + FIRST, line * SPAN + channel]).T, other)
        return total, other

    @triton.jit
    def _products_of(
        rows, rows_end, first_part, second_part, first_end, second_end, table, number, base, pixels, stride, weight,
        FRAMES: tl.constexpr, LINES: tl.constexpr, SPAN: tl.constexpr,
        ROWS: tl.constexpr, FIRST: tl.constexpr, MORE: tl.constexpr, DEPTH: tl.constexpr, TAIL: tl.constexpr,
    ):  # fmt: skip
        """The products of a block's rows, summed; without MORE the second sums are the first."""
        oldest = base + tl.load(table + number) * pixels
        middle = oldest
        newest = oldest
        if FRAMES == 3:
            middle = base + tl.load(table + number + 1) * pixels
            newest = base + tl.load(table + number + 2) * pixels
        total = tl.zeros((ROWS, FIRST), dtype=tl.float32)
        other = total
        if MORE:
            other = tl.zeros((ROWS, MORE), dtype=tl.float32)
        if SPAN >= DEPTH:
            total, other = _multiply(
                rows, first_part, second_part, total, other, oldest, middle, newest, stride, weight, 0,
                FRAMES, LINES, SPAN, SPAN // DEPTH, FIRST, MORE, DEPTH,
            )  # fmt: skip
        if SPAN % DEPTH:
            total, other = _multiply(
                rows_end, first_end, second_end, total, other, oldest, middle, newest, stride, weight,
                SPAN // DEPTH * DEPTH, FRAMES, LINES, SPAN, 1, FIRST, MORE, TAIL,
            )  # fmt: skip
        return total, other

    @triton.jit
    def _place(row, pixels, stride, height, width, down, right, out_stride, out_lead, PHASES: tl.constexpr):
        """Where a row's result lies on its plane, whether it is a pixel's, and whether it is written at all."""
        line, column = row // stride, row % stride
        valid = (line < height) & (column < width)
        if PHASES == 4:
            place = ((2 * line + down) * out_stride + 2 * column + right).to(tl.int64)
            written = valid
        else:
            place = row.to(tl.int64)
            written = row < pixels
        return place + out_lead, valid, written

    @triton.jit
    def _in_picture(place, table, entry, pixels):
        """The place within the picture that the table names."""
        return place + tl.load(table + entry).to(tl.int64) * pixels

    @triton.jit
    def _norm_both(
        total, other, scale, normed, at, channel, channel_more, width, written, MORE: tl.constexpr
    ):  # fmt: skip
        """Both parts of a row are normed by the length of the whole."""
        square = tl.sum(total * total, axis=1)
        if MORE:
            square += tl.sum(other * other, axis=1)
        length = tl.maximum(tl.sqrt(square), 1e-12)
        _store_normed(total, length, scale, normed, at, channel, width, written)
        if MORE:
            _store_normed(other, length, scale, normed, at, channel_more, width, written)

    @triton.jit
    def _finish(
        total, other, output, more, bias, scale, residual, kept, normed, table, number, place, valid, written,
        out_pixels, outputs, residual_at, kept_at, normed_at,
        MORE: tl.constexpr, RESIDUAL: tl.constexpr, KEPT: tl.constexpr, NORMED: tl.constexpr,
    ):  # fmt: skip
        """What becomes of the sums, see Then."""
        at_residual = place
        at_kept = place
        if RESIDUAL:
            at_residual = _in_picture(place, table, residual_at + number, out_pixels)
        if KEPT:
            at_kept = _in_picture(place, table, kept_at + number, out_pixels)
        total = _complete(
            total, bias, residual, kept, at_residual, at_kept, output, outputs, valid, written, RESIDUAL, KEPT
        )
        if MORE:
            other = _complete(
                other, bias, residual, kept, at_residual, at_kept, more, outputs, valid, written, RESIDUAL, KEPT
            )
        if NORMED:
            at = _in_picture(place, table, normed_at + number, out_pixels)
            _norm_both(total, other, scale, normed, at, output, more, outputs, written, MORE)

    @triton.jit
    def _convolve(
        rows, rows_end, first_part, second_part, first_end, second_end, table, bias, scale, residual, kept, normed,
        pixels, stride, lead, height, width, out_pixels, out_stride, out_lead,
        outputs, residual_at, kept_at, normed_at,
        BLOCKS: tl.constexpr, FRAMES: tl.constexpr, LINES: tl.constexpr, SPAN: tl.constexpr,
        UP: tl.constexpr, LEFT: tl.constexpr, PHASES: tl.constexpr,
        ROWS: tl.constexpr, FIRST: tl.constexpr, MORE: tl.constexpr, DEPTH: tl.constexpr, TAIL: tl.constexpr,
        RESIDUAL: tl.constexpr, KEPT: tl.constexpr, NORMED: tl.constexpr,
    ):  # fmt: skip
        block = tl.program_id(0) % BLOCKS
        phase = tl.program_id(0) // BLOCKS
        down, right = phase // 2, phase % 2
        first_row = tl.program_id(1) * ROWS
        number = tl.program_id(2)
        first_output = block * (FIRST + MORE)
        base = lead + first_row + (down - UP) * stride + right - LEFT
        total, other = _products_of(
            rows, rows_end, first_part, second_part, first_end, second_end, table, number, base, pixels, stride,
            phase * outputs + first_output, FRAMES, LINES, SPAN, ROWS, FIRST, MORE, DEPTH, TAIL,
        )  # fmt: skip
        row = first_row + tl.arange(0, ROWS)
        place, valid, written = _place(row, pixels, stride, height, width, down, right, out_stride, out_lead, PHASES)
        output = first_output + tl.arange(0, FIRST)
        more = output
        if MORE:
            more = first_output + FIRST + tl.arange(0, MORE)
        _finish(
            total, other, output, more, bias, scale, residual, kept, normed, table, number, place, valid, written,
            out_pixels, outputs, residual_at, kept_at, normed_at, MORE, RESIDUAL, KEPT, NORMED,
        )  # fmt: skip
