"""Keys and values of everything a stream's self-attention still sees: a preallocated ring with a sink, a slot each.

The first `sink_frames` latent frames of a stream stay for ever; the rest of the window is a ring whose oldest latent
frame makes room for the newest. Keys carry their rotary embedding, and attention does not care about the order of such
keys, so nothing is ever moved, and before as after the ring has closed a slot's keys are one run of rows from row 0.

Positions in a stream without end. Every latent frame is embedded at its absolute index, which only grows. Scores depend
on differences of positions alone, and the angles are made in float64 for each chunk, so there is no table that ends:
the error of an angle stays below the rounding of its float32 cosine for 10^8 latent frames, most of a year. The ring is
written anew within a window, so a query is never further from its keys than in the first minute. The sink is not: with
absolute positions its distance would grow for ever, beyond anything the model has seen. Up to position 1024, where the
reference stops, the sink stands where the reference has it. From there on it follows: before each chunk its keys are
turned so that the chunk's last frame keeps the distance that it had there. They are turned from the keys as they stood
at the limit, kept beside the cache, and never from turned ones, so nothing adds up. Only the channels that carry time
take part; that is 44 of 128 for Wan, and 17% of a sink's keys and values to keep.

Packed, keys and values lie in float8 (kernels.packed): half of the memory of bfloat16, and each number a little off.
What a chunk sees is unpacked before each attention, its own keys too. Of a packed sink the whole keys are kept beside
it, as written, and what is turned is packed anew. With attention in FP8 (kernels.fp8_attention) they lie in float8 as
that reads them, without scales of their own, and nothing is unpacked.

T latent frames in a chunk, L tokens in a chunk, H heads, D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import fused
from kernels.attention import Choice, attention, attention_each
from kernels.fp8 import FP8, Quantized
from kernels.fp8_attention import Fp8Attention, narrow, widen
from kernels.packed import pack, unpack
from pipeline.transformer import rope_angles, time_frequencies

POSITIONS = 1024
"""Positions in time that the models' reference knows; the end of a chunk within them sees its sink as written."""


class Run(NamedTuple):
    """`count` tokens of the chunk from `source` go to the cache's rows from `row`."""

    row: int
    source: int
    count: int


class Turn(NamedTuple):
    """How far a sink has followed its stream: `frames` positions, 0 as it was written.

    cos, sin: those of the turn's angles, (1, 1, pairs) float32; None where nothing is turned.
    """

    frames: int
    cos: Tensor | None = None
    sin: Tensor | None = None


UNTURNED = Turn(0)


def sink_beside_chunk(window_frames: int, sink_frames: int, chunk_frames: int) -> int:
    """How much of the sink a window keeps when the chunk has to fit into it as well.

    Where the two do not fit together, the chunk takes the sink's last latent frames. No golden file shows this case.
    Raises ValueError for a chunk longer than the window.
    """
    if chunk_frames > window_frames:
        raise ValueError(f"a chunk of {chunk_frames} latent frames does not fit into a window of {window_frames}")
    return min(sink_frames, window_frames - chunk_frames)


class KVCache:
    """The cache of all layers and slots; positions are plain ints, so nothing here waits for a device.

    `window_frames` counts latent frames: the sink, the past, and the chunk in the making. A model with a global context
    takes as window the most frames that it shall ever see.
    """

    def __init__(
        self,
        layers: int,
        slots: int,
        window_frames: int,
        sink_frames: int,
        tokens_per_frame: int,
        heads: int,
        head_width: int,
        dtype: torch.dtype,
        device: torch.device | str,
        backend: str | Choice = "auto",
        positions: int = POSITIONS,
        packed: bool = False,
        value_scales: Sequence[float] | None = None,
    ):
        """`backend` is that of kernels.attention; `positions` is where the sink begins to follow the stream.

        Where a window is longer than that, when the ring has closed. `packed` keeps keys and values in float8.
        `value_scales`, a power of two for each layer, has attention in FP8 with values times that, and then `packed`
        changes nothing. Raises ValueError unless 0 <= sink_frames < window_frames.
        """
        if not 0 <= sink_frames < window_frames:
            raise ValueError(f"the sink, {sink_frames} latent frames, must be smaller than the window, {window_frames}")
        self.window_frames = window_frames
        self.sink_frames = sink_frames
        self.tokens_per_frame = tokens_per_frame
        self.backend = backend
        shape = (layers, slots, window_frames * tokens_per_frame, heads, head_width)
        self.dtype, self._value_scales, self._attend_fp8 = dtype, value_scales, Fp8Attention()
        self._packed = packed and not value_scales
        self.k, self._k_scale = self._rows(shape, device)
        self.v, self._v_scale = self._rows(shape, device)
        self._positions = [0] * slots
        self._follow_from = max(positions, window_frames)
        self._time_pairs = len(time_frequencies(head_width, "cpu"))
        kept = head_width if self._packed else 2 * self._time_pairs  # the time channels of its keys, as written
        self._sink, self._sink_scale = self._rows((layers, slots, sink_frames * tokens_per_frame, heads, kept), device)
        self._turned = [[0] * layers for _ in range(slots)]  # how far each sink in the cache is turned now

    def _rows(self, shape: tuple[int, ...], device: torch.device | str) -> Quantized:
        """Numbers, and the scales of packed ones."""
        scales = (*shape[:-1], 1) if self._packed else (0,)
        # Zeros for attention in FP8: rows that are not seen take part with a weight of nothing, so they must be finite.
        make = torch.zeros if self._value_scales else torch.empty
        values = make(shape, dtype=FP8 if self._packed or self._value_scales else self.dtype, device=device)
        return Quantized(values, torch.empty(scales, dtype=torch.bfloat16, device=device))

    def write(self, layer: int, slot: int, rows: slice | Tensor, k: Tensor, v: Tensor) -> None:
        """Keys and values (L, H, D) to these rows, a slice or (L,) on the device."""
        self._write((self.k, self._k_scale), layer, slot, rows, self._stored(k))
        scale = self._value_scales[layer] if self._value_scales else 1.0
        self._write((self.v, self._v_scale), layer, slot, rows, self._stored(v, scale))

    def _stored(self, new: Tensor, scale: float = 1.0) -> tuple[Tensor, ...]:
        """As it lies here: numbers, and scales of packed ones."""
        if self._value_scales:
            return (narrow(new, scale),)
        return pack(new) if self._packed else (new,)

    def _write(
        self, places: tuple[Tensor, Tensor], layer: int, slot: int, rows: slice | Tensor, new: tuple[Tensor, ...]
    ) -> None:
        for place, part in zip(places, new, strict=False):
            place = place[layer, slot]
            if isinstance(rows, slice):
                place[rows] = part
            elif part.dtype == FP8:  # which index_copy_ does not know
                place.view(torch.uint8).index_copy_(0, rows, part.view(torch.uint8))
            else:
                place.index_copy_(0, rows, part)

    def attend(self, layer: int, slots: Sequence[int], seen: "Sequence[Sequence[Span]]", q: Tensor) -> Tensor:
        """What these slots' queries (B, L, H, D) find in the rows that each sees, (B, L, H, D).

        A slot gets the same bits with and without company. Slots that stand at different places are called one by one,
        which needs neither masks nor padding.
        """
        if not (self._packed or self._value_scales) and (side := _side_by_side(slots, seen)):
            return attention_each(q, self.k[layer][side], self.v[layer][side], self.backend)
        alone = self._attend_in_fp8 if self._value_scales else self._attend_alone
        outputs = [alone(layer, *each) for each in zip(slots, seen, q.split(1), strict=True)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _attend_alone(self, layer: int, slot: int, seen: "Sequence[Span]", q: Tensor) -> Tensor:
        keys, values = self.read(layer, slot, seen)
        return attention(q, keys[None], values[None], self.backend)

    def _attend_in_fp8(self, layer: int, slot: int, seen: "Sequence[Span]", q: Tensor) -> Tensor:
        keys, values = (_gathered(each[layer, slot], seen) for each in (self.k, self.v))
        count = sum(stop - start for start, stop in seen)
        found = self._attend_fp8(narrow(q[0]), keys, values, count)
        return widen(found, q.dtype, self._value_scales[layer])[None]

    def read(self, layer: int, slot: int, seen: "Sequence[Span]") -> tuple[Tensor, Tensor]:
        """Keys and values (S, H, D) of these rows; where they are one run and not in float8, a view."""
        scale = self._value_scales[layer] if self._value_scales else 1.0
        stored = ((self.k, self._k_scale, 1.0), (self.v, self._v_scale, scale))
        keys, values = ([self._read(layer, slot, slice(*span), *each) for span in seen] for each in stored)
        return tuple(parts[0] if len(parts) == 1 else torch.cat(parts) for parts in (keys, values))

    def _read(self, layer: int, slot: int, rows: slice, values: Tensor, scales: Tensor, scale: float = 1.0) -> Tensor:
        if self._value_scales:
            return widen(values[layer, slot, rows], self.dtype, scale)
        if not self._packed:
            return values[layer, slot, rows]
        return unpack(Quantized(values[layer, slot, rows], scales[layer, slot, rows]), self.dtype)

    def position(self, slot: int) -> int:
        """How many latent frames have been written and advanced over since the slot's reset."""
        return self._positions[slot]

    def reset(self, slot: int) -> None:
        """Begin a new stream in `slot`."""
        if self._value_scales:  # see _rows: the last stream may have left numbers that are not finite
            for rows in (self.k, self.v):
                rows[:, slot].view(torch.uint8).zero_()
        self._positions[slot] = 0
        self._turned[slot] = [0] * len(self.k)

    def advance(self, slots: Sequence[int], frames: int) -> None:
        """Keep the chunk of `frames` latent frames that was written last: once a chunk, after its context pass."""
        for slot in slots:
            self._positions[slot] += frames

    def view(self, slots: Sequence[int], frames: int, rows: int, columns: int) -> "CacheView":
        """The Memory for the next `frames` latent frames of each of `slots`, rows x columns tokens each.

        All passes over one chunk may share it; each overwrites the rows of the one before. Raises ValueError where the
        chunk has no room beside the sink.
        """
        if frames > self.window_frames - self.sink_frames:
            raise ValueError(
                f"a chunk of {frames} latent frames has no room in a window of {self.window_frames} "
                f"beside a sink of {self.sink_frames}"
            )
        return self._view(tuple(self._slot_view(slot, frames) for slot in slots), frames, rows, columns)

    def past_view(self, slot: int, position: int, frames: int, oldest: int, rows: int, columns: int) -> "CacheView":
        """The Memory for writing anew the `frames` latent frames of `slot` from `position`, which it has seen before.

        They see themselves, the sink, and of the latent frames before them those from `oldest`, each as written last;
        what came after them stays out of sight. Frames that are neither in the sink nor from `oldest` on are neither
        written nor seen.
        """
        end = position + frames
        start = max(oldest, self.sink_frames, end - (self.window_frames - self.sink_frames))
        places = sorted(self._frame_row(frame) for frame in (*range(min(self.sink_frames, end)), *range(start, end)))
        kept = [index for index in range(frames) if position + index < self.sink_frames or position + index >= start]
        runs = tuple(self._runs(position, kept))
        view = SlotView(slot, position, tuple(self._spans(places)), runs, self._turn(end))
        return self._view((view,), frames, rows, columns)

    def _view(self, parts: "tuple[SlotView, ...]", frames: int, rows: int, columns: int) -> "CacheView":
        assert rows * columns == self.tokens_per_frame, (rows, columns, self.tokens_per_frame)
        starts = [
            torch.arange(part.position, part.position + frames, dtype=torch.float64, device=self.k.device)
            for part in parts
        ]
        rope = rope_angles(torch.stack(starts), rows, columns, self.k.shape[-1], self.k.device)
        return CacheView(self, parts, rope)

    def _slot_view(self, slot: int, frames: int) -> "SlotView":
        position = self._positions[slot]
        seen = Span(0, min(position + frames, self.window_frames) * self.tokens_per_frame)
        runs = tuple(self._runs(position, range(frames)))
        return SlotView(slot, position, (seen,), runs, self._turn(position + frames))

    def _turn(self, end: int) -> Turn:
        """What the sink owes a chunk that ends before position `end`."""
        frames = end - self._follow_from
        if frames <= 0 or not self.sink_frames:
            return UNTURNED
        angles = frames * time_frequencies(self.k.shape[-1], self.k.device)[None, None]
        return Turn(frames, angles.cos().float(), angles.sin().float())

    def turn_sink(self, layer: int, slot: int, turn: Turn) -> None:
        """Bring the sink's keys to `turn`, always from what was written; the values carry no position."""
        now, self._turned[slot][layer] = self._turned[slot][layer], turn.frames
        if now == turn.frames:
            return
        rows, kept = self._sink.shape[2], self._sink.shape[-1]
        stored = [(self.k[layer, slot, :rows, :, :kept], self._sink[layer, slot])]
        if self._packed:
            stored.append((self._k_scale[layer, slot, :rows], self._sink_scale[layer, slot]))
        for keys, written in stored:
            if now == 0:
                written.copy_(keys)
            elif turn.frames == 0:
                keys.copy_(written)
        if turn.frames:
            self._turn_from(layer, slot, turn, slice(0, rows))

    def _turn_from(self, layer: int, slot: int, turn: Turn, rows: slice) -> None:
        turning = slice(0, 2 * self._time_pairs)
        whole = self._read(layer, slot, rows, self._sink, self._sink_scale)
        turned = fused.rope(whole[None, ..., turning], turn.cos, turn.sin)[0]
        if self._packed:
            whole[..., turning] = turned
            self._write((self.k, self._k_scale), layer, slot, rows, pack(whole))
        else:
            self.k[layer, slot, rows, :, turning] = self._stored(turned)[0]

    def _spans(self, places: Sequence[int]) -> list["Span"]:
        """The rows of latent frames at these rising places, neighbours joined."""
        spans: list[Span] = []
        tokens = self.tokens_per_frame
        for place in places:
            if spans and spans[-1].stop == place * tokens:
                spans[-1] = spans[-1]._replace(stop=(place + 1) * tokens)
            else:
                spans.append(Span(place * tokens, (place + 1) * tokens))
        return spans

    def _runs(self, position: int, indexes: Sequence[int]) -> list[Run]:
        """Where those latent frames of the chunk from `position` go, neighbours joined."""
        runs: list[Run] = []
        tokens = self.tokens_per_frame
        for index in indexes:
            row = self._frame_row(position + index) * tokens
            if runs and runs[-1].row + runs[-1].count == row and runs[-1].source + runs[-1].count == index * tokens:
                runs[-1] = runs[-1]._replace(count=runs[-1].count + tokens)
            else:
                runs.append(Run(row, index * tokens, tokens))
        return runs

    def _frame_row(self, frame: int) -> int:
        """The place, in latent frames, of the stream's latent frame `frame`."""
        sink, ring = self.sink_frames, self.window_frames - self.sink_frames
        return frame if frame < sink else sink + (frame - sink) % ring


class Span(NamedTuple):
    """The rows from `start` up to `stop`."""

    start: int
    stop: int


class SlotView(NamedTuple):
    """One slot's part of a view.

    `seen` are the rows that the chunk attends to, its own included; `turn` is where its sink stands.
    """

    slot: int
    position: int
    seen: tuple[Span, ...]
    runs: tuple[Run, ...]
    turn: Turn


@dataclass(frozen=True, eq=False)
class CacheView:
    """A Memory (see pipeline.transformer) of one chunk in each row; valid until newer chunks take its rows."""

    cache: KVCache
    slots: tuple[SlotView, ...]
    rope: tuple[Tensor, Tensor]

    def row(self, index: int) -> "CacheView":
        """The view of that row alone."""
        cos, sin = self.rope
        return CacheView(self.cache, self.slots[index : index + 1], (cos[index : index + 1], sin[index : index + 1]))

    def silent(self) -> "CacheView":
        """The same sight, and nothing is written."""
        return CacheView(self.cache, tuple(slot._replace(runs=()) for slot in self.slots), self.rope)

    @staticmethod
    def joined(views: "Sequence[CacheView]") -> "CacheView":
        """One view of all rows; a slot may appear more than once, its earlier chunk first."""
        cosines, sines = zip(*(view.rope for view in views), strict=True)
        slots = tuple(slot for view in views for slot in view.slots)
        return CacheView(views[0].cache, slots, (torch.cat(cosines), torch.cat(sines)))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write the chunk's keys and values, then attend to exactly what each slot sees.

        q, k, v: (slots, L, H, D), RMSNorm and RoPE applied.
        """
        if len({slot.slot for slot in self.slots}) < len(self.slots):  # what a slot's earlier chunk sees comes first
            return torch.cat([self._attend(layer, [row], q, k, v) for row in range(len(self.slots))])
        return self._attend(layer, range(len(self.slots)), q, k, v)

    def _attend(self, layer: int, rows: Sequence[int], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [self.slots[row] for row in rows]
        for row, (slot, _, _, runs, turn) in zip(rows, parts, strict=True):
            # Here and not in view(): a chunk whose context pass is still owed sees the sink where its own steps saw it.
            self.cache.turn_sink(layer, slot, turn)
            for place, source, count in runs:
                part = slice(source, source + count)
                self.cache.write(layer, slot, slice(place, place + count), k[row, part], v[row, part])
        slots, seen = [part.slot for part in parts], [part.seen for part in parts]
        return self.cache.attend(layer, slots, seen, q[rows[0] : rows[-1] + 1])


def _side_by_side(slots: Sequence[int], seen: Sequence[Sequence[Span]]) -> tuple[slice, slice] | None:
    """The slots and the rows of a cache, where slots are neighbours and all see the same one run of rows."""
    first = slots[0]
    if list(slots) != list(range(first, first + len(slots))) or len(seen[0]) != 1 or len(set(map(tuple, seen))) > 1:
        return None
    return slice(first, first + len(slots)), slice(*seen[0][0])


def _gathered(rows: Tensor, seen: Sequence[Span]) -> Tensor:
    """All of a slot's rows (R, H, D) with those that are seen first; themselves where those are."""
    if len(seen) == 1 and seen[0].start == 0:
        return rows
    numbers, rest = rows.view(torch.uint8), len(rows) - sum(stop - start for start, stop in seen)
    return torch.cat([*(numbers[start:stop] for start, stop in seen), numbers[:rest]]).view(FP8)
