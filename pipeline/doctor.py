"""What is there, what is missing and what fits: from headers and sizes alone, on any machine.

Nothing is loaded and nothing is fetched; a GPU is asked for its size, and tried with one small attention in FP8.
"""

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

from kernels.attention import available_backends
from kernels.fp8 import fp8_missing
from kernels.fp8_attention import fp8_attention_missing
from pipeline import huggingface as hub
from pipeline import memory
from pipeline.catalogue import CUDA_BYTES, gpu_bytes
from pipeline.checkpoint import (
    Plan,
    find_tokenizer,
    part_folders,
    plan_text_encoder,
    plan_transformer,
    plan_vae,
)
from pipeline.engine import GLOBAL_CONTEXT
from pipeline.load import RANDOM
from pipeline.presets import PRESETS, Preset, at_precision, find_preset
from pipeline.stored import check_names
from pipeline.tiny import load as tiny

LONGEST_REASON = 400
PACKAGES = ("torch", "transformers", "av", "aiortc")
OK, LACK, BAD = "ok", "--", "NO"


class Finding(NamedTuple):
    """`state`: OK is there, LACK is not but was not asked for, BAD is not although it was."""

    state: str
    subject: str
    text: str


@dataclass
class Report:
    """Findings by heading, in order."""

    sections: dict[str, list[Finding]] = field(default_factory=dict)

    @property
    def fine(self) -> bool:
        """Whether nothing that was asked for is missing."""
        return all(each.state != BAD for findings in self.sections.values() for each in findings)

    def __str__(self) -> str:
        width = max(len(each.subject) for findings in self.sections.values() for each in findings)
        lines = []
        for heading, findings in self.sections.items():
            lines += [heading, *(f"  {f.state}  {f.subject:{width}}  {f.text}".rstrip() for f in findings), ""]
        wrong = sum(each.state == BAD for findings in self.sections.values() for each in findings)
        verdict = "All that was asked for is fine." if self.fine else f"{wrong} to mend, marked {BAD}."
        return "\n".join([*lines, verdict])


def examine(
    preset: str | None,
    weights: str | None,
    parts: str | None,
    lora: str | None,
    missing_encoders: Mapping[str, str | None],
    precision: str = "bf16",
    vae_precision: str = "exact",
    cache: str = "plain",
    attention: str = "auto",
) -> Report:
    """The options are those of the command line; `missing_encoders` has for each codec why it cannot be encoded.

    Raises ValueError for a name that does not exist, for parts without weights and for a precision that cannot be.
    """
    check_names(attention, cache)
    if weights is None and (parts or lora):
        raise ValueError("--parts and --lora go with --weights")
    found = None if preset is None else at_precision(find_preset(preset), precision)
    options = {"vae_precision": vae_precision, "cache": cache, "attention": attention}
    needed = None if found is None else memory.needs(found, GLOBAL_CONTEXT, **options)
    report = Report()
    report.sections["This machine"] = list(_machine())
    report.sections["Attention"] = list(_attention())
    report.sections["Linears"] = [_fp8()]
    report.sections["Codecs"] = list(_codecs(missing_encoders))
    if needed is not None:
        report.sections[f"Memory for {found.name}"] = [_fit(needed.total(slots), slots) for slots in (1, 2)]
    if weights is not None or found is not None:
        heading = "Weights" if weights is None else f"Weights {weights}"
        report.sections[heading] = list(_weights(found, weights, parts, lora))
    return report


# The machine


def _machine() -> Iterator[Finding]:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    yield Finding(OK, "software", f"Python {platform.python_version()}, {versions}")
    yield Finding(OK, "processor", f"{os.cpu_count()} cores, {platform.machine()}")
    if not torch.cuda.is_available():
        yield Finding(LACK, "GPU", "torch sees no CUDA device; the tiny world runs without one")
        return
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        size = f"{found.total_memory / memory.GB:.1f} GB, compute capability {found.major}.{found.minor}"
        yield Finding(OK, f"GPU {index}", f"{found.name}, {size}")


def _attention() -> Iterator[Finding]:
    backends = available_backends()
    taken = next(name for name, missing in backends.items() if missing is None)
    for name, missing in backends.items():
        yield Finding(LACK if missing else OK, name, missing or ("the fastest here" if name == taken else ""))
    if torch.cuda.is_available():
        missing = fp8_attention_missing(torch.device("cuda"))
    else:
        missing = "torch sees no CUDA device; on a CPU it runs in plain arithmetic, slower and for checking"
    yield Finding(LACK if missing else OK, "fp8", missing or "quicker, a little off: --attention fp8")


def _fp8() -> Finding:
    missing = fp8_missing(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return Finding(LACK if missing else OK, "FP8", missing or "row-wise, in the GPU's own units")


def _codecs(missing_encoders: Mapping[str, str | None]) -> Iterator[Finding]:
    none = all(missing_encoders.values())  # then no browser can be served
    for codec, missing in missing_encoders.items():
        yield Finding((BAD if none else LACK) if missing else OK, codec, missing or "")


def _fit(need: float, slots: int) -> Finding:
    subject = f"{slots} slot{'s' if slots > 1 else ''}"
    if (size := gpu_bytes()) is None:
        return Finding(LACK, subject, f"{need / memory.GB:.1f} GB; there is no GPU here to compare with")
    free = size - CUDA_BYTES
    text = f"{need / memory.GB:.1f} GB of {free / memory.GB:.1f} GB"
    if need <= free:
        return Finding(OK, subject, f"{text}: it fits")
    return Finding(BAD if slots == 1 else LACK, subject, f"{text}: {(need - free) / memory.GB:.1f} GB too much")


# The weights


def _weights(preset: Preset | None, weights: str | None, parts: str | None, lora: str | None) -> Iterator[Finding]:
    if weights == RANDOM:
        yield Finding(OK, RANDOM, "made where they run, to try the speed; the pictures are noise")
    elif preset is not None and preset.vae == "tiny":
        yield from _tiny(tiny.WEIGHTS if weights is None else Path(weights))
    elif weights is None:
        yield Finding(LACK, "weights", "none were named: --weights takes a folder, a file or org/name")
    else:
        yield from _transformer(preset, weights, lora)
        yield from _other_parts(weights, parts)


def _tiny(folder: Path) -> Iterator[Finding]:
    for file in tiny.FILES:
        try:
            tiny.read_part(folder / file)
            yield Finding(OK, file, str(folder))
        except ValueError as error:
            yield Finding(BAD, file, str(error))


def _remote(place: str) -> hub.HubName | None:
    """The name on the hub, unless it is a path here or an earlier run fetched it."""
    name = None if Path(place).exists() else hub.parse_name(place)
    return name if name is not None and hub.cached(name) is None else None


def _local(place: str) -> Path:
    """A path, or what an earlier run fetched."""
    name = None if Path(place).exists() else hub.parse_name(place)
    return Path(place) if name is None else hub.cached(name) or Path(place)


_NAMES = {"transformer": "transformer", "vae": "VAE", "text": "text encoder", "tokenizer": "tokenizer"}


def _transformer(preset: Preset | None, weights: str, lora: str | None) -> Iterator[Finding]:
    """With its LoRA where both are here; what is on the hub is looked up there."""
    places = (("transformer", weights), ("LoRA", lora))
    far = [(subject, name) for subject, place in places if place is not None and (name := _remote(place))]
    if far:
        for subject, name in far:
            yield from _on_hub(name, {hub.TRANSFORMER: subject})
        yield Finding(LACK, "tensors", "whether they fit the preset is seen when they are here")
        return
    path, addition = _local(weights), None if lora is None else _local(lora)
    if preset is None:
        yield _fitting_presets(path, addition)
    else:
        plan = partial(plan_transformer, path, preset.transformer, addition, f"the preset {preset.name}")
        yield _part(hub.TRANSFORMER, lambda: _described(plan()))


def _other_parts(weights: str, parts: str | None) -> Iterator[Finding]:
    """Where they are looked for first: in `parts` if that is given."""
    if (name := _remote(weights if parts is None else parts)) is not None:
        yield from _on_hub(name, {part: _NAMES[part] for part in hub.OTHER_PARTS})
        return
    folders = part_folders(_local(weights), None if parts is None else _local(parts))
    yield _part("vae", lambda: _described(plan_vae(folders)))
    yield _part("text", lambda: _described(plan_text_encoder(folders)))
    yield _part("tokenizer", lambda: str(find_tokenizer(folders)))


def _on_hub(name: hub.HubName, parts: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the repository has these parts, each under what it is called here."""
    try:
        files = hub.listed(name)
        if files is None:
            raise ValueError(f"the hub cannot be reached, and {name} is neither a path here nor in the hub's cache")
    except ValueError as error:
        yield Finding(BAD, "hub", str(error))
        return
    for part, subject in parts.items():
        try:
            wanted = hub.wanted_files(name, files, (part,))
            yield Finding(OK, subject, f"{len(wanted)} files on the hub, not fetched yet: {wanted[0]} ...")
        except ValueError as error:
            yield Finding(BAD, subject, str(error))


def _part(part: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(OK, _NAMES[part], look())
    except ValueError as error:
        return Finding(BAD, _NAMES[part], _short(str(error)))


def _short(text: str) -> str:
    """Weights of another model miss hundreds of tensors; loading them names all."""
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ... ({len(text)} characters in all)"


def _fitting_presets(weights: Path, lora: Path | None) -> Finding:
    """Which presets the transformer can be; the same weights may fit several."""
    fitting, reason = [], ""
    for preset in PRESETS.values():
        if preset.vae == "tiny":
            continue
        try:
            plan_transformer(weights, preset.transformer, lora)
            fitting.append(preset.name)
        except ValueError as error:
            reason = str(error)
    if fitting:
        return Finding(OK, "transformer", f"its tensors are those of {', '.join(fitting)}")
    return Finding(BAD, "transformer", f"it is that of no preset; the last one tried: {_short(reason)}")


def _described(plan: Plan) -> str:
    dtypes = sorted({str(stored.dtype).removeprefix("torch.") for stored in plan.tensors.values()})
    files = {stored.file for stored in plan.tensors.values()}
    count = f"{len(files)} file{'s' if len(files) > 1 else ''}"
    size = f"{plan.nbytes / memory.GB:.2f} GB"
    return f"{plan.source} ({count}, {len(plan.tensors)} tensors, {size}, {', '.join(dtypes)})"
