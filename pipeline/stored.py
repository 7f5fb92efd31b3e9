"""How keys and values lie in memory, by the options `cache` and `attention` of an engine, and what those may be."""

from typing import NamedTuple

import torch

from kernels.attention import BACKENDS, Choice
from kernels.fp8 import FP8
from kernels.fp8_attention import fp8_attention_missing

CACHES = ("plain", "fp8")
FP8_ATTENTION = "fp8"
ATTENTIONS = ("auto", FP8_ATTENTION, *BACKENDS)


class Stored(NamedTuple):
    """The type of a number, and whether each head of a token has a scale beside its numbers (kernels.packed)."""

    dtype: torch.dtype
    packed: bool = False


def stored_as(cache: str, attention: str, dtype: torch.dtype) -> Stored:
    """`dtype` is the model's. Attention in FP8 reads float8 without scales, whatever `cache` says.

    Raises ValueError for names that do not exist.
    """
    check_names(attention, cache)
    if attention == FP8_ATTENTION:
        return Stored(FP8)
    return Stored(FP8, packed=True) if cache == "fp8" else Stored(dtype)


def check_names(attention: str, cache: str = "plain") -> None:
    """Raises ValueError for one that does not exist."""
    if cache not in CACHES:
        raise ValueError(f"no cache {cache!r}; it is {' or '.join(CACHES)}")
    if attention not in ATTENTIONS:
        raise ValueError(f"no attention {attention!r}; it is one of {', '.join(ATTENTIONS)}")


def check_attention(attention: str, device: torch.device) -> None:
    """Raises ValueError, with the reason, where it does not exist or cannot run on `device`."""
    check_names(attention)
    if attention != FP8_ATTENTION:
        Choice(attention)
    elif reason := fp8_attention_missing(device):
        raise ValueError(f"attention in FP8 cannot run: {reason}")
