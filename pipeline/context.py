"""How many latent frames a model without a window keeps: what was asked for, or what the memory holds.

Such a model was trained to see its whole stream, which no memory holds for ever. At the bound nothing stops: the
cache goes on as for a model with a window, its first `sink` latent frames stay and the oldest of the others makes room
for the newest (see pipeline.kv_cache).
"""

import gc
import math
import os
from collections.abc import Callable

import torch

from pipeline.kv_cache import POSITIONS
from pipeline.presets import Preset
from pipeline.stored import Stored

GLOBAL_CONTEXT = 21
"""Latent frames where nothing is measured: the clip of 81 video frames that the models were trained on."""
SPARE = 0.05
"""The share of a GPU's memory that stays free, for what the allocator loses between blocks."""
GB = 1e9


def choose_context(
    preset: Preset,
    asked: int | None,
    slots: int,
    device: torch.device,
    stored: Stored,
    rehearse: Callable[[int], None],
) -> int:
    """Latent frames that each of `slots` keeps of its stream.

    `stored` is how keys and values lie. `rehearse(context)` makes an engine with that context and a few chunks in every
    slot; where nothing was asked for, the GPU's memory is shared out by what that took. Raises ValueError, with what
    would be right, for a context that cannot be.
    """
    if preset.window is not None:
        if asked is not None:
            raise ValueError(
                f"the preset {preset.name} has a window of its own, {preset.window} latent frames; "
                f"a context can only be given to presets without one"
            )
        return preset.window
    if asked is not None:
        _check(preset, asked, slots, stored, _memory(device))
        return asked
    if device.type != "cuda":
        return max(GLOBAL_CONTEXT, least_context(preset))
    return fitting_context(preset, slots, stored, _measured_room(preset, slots, device, stored, rehearse))


def least_context(preset: Preset) -> int:
    return preset.sink + preset.chunk


def cache_bytes(preset: Preset, context: int, slots: int, stored: Stored) -> int:
    """Of keys and values, and of the copy of a sink's keys that pipeline.kv_cache turns."""
    model, size = preset.transformer, stored.dtype.itemsize
    token = model.layers * model.dim * size
    turning = model.layers * model.heads * 2 * (model.head_width // 2 - 2 * (model.head_width // 6)) * size
    if stored.packed:
        turning = token = token + model.layers * model.heads * torch.bfloat16.itemsize
    return slots * math.prod(preset.token_grid) * (2 * context * token + preset.sink * turning)


def fitting_context(preset: Preset, slots: int, stored: Stored, room: int) -> int:
    """The most latent frames whose cache takes `room` bytes. Raises ValueError where that is too few for a chunk."""
    least = least_context(preset)
    missing = cache_bytes(preset, least, slots, stored) - room
    if missing > 0:
        raise ValueError(_too_small(preset, slots, f"{missing / GB:.1f} GB are missing"))
    frame = cache_bytes(preset, 1, slots, stored) - cache_bytes(preset, 0, slots, stored)
    return min((room - cache_bytes(preset, 0, slots, stored)) // frame, POSITIONS)


def _check(preset: Preset, asked: int, slots: int, stored: Stored, memory: int) -> None:
    least = least_context(preset)
    if asked < least:
        raise ValueError(
            f"the context is {asked} latent frames; the preset {preset.name} needs at least {least}, "
            f"a sink of {preset.sink} and a chunk of {preset.chunk}"
        )
    needed = cache_bytes(preset, asked, slots, stored)
    if needed > memory:
        raise ValueError(
            f"a context of {asked} latent frames takes {needed / GB:.1f} GB with {_slots(slots)}, "
            f"and there are {memory / GB:.1f} GB; ask for less"
        )


def _memory(device: torch.device) -> int:
    """Bytes that there are for a cache: those free on the GPU, all of the host's."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _measured_room(
    preset: Preset, slots: int, device: torch.device, stored: Stored, rehearse: Callable[[int], None]
) -> int:
    """Bytes that the cache may take beside everything else that lives while chunks are made and decoded."""
    least = least_context(preset)
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    free, total = torch.cuda.mem_get_info(device)
    try:
        rehearse(least)
    except torch.OutOfMemoryError:
        raise ValueError(_too_small(preset, slots, "not even its shortest context fits")) from None
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    beside = torch.cuda.max_memory_reserved(device) - held - cache_bytes(preset, least, slots, stored)
    return int(free - beside - SPARE * total)


def _too_small(preset: Preset, slots: int, reason: str) -> str:
    fewer = "; try fewer slots" if slots > 1 else ""
    return f"this GPU's memory is too small for {preset.name} with {_slots(slots)}: {reason}{fewer}"


def _slots(count: int) -> str:
    return f"{count} slot{'s' if count > 1 else ''}"
