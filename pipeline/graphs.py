"""Whole passes through the transformer as CUDA graphs: a pass is then one launch, however many kernels it has.

A graph repeats the same kernels on the same addresses. In the steady state of a window that is what a pass is: the
chunk attends to all rows of its slot's cache, always as many. What differs from one pass to the next is copied into
buffers that stay: latents and time terms before each, and once a chunk the prompt's and the camera's terms, the rotary
embedding, and where in the ring the chunk's keys and values go. Turning the sink, which the host decides, comes before
the graph. Everything else (windows that still fill, the past written anew) runs as it would without.

Results are the same to the last bit: the same kernels see the same numbers. It costs memory: the terms of prompt and
camera once more for each number of slots in a pass, and the activations of a pass, which nothing else can use.

B rows in a pass, one slot each; L tokens in a chunk, H heads, D head width.
"""

import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pipeline.kv_cache import CacheView, KVCache, SlotView, Span
from pipeline.transformer import CameraTerms, TextTerms, TimeTerms, Transformer

WARM = 8
"""Passes of a kind that run without a graph first: what is compiled or chosen by timing must be before a capture."""

Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""From a run on fixed addresses to one that repeats it and gives a result of its own."""


class Passes:
    """Runs a transformer; called like one. One thread, one stream."""

    def __init__(self, model: Transformer, capture: Capture | None = None):
        """`capture` is cuda_graphs() of a pool of its own, if not given."""
        self._model = model
        self._capture = capture or cuda_graphs()
        self._met: Counter[tuple] = Counter()
        self._buffers: dict[tuple, _Buffers] = {}
        self._runs: dict[tuple, Callable[[], Tensor] | None] = {}

    def __call__(
        self,
        latent: Tensor,
        time: TimeTerms,
        text: list[TextTerms],
        camera: list[CameraTerms] | None,
        memory: CacheView,
    ) -> Tensor:
        """See Transformer.forward."""
        kind = (tuple(latent.shape), tuple(slot.slot for slot in memory.slots))
        if not is_steady(memory) or self._is_new(kind) or (kind in self._runs and self._runs[kind] is None):
            return self._model(latent, time, text, camera, memory)
        shape = kind[0]
        if shape not in self._buffers:
            self._buffers[shape] = _Buffers(latent, time, text, camera, memory)
        buffers = self._buffers[shape]
        buffers.load(latent, time, text, camera, memory)
        turn_sinks(memory)
        if kind in self._runs:
            return self._runs[kind]()
        full = FullView(memory.cache, kind[1], buffers.rope, buffers.places)
        return self._capture_after(kind, lambda: self._model(*buffers.inputs, full))

    def _is_new(self, kind: tuple) -> bool:
        self._met[kind] += 1
        return self._met[kind] <= WARM

    def _capture_after(self, kind: tuple, run: Callable[[], Tensor]) -> Tensor:
        """The result of one more run, after which it is captured; a capture itself computes nothing."""
        result = run()
        try:
            self._runs[kind] = self._capture(run)
        except RuntimeError as error:  # a kernel that cannot be captured, no memory: slower, but it runs
            self._runs[kind] = None
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(f"passes run without a CUDA graph: {reason}", RuntimeWarning, stacklevel=2)
        return result


def cuda_graphs() -> Capture:
    """Graphs that share their memory: none is replayed while another runs, and results are copied out."""
    pool = torch.cuda.graph_pool_handle()

    def capture(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # The thread that takes frames may wait for an event meanwhile; by default that would end the capture.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            made = run()

        def replay() -> Tensor:
            graph.replay()
            return made.clone()

        return replay

    return capture


def is_steady(memory: CacheView) -> bool:
    """Whether each row has a slot of its own that writes its whole chunk and sees all rows of its cache."""
    tokens, rows = memory.rope[0].shape[1], memory.cache.k.shape[2]
    whole = all(
        slot.seen == (Span(0, rows),) and sum(run.count for run in slot.runs) == tokens for slot in memory.slots
    )
    return whole and len({slot.slot for slot in memory.slots}) == len(memory.slots)


def turn_sinks(memory: CacheView) -> None:
    """What CacheView.attend does by itself, for all layers: nothing but in a chunk's first pass."""
    for slot in memory.slots:
        for layer in range(len(memory.cache.k)):
            memory.cache.turn_sink(layer, slot.slot, slot.turn)


def places_of(slot: SlotView, device: torch.device) -> Tensor:
    """The rows of the cache that a chunk's tokens go to, (L,)."""
    return torch.cat([torch.arange(run.row, run.row + run.count, device=device) for run in slot.runs])


class FullView:
    """A Memory of full windows; where a chunk goes is told by `places`, (L,) for each slot, on the device."""

    def __init__(self, cache: KVCache, slots: tuple[int, ...], rope: tuple[Tensor, Tensor], places: list[Tensor]):
        self._cache, self._slots, self.rope, self._places = cache, slots, rope, places

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As CacheView.attend; q, k, v: (B, L, H, D)."""
        for row, (slot, places) in enumerate(zip(self._slots, self._places, strict=True)):
            self._cache.write(layer, slot, places, k[row], v[row])
        whole = (Span(0, self._cache.k.shape[2]),)
        return self._cache.attend(layer, self._slots, [whole] * len(self._slots), q)


class _Buffers:
    """What a pass of one shape reads, at addresses that stay."""

    def __init__(
        self,
        latent: Tensor,
        time: TimeTerms,
        text: list[TextTerms],
        camera: list[CameraTerms] | None,
        memory: CacheView,
    ):
        self._latent, self._time = torch.empty_like(latent), TimeTerms(*map(torch.empty_like, time))
        self._text = [TextTerms(*map(torch.empty_like, terms)) for terms in text]
        self._camera = camera and [CameraTerms(*map(torch.empty_like, terms)) for terms in camera]
        self.rope = tuple(map(torch.empty_like, memory.rope))
        self.places = [torch.empty_like(places_of(slot, latent.device)) for slot in memory.slots]
        self._loaded: Callable[[], CacheView | None] = lambda: None

    @property
    def inputs(self) -> tuple[Tensor, TimeTerms, list[TextTerms], list[CameraTerms] | None]:
        return self._latent, self._time, self._text, self._camera

    def load(
        self,
        latent: Tensor,
        time: TimeTerms,
        text: list[TextTerms],
        camera: list[CameraTerms] | None,
        memory: CacheView,
    ) -> None:
        """All passes over one view have its prompt and its camera, so these are copied with the first."""
        for buffer, tensor in zip((self._latent, *self._time), (latent, *time), strict=True):
            buffer.copy_(tensor)
        if self._loaded() is memory:
            return
        self._loaded = weakref.ref(memory)
        places = [places_of(slot, latent.device) for slot in memory.slots]
        for buffer, tensor in zip(
            (*self.rope, *self.places, *_flat(self._text), *_flat(self._camera or [])),
            (*memory.rope, *places, *_flat(text), *_flat(camera or [])),
            strict=True,
        ):
            buffer.copy_(tensor)


def _flat(layers: list) -> Iterator[Tensor]:
    for terms in layers:
        yield from terms
