"""One `attention()` over the kernels that are there, and a Choice of the quickest for each shape.

B slots, L query tokens, S key tokens, H heads, D head width. No masks: the caller passes exactly the keys to see.
Kernels differ from one another by rounding alone.
"""

import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels.caches import keep_on_disk

MAX_FLASH_HEAD_WIDTH = 256
SAME_IN_COMPANY = ("flash4",)
"""Backends that give a slot the same bits whatever other slots are in the call; tests/test_attention.py shows it."""
WARM, TIMED = 2, 5
"""Runs of a backend before its time is taken, and for it."""


def attention(q: Tensor, k: Tensor, v: Tensor, backend: "str | Choice" = "auto") -> Tensor:
    """Softmax attention, softmax(q k^T / sqrt(D)) v.

    q: (B, L, H, D); k, v: (B, S, H, D); one dtype and device. Returns (B, L, H, D) in that dtype.
    `backend` is "auto", a key of `available_backends()` or a Choice. Raises ValueError where the backend does not
    exist, cannot run here, or does not take these tensors.
    """
    name = backend.of(q, k, v) if isinstance(backend, Choice) else _choose(q, backend)
    return _KERNELS[name](q, k, v)


def attention_each(q: Tensor, k: Tensor, v: Tensor, backend: "str | Choice" = "auto") -> Tensor:
    """attention() with the bits that each slot has alone: in one call where the kernel gives it the same in company.

    One call of two slots is up to a tenth quicker than two calls: fewer of the GPU's processors wait for the last ones.
    """
    alone = [each[:1] for each in (q, k, v)]
    name = backend.of(*alone) if isinstance(backend, Choice) else _choose(q, backend)
    if name in SAME_IN_COMPANY:
        return _KERNELS[name](q, k, v)
    outputs = [_KERNELS[name](*(each[slot : slot + 1] for each in (q, k, v))) for slot in range(len(q))]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def available_backends() -> dict[str, str | None]:
    """Each backend, fastest first, with None where it can run here and otherwise the reason why not."""
    return {name: _missing(name) for name in _KERNELS}


class Shape(NamedTuple):
    """Of the tensors of one attention()."""

    slots: int
    queries: int
    keys: int
    heads: int
    width: int
    dtype: torch.dtype


class Choice:
    """A backend by name, or for each shape the one that was quickest there.

    With "auto", what is met within learning() is timed once, which waits for the GPU: that is for a warm-up. `times`
    has milliseconds by shape and backend. A number of keys within NEAR of one that was timed takes the same backend,
    any other that of the nearest. What is met before anything was timed, and everything on a CPU, takes what
    attention() takes by itself. What has been timed stays as it is, so the same shape has the same bits from then on.
    """

    NEAR = 1.25

    def __init__(self, backend: str = "auto"):
        """Raises ValueError for a backend that does not exist or cannot run here."""
        if backend != "auto" and (reason := _absent(backend)):
            raise ValueError(reason)
        self.backend = backend
        self.times: dict[Shape, dict[str, float]] = {}
        self._taken: dict[Shape, str] = {}
        self._learning = False

    @contextlib.contextmanager
    def learning(self) -> Iterator[None]:
        self._learning = True
        try:
            yield
        finally:
            self._learning = False

    def of(self, q: Tensor, k: Tensor, v: Tensor) -> str:
        """The name of the backend that takes these tensors."""
        if self.backend != "auto" or not q.is_cuda:
            return _choose(q, self.backend)
        shape = Shape(q.shape[0], q.shape[1], k.shape[1], *q.shape[2:], q.dtype)
        if shape not in self._taken or self._learning:
            near = self._nearest(shape)
            if self._learning and (near is None or _ratio(near.keys, shape.keys) > self.NEAR):
                self.times[shape], near = _timed(q, k, v), shape
            self._taken[shape] = _choose(q, "auto") if near is None else self.taken(near)
        return self._taken[shape]

    def taken(self, shape: Shape) -> str:
        """The quickest of a shape that was timed."""
        return min(self.times[shape], key=self.times[shape].__getitem__)

    def report(self) -> list[dict]:
        """The shapes that were timed, in order, with milliseconds by backend and which one is taken; plain data."""
        return [
            {"slots": shape.slots, "queries": shape.queries, "keys": shape.keys, "heads": shape.heads,
             "taken": self.taken(shape), "milliseconds": {name: round(ms, 4) for name, ms in times.items()}}
            for shape, times in sorted(self.times.items(), key=lambda item: item[0][:3])
        ]  # fmt: skip

    def _nearest(self, shape: Shape) -> Shape | None:
        if shape in self.times:
            return shape
        like = [each for each in self.times if each._replace(keys=shape.keys) == shape]
        return min(like, key=lambda each: _ratio(each.keys, shape.keys), default=None)


def _ratio(one: int, other: int) -> float:
    return max(one, other) / min(one, other)


def _timed(q: Tensor, k: Tensor, v: Tensor) -> dict[str, float]:
    """Milliseconds by backend on these tensors, the least of a few runs; a backend that fails on them is left out.

    They run in turns, so that a clock that rises or another program on the GPU is no one's advantage.
    """
    usable = [name for name in _KERNELS if not (_missing(name) or _refusal(name, True, q.dtype, q.shape[-1]))]
    marks: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in usable}
    for _ in range(WARM + TIMED):
        for name in list(marks):
            # What a library says of a shape that it does not take, or a compiler, may be anything: it is left out.
            try:
                marks[name].append(_marked(functools.partial(_KERNELS[name], q, k, v)))
            except Exception:
                del marks[name]
    torch.cuda.synchronize()
    found = {name: min(begun.elapsed_time(ended) for begun, ended in runs[WARM:]) for name, runs in marks.items()}
    return found or {"sdpa": 0.0}


def _marked(run: Callable[[], object]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    run()
    ended.record()
    return begun, ended


def _absent(backend: str) -> str | None:
    if backend not in _KERNELS:
        return f"no attention backend {backend!r}; there are auto, {', '.join(_KERNELS)}"
    return (missing := _missing(backend)) and f"attention backend {backend!r} cannot run: {missing}"


def _choose(q: Tensor, backend: str) -> str:
    if backend == "auto":
        return "sdpa" if not q.is_cuda else _fastest(q.dtype, q.shape[-1])
    if backend not in _KERNELS:
        raise ValueError(_absent(backend))
    if reason := _missing(backend) or _refusal(backend, q.is_cuda, q.dtype, q.shape[-1]):
        raise ValueError(f"attention backend {backend!r} cannot run: {reason}")
    return backend


@functools.cache
def _fastest(dtype: torch.dtype, head_width: int) -> str:
    return next(name for name in _KERNELS if not (_missing(name) or _refusal(name, True, dtype, head_width)))


def _refusal(backend: str, cuda: bool, dtype: torch.dtype, head_width: int) -> str | None:
    """Why `backend`, although installed, does not take tensors like these, or None."""
    if backend == "sdpa":
        return None
    if not cuda:
        return "the tensors are not on a CUDA device"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it takes bfloat16 and float16, not {dtype}"
    if head_width > MAX_FLASH_HEAD_WIDTH or head_width % 8:
        return f"the head width {head_width} is not a multiple of 8 up to {MAX_FLASH_HEAD_WIDTH}"
    return None


@functools.cache
def _missing(backend: str) -> str | None:
    """Why `backend` cannot run on this machine, or None."""
    if backend == "sdpa":
        return None
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    oldest = (9, 0) if backend in ("flash4", "flash3") else (8, 0)
    if (found := torch.cuda.get_device_capability()) < oldest:
        return f"it needs compute capability {oldest[0]}.{oldest[1]}, this GPU has {found[0]}.{found[1]}"
    if backend == "cudnn":
        return None if torch.backends.cudnn.is_available() else "this torch has no cuDNN"
    if backend in _TORCH_KERNELS:
        return None
    try:
        _flash_function(backend)
    except ModuleNotFoundError as error:
        brought = f"; chunkcast's extra {_EXTRAS[backend]!r} brings it" if backend in _EXTRAS else ""
        return f"{error}{brought}"
    except (ImportError, AttributeError, OSError) as error:  # OSError: a wheel built for another CUDA
        return f"{_FLASH_MODULES[backend]} does not import: {error}"
    return None


_FLASH_MODULES = {"flash4": "flash_attn.cute", "flash3": "flash_attn_interface", "flash2": "flash_attn"}
_EXTRAS = {"flash4": "hopper", "flash2": "cuda"}
_TORCH_KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "torch-flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@functools.cache
def _flash_function(backend: str) -> Callable:
    keep_on_disk()
    # What flash-attn 4's compiler says of flash-attn 4's own code is nothing that anyone here could mend.
    warnings.filterwarnings("ignore", "Argument .* cannot be converted to a JitArgument", UserWarning)
    return importlib.import_module(_FLASH_MODULES[backend]).flash_attn_func


def _flash(backend: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    result = _flash_function(backend)(q, k, v)
    return result[0] if isinstance(result, tuple) else result  # version 4 also gives the log-sum-exp


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads_first = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2)


def _torch(backend: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(_TORCH_KERNELS[backend]):
        return _sdpa(q, k, v)


# Where nothing was timed the first that can run is taken: fastest first on a Hopper GPU.
_KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "flash4": functools.partial(_flash, "flash4"),
    "flash3": functools.partial(_flash, "flash3"),
    "cudnn": functools.partial(_torch, "cudnn"),
    "flash2": functools.partial(_flash, "flash2"),
    "torch-flash": functools.partial(_torch, "torch-flash"),
    "efficient": functools.partial(_torch, "efficient"),
    "sdpa": _sdpa,
}
BACKENDS = tuple(_KERNELS)
