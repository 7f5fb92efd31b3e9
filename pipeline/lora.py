"""Low-rank additions to a transformer, merged into its weights once, while they are loaded.

W' = W + B A * alpha / rank in float32, A (rank, in), B (out, rank). Where neither the file nor an adapter_config.json
beside it tells alpha, it equals the rank, as for LongLive.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.layouts import LORA_CONFIG, transformer_name
from pipeline.tensors import Reader, Stored

PREFIXES = ("base_model.model.", "base_model.", "diffusion_model.", "transformer.")
FLAT_PREFIX = "lora_unet_"  # such files write underscores for the dots of a module's name
_FACTOR = re.compile(r"(.+?)\.(lora_A|lora_B|lora[_.]down|lora[_.]up)(\.[^.]+)?\.weight")
_DOWN = ("lora_A", "lora_down", "lora.down")


class Pair(NamedTuple):
    """down: A (rank, in); up: B (out, rank); scale: alpha / rank."""

    down: Stored
    up: Stored
    scale: float


@dataclass(frozen=True)
class _Halves:
    down: Stored | None = None
    up: Stored | None = None
    alpha: Stored | None = None


def is_lora(tensors: Mapping[str, Stored]) -> bool:
    return any(_FACTOR.fullmatch(name) for name in tensors)


def with_lora(base: Mapping[str, Stored], lora: Mapping[str, Stored], source: Path) -> dict[str, Stored]:
    """The tensors of `base`, under our names, with those of a LoRA merged in as each is read.

    Raises one ValueError that names `source` and every tensor of the LoRA that has no place in `base`.
    """
    halves, unmatched = _matched(base, lora)
    lonely = sorted(name for name, half in halves.items() if half.down is None or half.up is None)
    pairs = {name: _pair(half, source) for name, half in halves.items() if name not in lonely}
    misshaped = [_shapes(name, base[name], pair) for name, pair in pairs.items() if not _fits(base[name], pair)]
    lines = {"unmatched": sorted(unmatched), "only half there": lonely, "mis-shaped": sorted(misshaped)}
    if faults := [f"{kind}: {', '.join(names)}" for kind, names in lines.items() if names]:
        raise ValueError(f"the LoRA of {source} does not fit the model; " + "; ".join(faults))
    if not pairs:
        raise ValueError(f"{source} holds no LoRA: none of its tensors is named lora_A, lora_B, lora_down or lora_up")
    merged = {name: _merged(base[name], pair) for name, pair in pairs.items()}
    return {**base, **merged}


def _matched(base: Mapping[str, Stored], lora: Mapping[str, Stored]) -> tuple[dict[str, _Halves], list[str]]:
    """The factors by the name of the weight that they add to, and the names that belong to none."""
    flat = {name.removesuffix(".weight").replace(".", "_"): name for name in base if name.endswith(".weight")}
    halves: dict[str, _Halves] = {}
    unmatched = []
    for name, stored in lora.items():
        module, role = _role(name)
        weight = flat.get(module, f"{module}.weight")
        if role is None or weight not in base:
            unmatched.append(name)
        else:
            halves[weight] = replace(halves.get(weight, _Halves()), **{role: stored})
    return halves, unmatched


def _role(name: str) -> tuple[str, str | None]:
    """The module that a tensor belongs to, and which of _Halves it is."""
    if match := _FACTOR.fullmatch(name):
        return _bare(match[1]), "down" if match[2] in _DOWN else "up"
    module, dot, last = name.rpartition(".")
    return (_bare(module), "alpha") if dot and last == "alpha" else (name, None)


def _bare(module: str) -> str:
    module = transformer_name(module)  # takes the wrappers that may stand before or behind the prefixes
    for prefix in (*PREFIXES, FLAT_PREFIX):
        module = transformer_name(module.removeprefix(prefix))
    return module


def _pair(half: _Halves, source: Path) -> Pair:
    rank = half.down.shape[0]
    if half.alpha is not None:
        return Pair(half.down, half.up, float(half.alpha.read(torch.device("cpu"), Reader())) / rank)
    return Pair(half.down, half.up, _told_scale(source.parent / LORA_CONFIG, rank))


def _told_scale(config: Path, rank: int) -> float:
    if not config.is_file():
        return 1.0
    try:
        told = json.loads(config.read_text())
        alpha = float(told["lora_alpha"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{config} does not tell lora_alpha as a number: {error!r}") from error
    return alpha / (math.sqrt(rank) if told.get("use_rslora") else rank)


def _fits(base: Stored, pair: Pair) -> bool:
    down, up = pair.down.shape, pair.up.shape
    return len(down) == len(up) == 2 and down[0] == up[1] and base.shape == (up[0], down[1])


def _shapes(name: str, base: Stored, pair: Pair) -> str:
    return f"{name} is {base.shape}, its factors {pair.up.shape} and {pair.down.shape}"


def _merged(base: Stored, pair: Pair) -> Stored:
    return replace(base, read=partial(_merge, base, pair))


def _merge(base: Stored, pair: Pair, device: torch.device, reader: Reader) -> Tensor:
    weight, up, down = (part.read(device, reader).to(device, torch.float32) for part in (base, pair.up, pair.down))
    return torch.addmm(weight, up, down, alpha=pair.scale)
