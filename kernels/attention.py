"""One `attention()` over the kernels that are there.

B slots, L query tokens, S key tokens, H heads, D head width. No masks: the caller passes exactly the keys to see.
"""

import functools
import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

MAX_FLASH_HEAD_WIDTH = 256


def attention(q: Tensor, k: Tensor, v: Tensor, backend: str = "auto") -> Tensor:
    """Softmax attention, softmax(q k^T / sqrt(D)) v.

    q: (B, L, H, D); k, v: (B, S, H, D); one dtype and device. Returns (B, L, H, D) in that dtype.
    `backend` is "auto" or a key of `available_backends()`. Raises ValueError where the backend does not exist, cannot
    run here, or does not take these tensors.
    """
    return _KERNELS[_choose(q, backend)](q, k, v)


def available_backends() -> dict[str, str | None]:
    """Each backend, fastest first, with None where it can run here and otherwise the reason why not."""
    return {name: _missing(name) for name in _KERNELS}


def _choose(q: Tensor, backend: str) -> str:
    if backend == "auto":
        return "sdpa" if not q.is_cuda else _fastest(q.dtype, q.shape[-1])
    if backend not in _KERNELS:
        raise ValueError(f"no attention backend {backend!r}; there are auto, {', '.join(_KERNELS)}")
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
    oldest = {"flash4": (9, 0), "cudnn": (8, 0), "flash2": (8, 0)}[backend]
    if (found := torch.cuda.get_device_capability()) < oldest:
        return f"it needs compute capability {oldest[0]}.{oldest[1]}, this GPU has {found[0]}.{found[1]}"
    if backend == "cudnn":
        return None if torch.backends.cudnn.is_available() else "this torch has no cuDNN"
    try:
        _flash_function(backend)
    except (ImportError, AttributeError, OSError) as error:  # OSError: a wheel built for another CUDA
        return f"{_FLASH_MODULES[backend]} does not import: {error}"
    return None


_FLASH_MODULES = {"flash4": "flash_attn.cute", "flash2": "flash_attn"}


@functools.cache
def _flash_function(backend: str) -> Callable:
    return importlib.import_module(_FLASH_MODULES[backend]).flash_attn_func


def _flash(backend: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    result = _flash_function(backend)(q, k, v)
    return result[0] if isinstance(result, tuple) else result  # version 4 also gives the log-sum-exp


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    heads_first = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2)


def _cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _sdpa(q, k, v)


_KERNELS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {  # fastest first on a Hopper GPU
    "flash4": functools.partial(_flash, "flash4"),
    "cudnn": _cudnn,
    "flash2": functools.partial(_flash, "flash2"),
    "sdpa": _sdpa,
}
