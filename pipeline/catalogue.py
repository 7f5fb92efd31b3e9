"""All presets as plain data: what they show, what they take, and whether this machine could run them."""

from collections.abc import Iterable
from typing import Any

import torch

from pipeline import memory
from pipeline.context import GLOBAL_CONTEXT
from pipeline.presets import Preset

CUDA_BYTES = 0.5e9
"""What CUDA itself takes of a GPU's memory, besides what is counted."""


def gpu_bytes() -> int | None:
    """The memory of the GPU, None where torch sees none."""
    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None


def catalogue(presets: Iterable[Preset]) -> list[dict[str, Any]]:
    """One entry a preset; sizes in pixels, rates in frames a second, `memory_bytes` for one live session.

    `can_serve` says whether the model fits the GPU here, given its weights, and `why` in a sentence why not.
    """
    size = gpu_bytes()
    return [_entry(preset, size) for preset in presets]


def _entry(preset: Preset, size: int | None) -> dict[str, Any]:
    need = memory.needs(preset, GLOBAL_CONTEXT, slots=(1,)).total(1)
    why = _lack(preset, need, size)
    return {
        "name": preset.name,
        "summary": preset.summary,
        "width": preset.width,
        "height": preset.height,
        "fps": preset.fps,
        "chunk_frames": preset.chunk_frames,
        "image": preset.picture_wanted,
        "camera": preset.control != "none",
        "memory_bytes": need,
        "can_serve": why is None,
        "why": why,
    }


def _lack(preset: Preset, need: int, size: int | None) -> str | None:
    """Why this machine cannot run a preset; None where it can."""
    if preset.vae == "tiny":
        return None
    wanted = f"it takes {need / memory.GB:.1f} GB of a GPU's memory"
    if size is None:
        return f"{wanted}, and there is no GPU here"
    if need > size - CUDA_BYTES:
        return f"{wanted}, and the one here has {(size - CUDA_BYTES) / memory.GB:.1f} GB"
    return None
