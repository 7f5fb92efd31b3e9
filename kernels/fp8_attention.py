"""Softmax attention in FP8: queries, keys, values, probabilities and the result in float8_e4m3fn, sums in float32.

Nothing has a scale but the values: queries and keys have been through RMSNorm, which leaves them where float8 is at
its finest, and an average of values can be no larger than they are, so the result has their scale. On a GPU from
compute capability 9.0 on it is cuDNN's kernel, through its frontend (the package nvidia-cudnn-frontend); there one plan
serves every number of keys. On a CPU it is plain arithmetic, which is slow and there for checking.

L query tokens, R rows of a cache, H heads, D head width.
"""

import functools
import importlib
import math

import torch
from torch import Tensor

from kernels.fp8 import FP8, FP8_MAX, fp8_missing
from kernels.handmade import Handmade

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for a CPU comes without it
    triton = None

OLDEST = (9, 0)
PROBABILITY_SCALE = 256.0
"""A probability's largest, 1, times this is well below 448, and what float8 cannot hold of it is below 2^-17."""
VALUES_SIZE = 8.0
"""What values are brought to, by the root mean square that is expected of them.

Fifty times as much still fits, and an average of a whole window's, a hundredth of it, is still finely held.
"""
TRIED = torch.Size((128, 1, 128))
BLOCK = 1024
_SCALES = {
    "descale_q": 1.0,
    "descale_k": 1.0,
    "descale_v": 1.0,
    "descale_s": 1 / PROBABILITY_SCALE,
    "scale_s": PROBABILITY_SCALE,
    "scale_o": 1.0,
}


class Fp8Attention:
    """softmax(q k^T / sqrt(D)) v in FP8. One thread and stream at a time; it keeps what cuDNN needs for each shape."""

    def __init__(self):
        self._plans: dict[tuple[torch.Size, torch.Size], _Plan] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
        """Over the first `count` of R rows of keys and values.

        q: (L, H, D), k, v: (R, H, D), contiguous, all float8_e4m3fn; the rows that are not seen must be finite. Returns
        (L, H, D) float8_e4m3fn in the scale of v. D is a multiple of 16 on a GPU.
        """
        if not q.is_cuda:
            return reference(q, k[:count], v[:count])
        shapes = q.shape, k.shape
        if shapes not in self._plans:
            self._plans[shapes] = _Plan(*shapes, q.device)
        return self._plans[shapes].run(q, k, v, count)


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Over all rows in plain arithmetic; a kernel differs by where its sums are when it rounds a probability."""
    scores = torch.einsum("lhd,shd->hls", q.float(), k.float()) / math.sqrt(q.shape[-1])
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    rounded = narrow(weights, PROBABILITY_SCALE).float() / PROBABILITY_SCALE
    sums = torch.einsum("hls,shd->lhd", rounded, v.float())
    return narrow(sums / weights.sum(-1).T.unsqueeze(-1))


def narrow(x: Tensor, scale: float = 1.0) -> Tensor:
    """x times a power of two in float8_e4m3fn; what is beyond 448 becomes 448. x: (rows, ...)."""
    return _NARROW(x, scale)


def widen(x: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """What narrow() made of numbers, as numbers again."""
    return _WIDEN(x, dtype, scale)


def _narrow_plainly(x: Tensor, scale: float) -> Tensor:
    return (x.float() * scale).clamp(-FP8_MAX, FP8_MAX).to(FP8)


def _widen_plainly(x: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    return (x.float() / scale).to(dtype)


def value_scale(size: float) -> float:
    """The power of two that brings values whose root mean square is `size` to VALUES_SIZE."""
    return 2.0 ** round(math.log2(VALUES_SIZE / size)) if size and math.isfinite(size) else 1.0


@functools.cache
def fp8_attention_missing(device: torch.device) -> str | None:
    """Why FP8 attention cannot run on `device`, or None; a GPU is tried with a small one."""
    if device.type != "cuda":
        return None
    if (found := torch.cuda.get_device_capability(device)) < OLDEST:
        return f"it needs compute capability {OLDEST[0]}.{OLDEST[1]}, this GPU has {found[0]}.{found[1]}"
    try:
        _Plan(TRIED, TRIED, device)
    except ModuleNotFoundError as error:
        return f"{error}; chunkcast's extra 'hopper' brings it"
    except Exception as error:  # of a frontend without its library, of a cuDNN that has no such kernel for this GPU
        return f"cuDNN has none here: {(str(error) or type(error).__name__).splitlines()[0]}"
    return None


class _Plan:
    """cuDNN's graph for (L, H, D) queries on up to R rows; made once, for it takes a few tenths of a second.

    How many rows are seen is a tensor, so that one plan serves windows that still fill; with it cuDNN's kernel is also
    a tenth quicker than without.
    """

    def __init__(self, queries: torch.Size, keys: torch.Size, device: torch.device):
        self._cudnn, self._device, self._queries = importlib.import_module("cudnn"), device, queries
        with torch.cuda.device(device):
            self._handle, kind = self._cudnn.create_handle(), self._cudnn.data_type
        self._graph = self._cudnn.pygraph(
            handle=self._handle,
            io_data_type=kind.FP8_E4M3,
            intermediate_data_type=kind.FLOAT,
            compute_data_type=kind.FLOAT,
        )
        sizes = {"q": queries, "k": keys, "v": keys}
        self._rows = {name: self._tensor(name, kind.FP8_E4M3, _heads_first(shape)) for name, shape in sizes.items()}
        self._scales = {name: self._tensor(name, kind.FLOAT) for name in _SCALES}
        self._lengths = {name: self._tensor(name, kind.INT32) for name in ("seq_len_q", "seq_len_kv")}
        self._add_attention()
        self._build()

    def _tensor(self, name: str, kind, layout: tuple[list[int], list[int]] = ([1] * 4, [1] * 4)):
        return self._graph.tensor(name=name, dim=layout[0], stride=layout[1], data_type=kind)

    def _add_attention(self) -> None:
        kind = self._cudnn.data_type
        out, _, *largest = self._graph.sdpa_fp8(
            **self._rows,
            **self._scales,
            **self._lengths,
            use_padding_mask=True,
            generate_stats=False,
            attn_scale=1 / math.sqrt(self._queries[-1]),
            name="attention",
        )
        dims, strides = _heads_first(self._queries)
        self._out = out.set_output(True).set_dim(dims).set_stride(strides).set_data_type(kind.FP8_E4M3)
        for each in largest:  # the largest probability and result, which nobody asks for
            each.set_output(True).set_dim([1] * 4).set_stride([1] * 4).set_data_type(kind.FLOAT)
        numbers = {self._scales[name]: number for name, number in _SCALES.items()} | dict.fromkeys(largest, 0.0)
        self._fixed = {tensor: self._filled(number, torch.float32) for tensor, number in numbers.items()}
        self._length = functools.cache(lambda rows: self._filled(rows, torch.int32))

    def _filled(self, number: float, dtype: torch.dtype) -> Tensor:
        return torch.full((1, 1, 1, 1), number, dtype=dtype, device=self._device)

    def _build(self) -> None:
        self._graph.validate()
        self._graph.build_operation_graph()
        self._graph.create_execution_plans([self._cudnn.heur_mode.A, self._cudnn.heur_mode.FALLBACK])
        self._graph.check_support()
        self._graph.build_plans()
        size = max(1, self._graph.get_workspace_size())
        self._workspace = torch.empty(size, dtype=torch.uint8, device=self._device)

    def run(self, q: Tensor, k: Tensor, v: Tensor, count: int) -> Tensor:
        """On the current stream."""
        out = torch.empty_like(q)
        lengths = (self._length(self._queries[0]), self._length(count))
        given = (*self._rows.values(), *self._lengths.values(), self._out)
        tensors = self._fixed | dict(zip(given, (q, k, v, *lengths, out), strict=True))
        self._cudnn.set_stream(self._handle, torch.cuda.current_stream(self._device).cuda_stream)
        self._graph.execute(tensors, self._workspace, handle=self._handle)
        return out


def _heads_first(shape: torch.Size) -> tuple[list[int], list[int]]:
    """Sizes and strides of contiguous (rows, H, D) as cuDNN's (1, H, rows, D)."""
    rows, heads, width = shape
    return [1, heads, rows, width], [rows * heads * width, width, heads * width, 1]


def _launch(x: Tensor, dtype: torch.dtype, scale: float, limit: float) -> Tensor:
    x = x if x[0].is_contiguous() else x.contiguous()
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    width = x[0].numel()
    _cast[(len(x), triton.cdiv(width, BLOCK))](x, out, x.stride(0), width, scale, LIMIT=limit, BLOCK=BLOCK)
    return out


def _fits(x: Tensor) -> bool:
    return fp8_missing(x.device) is None


_NARROW = Handmade(lambda x, scale: _launch(x, FP8, scale, FP8_MAX), _narrow_plainly, _fits)
_WIDEN = Handmade(
    lambda x, dtype, scale: _launch(x, dtype, 1 / scale, torch.finfo(torch.float32).max), _widen_plainly, _fits
)


if triton is not None:

    @triton.jit
    def _cast(x, out, stride, width, scale, LIMIT: tl.constexpr, BLOCK: tl.constexpr):
        row, place = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        numbers = tl.load(x + row * stride + place, mask=place < width, other=0.0).to(tl.float32) * scale
        numbers = tl.clamp(numbers, -LIMIT, LIMIT, propagate_nan=tl.PropagateNan.ALL)
        tl.store(out + row * width + place, numbers.to(out.dtype.element_ty), mask=place < width)
