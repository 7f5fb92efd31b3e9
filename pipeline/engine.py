"""The engine: one model, a few slots, a chunk at a time.

B slots in the step, C latent channels, T latent frames in a chunk, h w latent height and width,
N video frames in a chunk, H W frame height and width.
"""

import contextlib
import functools
import io
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.profiler import record_function

from kernels.attention import Choice
from pipeline.batch import Batch, Owed, joined, joined_text, joined_times
from pipeline.chunk import NO_FRAMES, Chunk, Control, Ended, Session, SessionSpec, World
from pipeline.conditioning import ImageConditioning, read_image
from pipeline.context import GLOBAL_CONTEXT, choose_context
from pipeline.cores import Shares, available_cores
from pipeline.device import choose_device, to_device
from pipeline.graphs import WARM, Passes
from pipeline.history import History, Made, Sight, Stale, stale_after
from pipeline.kv_cache import KVCache
from pipeline.load import Parts, load_parts
from pipeline.pending import Frames, PendingChunk
from pipeline.picture import read_file
from pipeline.presets import PROMPT_CHANGES, Preset, at_precision, find_preset
from pipeline.revival import CONTEXT_PASS, Revival
from pipeline.sampler import CONTEXT, denoise_chunk, noise
from pipeline.slots import Slot, Slots
from pipeline.steering import Steering, Walked
from pipeline.stopwatch import Stopwatch
from pipeline.stored import FP8_ATTENTION, Stored, check_attention, stored_as
from pipeline.transformer import CameraTerms, TextTerms
from pipeline.vae_precision import at_vae_precision

SCHEDULES = ("auto", "batch", "turns", "parallel")
CONTEXT_PASSES = ("exact", "reuse")
OVERLAPS = ("yes", "first", "no")
WARM_PROMPT = "a meadow"
TIMED_CHUNKS, PATIENCE_SECONDS = 5, 4.0
"""Of a trial's steps; where all are too slow for the frame rate it goes on for so long, as another program may pass."""
REHEARSED_CHUNKS = 3
CROWDED = 0.7
"""The share of a chunk's playing time from which on a machine has little rest."""


class Engine:
    """Makes the streams of all live sessions; constructed once, for many sessions. One thread, blocking.

    `schedule` is how several live slots share a step: as one "batch", in "turns", on a CPU in "parallel", each
    on its own cores, or "auto", whichever prewarm() finds to answer soonest. Turns and parallel give each slot
    the very bits that it has alone. `context` bounds the latent frames kept by a preset without a window.
    `image` is an encoded picture for the sessions that bring none. `prompt_change` says what a new prompt does to what
    a session remembers: "rebuild" writes its past anew under it, "swap" leaves it; None is the preset's own choice.
    `fuse` is whether the transformer runs fused and compiled (see Transformer.fuse), None for on a GPU. `overlap` is
    whether a GPU decodes a chunk beside what comes after it, on a stream of its own: "yes", "no", or "first", which has
    the decoder's kernels go before others that wait; results are the same. `attention` is a backend of
    kernels.attention, or "auto": the quickest for each shape, as prewarm() times them. Those differ by rounding, and by
    which was quicker; a name gives the same bits in every process. "fp8" is self-attention in FP8, with keys and values
    in float8 whatever `cache` says (kernels.fp8_attention): quicker on a Hopper GPU, and a little off; the attention to
    the text is that of "auto". `context_pass` is where a chunk's keys and values
    come from: "exact", a pass over its clean latents, or "reuse", its last denoising pass, which saves a pass a chunk
    and changes the world (`python -m benchmarks.context_pass` measures how far). It is the engine's, not the session's:
    what is written anew, after a new prompt or to resume, takes clean passes either way. `graphs` has a GPU run whole
    passes as CUDA graphs where windows are full, see pipeline.graphs; results are the same. `cache` is how keys and
    values lie: "plain", or "fp8", half of bfloat16's memory and a little off.
    """

    def __init__(
        self,
        preset: Preset,
        parts: Parts,
        *,
        slots: int = 2,
        device: torch.device | str = "cpu",
        schedule: str = "auto",
        context: int = GLOBAL_CONTEXT,
        attention: str = "auto",
        image: bytes | None = None,
        prompt_change: str | None = None,
        fuse: bool | None = None,
        overlap: str = "yes",
        context_pass: str = "exact",
        graphs: bool = False,
        cache: str = "plain",
    ):
        """Raises ValueError for fewer than one slot, a name that does not exist, attention that cannot run here, or a
        context without room for a chunk."""
        self._device = torch.device(device)
        _check_options(slots, schedule, self._device, prompt_change, context_pass, graphs)
        check_attention(attention, self._device)
        self.preset = preset
        self.world: World | None = None
        self._model, self._vae, self._text, self._recognise = parts
        self._prepare_model(attention, fuse, graphs)
        self._schedule, self._reuse = schedule, context_pass == "reuse"
        self._cores = Shares(slots)
        self._image = image
        stored = stored_as(cache, attention, self._model.dtype)
        self._cache = self._make_cache(slots, preset.window or context, stored)
        self._slots = Slots(slots, self._cache.reset)
        self._decoders = [self._vae.decoder() for _ in range(slots)]
        self._sight = Sight(preset.chunk, self._cache.window_frames, preset.sink)
        self._revival = Revival(self)
        # At most so many chunks of a past are written anew before each chunk for a new prompt, None for all at once.
        self._pace = None if (prompt_change or preset.prompt_change) == "rebuild" else 0
        self._decode_stream = _decode_stream(self._device, overlap)
        self._denoised: torch.cuda.Event | None = None

    def _prepare_model(self, attention: str, fuse: bool | None, graphs: bool) -> None:
        self.attention_in_fp8 = attention == FP8_ATTENTION
        self.attention = self._model.backend = Choice("auto" if self.attention_in_fp8 else attention)
        if fuse or (fuse is None and self._device.type == "cuda"):
            self._model.fuse()
        self._run = Passes(self._model) if graphs else self._model
        # The timesteps are a preset's own and few: their embeddings are made once.
        steps = (*self.preset.steps, CONTEXT)
        with torch.inference_mode():
            self._time = [self._model.embed_time(self._tensor([step.timestep])) for step in steps]

    def _make_cache(self, slots: int, window_frames: int, stored: Stored) -> KVCache:
        config = self.preset.transformer
        return KVCache(
            config.layers,
            slots,
            window_frames,
            self.preset.sink,
            math.prod(self.preset.token_grid),
            config.heads,
            config.head_width,
            self._model.dtype,
            self._device,
            self.attention,
            packed=stored.packed,
            value_scales=self._model.value_scales(self._time) if self.attention_in_fp8 else None,
        )

    # Sessions

    def open(self, spec: SessionSpec) -> None:
        """Give a session a slot; its first chunk comes with the next step.

        Raises WorldFull when no slot is free, ValueError when the preset cannot do what `spec` asks.
        """
        with torch.inference_mode():
            self._slots.admit(spec, lambda index: self._make_slot(index, spec))

    def control(self, session: str, control: Control) -> None:
        """Keep `control` for the session's next chunk; it replaces what still waits. Gone sessions are passed over."""
        if slot := self._slots.find(session):
            slot.receive(control)

    def close(self, session: str) -> None:
        """Free the session's slot; one that has gone already is no error."""
        if slot := self._slots.find(session):
            self._slots.free(slot)

    def clear_text_cache(self) -> None:
        self._text.clear_text_cache()

    # Sessions as plain data

    @torch.inference_mode()
    def snapshot(self, session: str, chunks: int | None = None) -> Session:
        """The live session as plain data; between two steps. Waits for the device.

        `chunks` bounds the latents that go along to the newest so many, or what a resume needs if that is more.
        Raises ValueError when the session is not live or has latents that are not finite.
        """
        return self._revival.snapshot(self._live(session), chunks)

    def resume(self, data: Session, name: str | None = None, windows: int | None = None) -> None:
        """Give a session from plain data a slot, under `name` or its own; its next chunk is the one that was next.

        The cache comes from context passes over the kept latents: those that the next chunk sees, and `windows` windows
        before them, None for all that matter; where fewer are kept than it sees, every chunk is made once more.
        Raises WorldFull when no slot is free, ValueError when the data are not of this preset or the name is taken.
        """
        self._revival.check(data)
        spec = replace(data.spec, session=name or data.spec.session)
        with torch.inference_mode():
            self._slots.admit(spec, lambda index: self._revival.revive(index, replace(data, spec=spec), windows))

    def rewind(self, session: str, chunk: int, windows: int | None = None) -> None:
        """Take a live session back to where it had made `chunk` chunks; `windows` as in resume().

        What is held stays as it was there until a control comes. Raises ValueError for a session that is not live or a
        chunk that it has not made.
        """
        slot = self._live(session)
        data = self.snapshot(session).rewound(chunk, self.preset.frames_until(chunk))
        with torch.inference_mode():
            self._slots.renew(slot, lambda index: self._revival.revive(index, data, windows))

    # The loop

    def step(self, sessions: Iterable[str] | None = None) -> list[Chunk | Ended]:
        """Make the next chunk of each of `sessions`, by default of all that are live, and wait for them.

        What came for them since their last chunk takes effect now. A session that cannot go on is
        freed and answered with Ended; the others' chunks are as they would have been without it.
        """
        places = {slot.spec.session: place for place, slot in enumerate(self._slots)}
        begun = list(self.begin(sessions))
        begun.sort(key=lambda each: -1 if isinstance(each, Ended) else places[each.session])
        results = [each if isinstance(each, Ended) else each.result() for each in begun]
        for result in results:
            if isinstance(result, Ended):
                self.close(result.session)
        return results

    @torch.inference_mode()
    def begin(self, sessions: Iterable[str] | None = None) -> Iterable[PendingChunk | Ended]:
        """What step() does without waiting for a GPU; whose result() is Ended, the caller closes.

        In parallel each comes as soon as it is made, whichever is first; all must be read before anything else is asked
        of the engine.
        """
        wanted = None if sessions is None else set(sessions)
        due = [slot for slot in self._slots if wanted is None or slot.spec.session in wanted]
        alone = self._cores.kept_to() if self.schedule == "parallel" else contextlib.nullcontext()
        with record_function("chunkcast.begin"), alone:
            ready, ended = self._begin(due)
            if self.schedule == "batch":
                return ended + self._make_chunks(ready)
            if self.schedule == "turns":
                return ended + [chunk for slot in ready for chunk in self._make_chunks([slot])]
        return itertools.chain(ended, self._make_in_parallel(ready))

    def _make_in_parallel(self, slots: Sequence[Slot]) -> Iterator[PendingChunk]:
        with self._cores.kept_to():
            yield from itertools.chain.from_iterable(self._cores.each(self._make_chunks, [[slot] for slot in slots]))

    def wait(self) -> None:
        """Until a GPU has little left to do of what begin() queued: the time to begin what comes next.

        Earlier, and controls would be read long before their chunk; later, and the GPU would stand still. The context
        pass and the decoder cover what the host needs to queue a chunk.
        """
        if self._denoised is not None:
            self._denoised.synchronize()

    @torch.inference_mode()
    def settle(self, slots: Sequence[Slot] | None = None) -> None:
        """Run the context passes that these slots, or None for all, still owe: each by itself, or where slots run as a
        batch as one.

        step() hands frames out before their keys and values are written. Where launches cost most, as for a small model
        on a CPU, the next chunk's first pass takes the owed chunk along as one more row; elsewhere this runs at once.
        """
        with record_function("chunkcast.context"):
            owing = [slot for slot in (self._slots if slots is None else slots) if slot.owed is not None]
            for together in [owing] if self.schedule == "batch" and owing else [[slot] for slot in owing]:
                owed = [slot.owed for slot in together]
                batch, latents = joined([each.batch for each in owed]), torch.cat([each.latents for each in owed])
                self._pass(batch, latents, [CONTEXT_PASS] * len(owed))
                for slot in together:
                    slot.owed = None

    @property
    def schedule(self) -> str:
        """ "batch", "turns" or "parallel". Until prewarm() has measured, "auto" means turns."""
        return "turns" if self._schedule == "auto" else self._schedule

    def _begin(self, due: Sequence[Slot]) -> tuple[list[Slot], list[PendingChunk | Ended]]:
        """Apply what arrived to each slot; a slot that cannot take it ends, alone."""
        ready, ended = [], []
        for slot in due:
            try:
                self._obey(slot, slot.take(), self._pace)
                ready.append(slot)
            except ValueError as error:
                ended.append(self._end(slot, str(error)))
        return ready, ended

    def _obey(self, slot: Slot, control: Control, pace: int | None) -> None:
        """`pace`: at most so many chunks of the past are written anew before a chunk; None for all of them."""
        rewrites = 0
        if control.prompt is not None:
            self._set_prompt(slot, self._text.merge(slot.prompt, control.prompt))
            rewrites = self._make_stale(slot, pace)
        slot.history.obey(slot.chunk, control, rewrites)
        slot.steering.advance(control.keys)

    def _make_stale(self, slot: Slot, pace: int | None) -> int:
        """After a new prompt: how many chunks of the past are written anew for it before each chunk, 0 for none."""
        slot.stale = Stale()
        if pace == 0 or slot.chunk == 0:
            return 0
        chunks = stale_after(self._sight, slot.chunk, owed=slot.owed is not None)
        if slot.owed is not None:
            batch = self._past(slot, slot.chunk - 1, slot.text, self._sight.oldest(slot.chunk))
            slot.owed = slot.owed._replace(batch=batch)
        slot.stale = Stale(chunks, max(1, len(chunks) if pace is None else min(pace, len(chunks))))
        return slot.stale.pace

    @torch.inference_mode()  # once more: it is a thread's own, and slots may run in theirs
    def _make_chunks(self, slots: Sequence[Slot]) -> list[PendingChunk]:
        """Denoise, hand to the decoder, emit; the context pass is owed."""
        if not slots:
            return []
        watch = Stopwatch(self._device)
        with record_function("chunkcast.prepare"):
            for slot in slots:
                self._rewrite(slot)
            batch = self._gather(slots)
        watch.mark("prepare")
        with record_function("chunkcast.denoise"):
            latents = self._denoise(slots, batch)
        watch.mark("denoise")
        with record_function("chunkcast.decode"):
            frames = self._decode(slots, latents)
        watch.mark("decode", self._decode_stream)
        self._owe(slots, batch, latents)
        if self._decode_stream is not None:
            self._denoised = torch.cuda.Event()
            self._denoised.record()
            self.settle(slots)  # only queued on the GPU, where it runs while the frames are decoded
        return [self._emit(slot, each, watch) for slot, each in zip(slots, frames, strict=True)]

    def _gather(self, slots: Sequence[Slot]) -> Batch:
        memory = self._cache.view([slot.index for slot in slots], self.preset.chunk, *self.preset.token_grid)
        text = joined_text([slot.text for slot in slots])
        camera = self._camera([(slot.steering, slot.steering.walked) for slot in slots])
        return Batch(memory, text, camera, self._condition(slots))

    def _owe(self, slots: Sequence[Slot], batch: Batch, latents: Tensor) -> None:
        for row, slot in enumerate(slots):
            # What a picture begins with was put in place of what was denoised, so no pass has seen it yet.
            if not self._reuse or (slot.first is not None and slot.chunk == 0):
                slot.owed = Owed(batch.row(row), latents[row : row + 1])
            slot.history.keep(Made(latents[row], slot.steering.walked))
        self._cache.advance([slot.index for slot in slots], self.preset.chunk)

    def _camera(self, walks: Sequence[tuple[Steering, Walked]]) -> list[CameraTerms] | None:
        if self.preset.control == "none":
            return None
        plucker = torch.stack([steering.plucker(walked) for steering, walked in walks])
        pose = None
        if self.preset.transformer.world_map is not None:
            pose = to_device(torch.stack([walked.pose for _, walked in walks]), self._device)
        return self._model.embed_camera(to_device(plucker, self._device), pose)

    def _condition(self, slots: Sequence[Slot]) -> Tensor | None:
        if self.preset.image != "channels":
            return None
        return torch.stack([slot.image.frames(slot.chunk * self.preset.chunk, self.preset.chunk) for slot in slots])

    def _denoise(self, slots: Sequence[Slot], batch: Batch) -> Tensor:
        """(B, C, T, h, w), clean."""
        latents = denoise_chunk(
            self.preset.steps,
            lambda noisy, step: self._predict(slots, batch, noisy, step),
            lambda step: self._noise(slots, step),
            self.preset.prediction,
        )
        for row, slot in enumerate(slots):
            if slot.first is not None and slot.chunk == 0:
                latents[row] = slot.first
        return latents

    def _predict(self, slots: Sequence[Slot], batch: Batch, noisy: Tensor, step: int) -> Tensor:
        """The model's output; the first pass also writes the keys and values of the chunks before, if they are owed."""
        owed = [slot.owed for slot in slots if slot.owed is not None]
        for slot in slots:
            slot.owed = None
        rows = joined([*(chunk.batch for chunk in owed), batch])
        latents = torch.cat([*(chunk.latents for chunk in owed), noisy])
        return self._pass(rows, latents, [CONTEXT_PASS] * len(owed) + [step] * len(noisy))[len(owed) :]

    def _pass(self, batch: Batch, latents: Tensor, steps: Sequence[int]) -> Tensor:
        """One pass through the transformer, each row at its own one of the preset's steps."""
        inputs = latents if batch.condition is None else torch.cat((latents, batch.condition), dim=1)
        time = joined_times([self._time[step] for step in steps])
        return self._run(inputs, time, batch.text, batch.camera, batch.memory).float()

    def _noise(self, slots: Sequence[Slot], step: int) -> Tensor:
        shape = self.preset.latent_shape
        return to_device(torch.stack([noise(s.spec.seed, s.chunk, step, shape) for s in slots]), self._device)

    def _decode(self, slots: Sequence[Slot], latents: Tensor) -> list[list[Frames]]:
        """Each slot's pictures, a latent frame at a time: the first are out before the last are begun."""
        with self._on_decode_stream(latents):
            return [self._decode_slot(slot, latent) for slot, latent in zip(slots, latents, strict=True)]

    @contextlib.contextmanager
    def _on_decode_stream(self, *used: Tensor) -> Iterator[None]:
        """Within it a GPU's work is the decoder's: behind all that was queued, `used` among it, and beside what comes.

        All that touches a decoder's state goes there, or a session would begin in a state that is still in use.
        """
        if self._decode_stream is None:
            yield
            return
        self._decode_stream.wait_stream(torch.cuda.current_stream(self._device))
        for tensor in used:
            tensor.record_stream(self._decode_stream)
        with torch.cuda.stream(self._decode_stream):
            yield

    def _decode_slot(self, slot: Slot, latent: Tensor) -> list[Frames]:
        decoder, finite = self._decoders[slot.index], torch.isfinite(latent).all()
        return [self._emit_part(decoder.decode(part), finite) for part in latent.split(1, dim=1)]

    def _emit_part(self, video: Tensor, finite: Tensor) -> Frames:
        """video: (3, N, H, W) in [-1, 1]; `finite` is of the latents."""
        if self._vae.dtype == torch.float16:  # which large numbers do not fit into
            finite = finite & torch.isfinite(video).all()
        # To the nearest whole number by cutting off: on a CPU every pass over the pictures counts.
        pixels = video.float().mul(127.5).add_(128).to(torch.uint8).movedim(0, -1).contiguous()
        if self._decode_stream is None:
            return Frames(pixels, finite, None)
        copies = [
            torch.empty_like(t, device="cpu", pin_memory=True).copy_(t, non_blocking=True) for t in (pixels, finite)
        ]
        arrived = torch.cuda.Event()
        arrived.record()
        return Frames(*copies, arrived)

    def _emit(self, slot: Slot, frames: list[Frames], watch: Stopwatch) -> PendingChunk:
        chunk = Chunk(
            session=slot.spec.session,
            index=slot.chunk,
            begun=watch.begun,
            first_frame=slot.frame,
            frames=NO_FRAMES,
            sequence=slot.held.sequence,
            scene=slot.encoded.scene,
            unknown_words=slot.encoded.unknown_words,
            guessed_words=slot.encoded.guessed_words,
        )
        pending = PendingChunk(chunk, frames, watch.seconds)
        slot.chunk += 1
        slot.frame += pending.frames
        return pending

    def _end(self, slot: Slot, reason: str) -> Ended:
        self.close(slot.spec.session)
        return Ended(slot.spec.session, reason)

    # The past once more

    def _rewrite(self, slot: Slot) -> None:
        """Write anew what is due of the past that a new prompt made stale."""
        due, slot.stale = slot.stale.due(self._sight, slot.chunk)
        for chunk in due:
            batch = self._past(slot, chunk, slot.text, self._sight.oldest(slot.chunk))
            self._pass(batch, slot.history.made(chunk).latents[None], [CONTEXT_PASS])

    def _past(self, slot: Slot, chunk: int, text: list[TextTerms], oldest: int) -> Batch:
        """What a pass over a chunk of the past needs; it sees the sink and the chunks from `oldest`."""
        frames = self.preset.chunk
        memory = self._cache.past_view(slot.index, chunk * frames, frames, oldest * frames, *self.preset.token_grid)
        camera = self._camera([(slot.steering, slot.history.made(chunk).walked)])
        return Batch(
            memory,
            text,
            camera,
            None if slot.image is None else slot.image.frames(chunk * frames, frames)[None],
        )

    def _live(self, session: str) -> Slot:
        slot = self._slots.find(session)
        if slot is None:
            raise ValueError(f"there is no live session {session}")
        return slot

    # What a session brings

    def _make_slot(self, index: int, spec: SessionSpec) -> Slot:
        with self._on_decode_stream():
            self._decoders[index].reset()
        self._cache.reset(index)
        spec = replace(spec, image=spec.image or self._image)
        history = History(self._sight.sink_chunks, self._revival.kept_chunks)
        slot = Slot(index, spec, Steering(self.preset, spec.seed, spec.script), history)
        self._set_image(slot, spec.image)
        shown = self._shown(slot)
        if not (spec.prompt or shown):
            raise ValueError(
                f"the preset {self.preset.name} does not know what a picture shows: say in a few words what to see"
            )
        self._set_prompt(slot, self._text.merge(shown, spec.prompt))
        return slot

    def _shown(self, slot: Slot) -> str:
        """What the picture that the session begins with shows: what the prompt does not name is as there."""
        if slot.first is None or self._recognise is None:
            return ""
        return self._recognise(slot.first[:, 0])

    def _set_prompt(self, slot: Slot, prompt: str) -> None:
        slot.prompt = prompt
        with record_function("chunkcast.text"):
            slot.encoded = self._text.encode(prompt)
        slot.text = self._embed_text(slot.encoded.rows)

    def _embed_text(self, rows: Tensor) -> list[TextTerms]:
        return self._model.embed_text(to_device(rows.unsqueeze(0), self._device))

    def _set_image(self, slot: Slot, data: bytes | None) -> None:
        use = self.preset.image
        if data is None and use == "channels":
            raise ValueError(f"the preset {self.preset.name} continues a picture: give it one")
        if data is None:
            return
        if use == "none":
            raise ValueError(f"the preset {self.preset.name} takes no picture, only a prompt")
        image = read_image(data, self.preset.height, self.preset.width).to(self._device, self._vae.dtype)
        encoder = self._vae.encoder()
        if use == "channels":
            slot.image = ImageConditioning(encoder, image)
        else:
            slot.first = encoder.encode(image.unsqueeze(1).repeat(1, self.preset.first_frames, 1, 1)).float()

    @property
    def device(self) -> torch.device:
        return self._device

    def _tensor(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)

    # Readiness

    def prewarm(
        self, progress: Callable[[int, int], None] = lambda done, total: None, before: World | None = None
    ) -> World:
        """Run every shape once, measure a chunk, choose the schedule and say how many sessions can be live.

        `progress(done, total)` counts what is timed. `before` is what an engine with the same options found on this
        machine: it holds, and nothing is timed. Sessions made afterwards have the same bits as without it, but for the
        pace at which a new prompt's rebuild goes, which is part of their history, and on a GPU for the attention that
        was found to be the quickest. Raises ValueError where a trial session ends, as with weights that are damaged.
        """
        assert not list(self._slots), "prewarm() comes before the first session"
        with self.attention.learning():
            self.world = self._described(progress) if before is None else self._once_more(before)
            if isinstance(self._run, Passes):
                with self._trial(self.world.slots) as names:
                    self._record_graphs(names)
        if self._pace != 0:
            self._pace = self._rewrites_a_chunk(self.world.chunk_seconds)
        return self.world

    def _described(self, progress: Callable[[int, int], None]) -> World:
        candidates = self._candidates()
        times = {}
        for done, schedule in enumerate(candidates):
            progress(done, len(candidates))
            times[schedule] = self._measure(schedule)
        self._schedule = _soonest(times, self.preset.chunk_seconds)
        return self._describe(times[self._schedule])

    def _once_more(self, before: World) -> World:
        """Run every shape of the schedule: a GPU's change until windows are full, a CPU only wants its memory."""
        self._schedule = before.schedule
        with self._trial(self._at_once(before.schedule)) as names:
            for _ in range(1 if self._device.type == "cpu" else self.window_chunks):
                self._timed_step(names)
            for live in range(1, len(names)):
                self._timed_step(names[:live])
        return before

    def _record_graphs(self, names: Sequence[str]) -> None:
        """Of each of these sessions by itself and of all as a batch: no viewer is to wait for that."""
        together = [names] if self.schedule == "batch" and len(names) > 1 else []
        for sessions in [*([name] for name in names), *together]:
            for _ in range(self.window_chunks + math.ceil((WARM + 1) / self.passes)):
                self._timed_step(sessions)

    def _candidates(self) -> tuple[str, ...]:
        """The schedules to choose from. Where slots can have cores of their own there is no choice.

        On an idle machine turns on all cores come near, but their threads wait for each other: one busy program
        beside them, and both viewers' pictures stand.
        """
        if self._schedule != "auto":
            return (self._schedule,)
        if len(self._slots) == 1:
            return ("turns",)
        return ("parallel",) if self._device.type == "cpu" and available_cores() > 1 else ("turns", "batch")

    def _measure(self, schedule: str) -> list[float]:
        """Seconds of a step with 1, 2, ... sessions and full windows: the quickest, for others can only add to it."""
        count = self._at_once(schedule)
        self._schedule = schedule
        with self._trial(count) as names:
            for _ in range(self.window_chunks):
                self._timed_step(names)
            times = [self._quickest_step(names[:live]) for live in range(1, count + 1)]
        return times if count == len(self._slots) else [times[0] * live for live in range(1, len(self._slots) + 1)]

    def _at_once(self, schedule: str) -> int:
        """How many sessions a step makes at the most."""
        return 1 if schedule == "turns" else len(self._slots)

    @contextlib.contextmanager
    def _trial(self, count: int) -> Iterator[list[str]]:
        """So many sessions, for as long as it lasts."""
        names = [f"prewarm-{number}" for number in range(count)]
        try:
            for seed, name in enumerate(names):
                self.open(SessionSpec(name, WARM_PROMPT, seed, self.warm_image()))
            yield names
        finally:
            for name in names:
                self.close(name)

    def _quickest_step(self, sessions: Sequence[str]) -> float:
        begun, times = time.monotonic(), []
        while len(times) < TIMED_CHUNKS or (
            min(times) > self.preset.chunk_seconds and time.monotonic() - begun < PATIENCE_SECONDS
        ):
            times.append(self._timed_step(sessions))
        return min(times)

    def _timed_step(self, sessions: Sequence[str]) -> float:
        watch = Stopwatch(self._device)
        results = self.step(sessions)
        watch.mark("step")
        for result in results:
            if isinstance(result, Ended):
                raise ValueError(f"no session can be made with these weights; a trial one ended: {result.reason}")
        return watch.seconds()["total"]

    @property
    def passes(self) -> int:
        """Of the transformer, for a chunk."""
        return len(self.preset.steps) + (not self._reuse)

    @property
    def settles(self) -> bool:
        """Whether a chunk's keys and values are there before the next one begins."""
        return self._reuse or self._decode_stream is not None

    @property
    def window_chunks(self) -> int:
        """After so many chunks a session's window is full, and steps cost what they always will."""
        return math.ceil(self._cache.window_frames / self.preset.chunk)

    def warm_image(self) -> bytes | None:
        """A grey picture for a trial session of a preset that cannot begin without one; None where it can."""
        return _grey_png() if self.preset.image == "channels" and self._image is None else None

    def _rewrites_a_chunk(self, times: Sequence[float]) -> int:
        """How many chunks of a past may be written anew before each chunk without breaking the frame rate.

        What a step leaves of a chunk's playing time, with as many live as may be, over an upper bound of a pass; at
        least one, or a new prompt would never be through.
        """
        spare = self.preset.chunk_seconds - times[self.world.slots - 1]
        return max(1, int(spare / (times[0] / self.passes)))

    def _describe(self, times: Sequence[float]) -> World:
        """`times`: seconds of a step with 1, 2, ... live."""
        preset = self.preset
        carried = max([n for n, time in enumerate(times, 1) if time <= preset.chunk_seconds], default=1)
        return World(
            preset=preset.name,
            width=preset.width,
            height=preset.height,
            fps=preset.fps,
            slots=carried,
            chunk_frames=preset.chunk_frames,
            first_chunk_frames=preset.first_chunk_frames,
            chunk_seconds=tuple(times),
            schedule=self.schedule,
            limit=_limit(carried, times, preset.chunk_seconds),
            resume_chunks=self._revival.needed_chunks,
            kept_chunks=self._revival.kept_chunks,
            image=preset.picture_wanted if self._image is None else "optional",
            camera=preset.control != "none",
            names_pictures=self._recognise is not None,
        )


def build(
    preset: str = "tiny",
    weights: str | Path | None = None,
    slots: int = 2,
    device: str = "auto",
    schedule: str = "auto",
    context: int | None = None,
    image: str | Path | None = None,
    prompt_change: str | None = None,
    parts: str | Path | None = None,
    lora: str | Path | None = None,
    precision: str = "bf16",
    fuse: bool | None = None,
    overlap: str = "yes",
    vae_precision: str = "exact",
    attention: str = "auto",
    context_pass: str = "exact",
    graphs: bool = False,
    cache: str = "plain",
) -> Engine:
    """An engine by the names that the command line takes.

    `device` is "auto" (the GPU if there is one), "cpu" or "cuda"; `weights`, `parts` and `lora` are those of
    pipeline.load.load_parts. `context` is for presets without a window, see pipeline.context. `precision` is that of
    the transformer's linears, see pipeline.presets.at_precision, `vae_precision` that of pipeline.vae_precision;
    `fuse`, `overlap`, `attention`, `context_pass`, `graphs` and `cache` are those of Engine. Raises ValueError, with
    what would be right, for a name that does not exist.
    """
    found = at_precision(find_preset(preset), precision)
    place = choose_device(device)
    _check_options(slots, schedule, place, prompt_change, context_pass, graphs)
    check_attention(attention, place)
    picture = _read(image, found)
    loaded = load_parts(found, weights, place, parts, lora)
    loaded = loaded._replace(vae=at_vae_precision(loaded.vae, vae_precision, found.latent_shape[2:]))
    engine = functools.partial(
        Engine, found, loaded, slots=slots, device=place, image=picture, prompt_change=prompt_change, fuse=fuse,
        overlap=overlap, attention=attention, context_pass=context_pass, graphs=graphs, cache=cache,
    )  # fmt: skip
    stored = stored_as(cache, attention, loaded.transformer.dtype)
    choose = functools.partial(choose_context, found, context, slots, place, stored)
    return _in_context(engine, schedule, choose)


def _read(image: str | Path | None, preset: Preset) -> bytes | None:
    """The file's bytes, which are a picture."""
    if image is None:
        return None
    data = read_file(image)
    read_image(data, preset.height, preset.width)
    return data


def _in_context(
    make: Callable[..., Engine], schedule: str, choose: Callable[[Callable[[int], None]], int | None]
) -> Engine:
    """An engine with the context that `choose` finds; it may try engines that run all their slots at once."""
    largest = "turns" if schedule == "turns" else "batch"

    def rehearse(frames: int) -> None:
        _rehearse(make(schedule=largest, context=frames))

    return make(schedule=schedule, context=choose(rehearse))


def _decode_stream(device: torch.device, overlap: str) -> torch.cuda.Stream | None:
    if overlap not in OVERLAPS:
        raise ValueError(f"no overlap {overlap!r}; it is one of {', '.join(OVERLAPS)}")
    if device.type != "cuda":
        return None
    if overlap == "no":
        return torch.cuda.current_stream(device)
    return torch.cuda.Stream(device, priority=-1 if overlap == "first" else 0)


@torch.inference_mode()
def _rehearse(engine: Engine) -> None:
    """A few chunks in every slot, so that everything that a step needs has been in memory at once; graphs too."""
    with engine._trial(len(engine._slots)) as names:
        for _ in range(REHEARSED_CHUNKS):
            engine.step()
        if isinstance(engine._run, Passes):
            engine._record_graphs(names)


def _check_options(
    slots: int,
    schedule: str,
    device: torch.device,
    prompt_change: str | None,
    context_pass: str,
    graphs: bool,
) -> None:
    if slots < 1:
        raise ValueError(f"slots is {slots}; it must be at least 1")
    if schedule not in SCHEDULES:
        raise ValueError(f"no schedule {schedule!r}; it is one of {', '.join(SCHEDULES)}")
    if prompt_change not in (None, *PROMPT_CHANGES):
        raise ValueError(f"no prompt change {prompt_change!r}; it is {' or '.join(PROMPT_CHANGES)}")
    if context_pass not in CONTEXT_PASSES:
        raise ValueError(f"no context pass {context_pass!r}; it is {' or '.join(CONTEXT_PASSES)}")
    if graphs and device.type != "cuda":
        raise ValueError("graphs are for a GPU; without one leave them out")
    if schedule == "parallel" and device.type == "cuda":
        raise ValueError("the schedule parallel divides the cores of a CPU; on a GPU it is auto, batch or turns")


def _soonest(times: Mapping[str, Sequence[float]], chunk_seconds: float) -> str:
    """The schedule that answers soonest when all are live; `times` as in _describe, by schedule.

    Together all are answered after the step's own time. In turns their clocks slide apart until no slot waits for the
    others (stream/schedule.py); it waits for all of them where that leaves the machine little rest.
    """

    def answer(schedule: str) -> float:
        alone, everyone = times[schedule][0], times[schedule][-1]
        crowded = everyone > CROWDED * chunk_seconds
        return alone if schedule == "turns" and not crowded else everyone

    return min(times, key=answer)


def _limit(carried: int, times: Sequence[float], chunk_seconds: float) -> str:
    if carried == len(times) and times[-1] <= chunk_seconds:
        return ""
    slow = times[min(carried, len(times) - 1)] if carried < len(times) else times[-1]
    live = carried + 1 if carried < len(times) else carried
    return (
        f"this machine needs {slow:.2f} s for a chunk of {chunk_seconds:.2f} s with {live} live, "
        f"so {carried} can be live at once"
    )


def _grey_png() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (16, 16), "grey").save(data, "PNG")
    return data.getvalue()
