"""Sessions to plain data and back: the part of Engine that makes a slot of a session that was live before.

It has a file of its own for its size, not an interface: it works on the engine's own parts. T latent frames in a chunk.
"""

import contextlib
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pipeline.batch import Owed, joined
from pipeline.chunk import Control, Ended, Session
from pipeline.device import to_device
from pipeline.history import Made, by_chunk, plan_rebuild
from pipeline.presets import Preset
from pipeline.slots import Slot
from pipeline.transformer import TextTerms

if TYPE_CHECKING:
    from pipeline.engine import Engine

CONTEXT_PASS = -1
"""The index of the clean timestep among the time embeddings, which hold it last."""
HISTORY_BYTES = 64 * 2**20
"""Clean latents kept of a session; never less than a rebuild of its cache and its decoder takes."""


class Revival:
    """What Engine.snapshot, resume and rewind do."""

    def __init__(self, engine: "Engine"):
        self._engine, self._preset, self._sight = engine, engine.preset, engine._sight

    def snapshot(self, slot: Slot, chunks: int | None) -> Session:
        """See Engine.snapshot."""
        first, newest = slot.history.latents()
        if chunks is not None:
            newest = newest[-max(chunks, slot.chunk - self._oldest_needed(slot.chunk)) :]
        data = Session(
            preset=self._preset.name,
            spec=slot.spec,
            chunk=slot.chunk,
            frame=slot.frame,
            events=tuple(slot.history.events),
            first=self._stacked(first),
            latents=self._stacked(newest),
            held=slot.held,
            waiting=slot.waiting,
        )
        if not np.isfinite(data.latents).all():
            raise ValueError(
                f"session {slot.spec.session} has broken down (its latents are not finite); it cannot be kept"
            )
        return data

    def revive(self, index: int, data: Session, windows: int | None) -> Slot:
        """A slot in which the session goes on; see Engine.resume."""
        slot = self._engine._make_slot(index, data.spec)
        parallel = self._engine.schedule == "parallel"
        with self._engine._cores.kept_to() if parallel else contextlib.nullcontext():
            if data.oldest > self._oldest_needed(data.chunk):
                self._replay(slot, data)
            else:
                self._recall(slot, data)
                self._restore_cache(slot, data, windows)
                self._restore_decoder(slot)
        slot.chunk, slot.frame = data.chunk, self._preset.frames_until(data.chunk)
        slot.held, slot.waiting = data.held, data.waiting
        return slot

    def _replay(self, slot: Slot, data: Session) -> None:
        """Make all chunks once more, and show none."""
        for chunk, event in by_chunk(data.events, data.chunk):
            control = Control(keys=event.keys, prompt=event.prompt if event.chunk == chunk else None)
            self._engine._obey(slot, control, event.rewrites)
            (pending,) = self._engine._make_chunks([slot])
            if isinstance(made := pending.result(), Ended):
                raise ValueError(made.reason)

    def _recall(self, slot: Slot, data: Session) -> None:
        """The walk from its beginning, and the latents that are kept."""
        history = slot.history
        for chunk, event in by_chunk(data.events, data.chunk):
            slot.steering.advance(event.keys)
            if chunk == data.oldest:
                history.skip(chunk)
            if chunk >= data.oldest or chunk < len(data.first):
                latents = data.latents[chunk - data.oldest] if chunk >= data.oldest else data.first[chunk]
                history.keep(Made(to_device(torch.tensor(latents), self._engine.device), slot.steering.walked))
        history.events = list(data.events)

    def _restore_cache(self, slot: Slot, data: Session, windows: int | None) -> None:
        # A layer's keys come from what the layer before saw, so each layer but the first looks a window further back.
        depth = self._sight.span * (self._preset.transformer.layers - 1 if windows is None else windows)
        plan = plan_rebuild(data.events, data.chunk, self._sight, data.oldest, depth, self._engine.settles)
        texts = _Texts(self._engine, slot.prompt, data)
        for one in plan.passes:
            latents = slot.history.made(one.chunk).latents[None]
            batch = self._engine._past(slot, one.chunk, texts.of(one.prompt), one.oldest)
            if one.alone:
                self._engine._pass(batch, latents, [CONTEXT_PASS])
            else:  # two rows as in step(), for the bits depend on the shape
                self._engine._pass(joined([batch, batch.silent()]), torch.cat((latents, latents)), [CONTEXT_PASS] * 2)
        if plan.owed is not None:
            last = data.chunk - 1
            batch = self._engine._past(slot, last, texts.of(plan.owed.prompt), plan.owed.oldest)
            slot.owed = Owed(batch, slot.history.made(last).latents[None])
        slot.stale = plan.stale
        self._engine._set_prompt(slot, texts.prompts[-1])
        self._engine._cache.advance([slot.index], data.chunk * self._preset.chunk)

    def _restore_decoder(self, slot: Slot) -> None:
        count = slot.history.count
        made = [slot.history.made(chunk).latents for chunk in range(max(0, count - self._decoder_chunks), count)]
        with self._engine._on_decode_stream(*made):
            for part in itertools.chain.from_iterable(latents.split(1, dim=1) for latents in made):  # as in a chunk
                self._engine._decoders[slot.index].decode(part)

    @property
    def _decoder_chunks(self) -> int:
        """How many chunks a decoder's state comes from; one more, because the first after a reset is cut otherwise."""
        return math.ceil(self._engine._decoders[0].reach / self._preset.chunk) + 1

    def _oldest_needed(self, chunk: int) -> int:
        """The first chunk, beside the sink's, whose latents are needed to go on with `chunk`."""
        return max(0, min(self._sight.oldest(chunk), chunk - self._decoder_chunks))

    @property
    def needed_chunks(self) -> int:
        """Of how many of a session's newest chunks the latents are needed to go on with it at once."""
        return max(self._sight.span + 1, self._decoder_chunks)

    @property
    def kept_chunks(self) -> int:
        """Of how many of a session's newest chunks the latents are kept."""
        return max(self.needed_chunks + 1, chunks_in_history(self._preset))

    def _stacked(self, latents: Sequence[Tensor]) -> np.ndarray:
        return torch.stack(latents).cpu().numpy() if latents else np.empty((0, *self._preset.latent_shape), np.float32)

    def check(self, data: Session) -> None:
        """Raise ValueError unless this engine can go on with `data`."""
        if data.preset != self._preset.name:
            raise ValueError(f"the session is of the preset {data.preset}; this engine runs {self._preset.name}")
        if data.latents.shape[1:] != self._preset.latent_shape:
            raise ValueError(
                f"its chunks are {data.latents.shape[1:]}; those of {data.preset} {self._preset.latent_shape}"
            )
        if len(data.first) != min(data.chunk, self._sight.sink_chunks):
            raise ValueError(f"it has {len(data.first)} first chunks; {self._sight.sink_chunks} are in the sink")


def chunks_in_history(preset: Preset) -> int:
    """The latents of so many chunks fit into what a live session's may take."""
    return HISTORY_BYTES // (4 * math.prod(preset.latent_shape))


class _Texts:
    """A session's prompts, each on top of the one before, embedded as they are asked for: one at a time is large."""

    def __init__(self, engine: "Engine", first: str, data: Session):
        """`first` is the prompt that the session began with."""
        self._engine = engine
        self.prompts = [first]
        for event in data.events:
            if event.prompt is not None:
                self.prompts.append(engine._text.merge(self.prompts[-1], event.prompt))
        self._latest: tuple[int, list[TextTerms]] | None = None

    def of(self, number: int) -> list[TextTerms]:
        if self._latest is None or self._latest[0] != number:
            self._latest = number, self._engine._embed_text(self._engine._text.encode(self.prompts[number]).rows)
        return self._latest[1]
