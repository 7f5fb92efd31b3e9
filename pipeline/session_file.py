"""A session in a file: safetensors, the latents as tensors and everything else as JSON in the metadata. No torch.

docs/sessions.md describes the format.
"""

import contextlib
import itertools
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pipeline.chunk import Control, Event, Session, SessionSpec

METADATA = "chunkcast.session"
VERSION = 1
MAX_METADATA_BYTES = 16 * 2**20
"""A session of 200,000 chunks, each with other keys, takes half of that."""
MAX_SCRIPT_FRAMES = 1_000_000
"""A walk is written as runs of frames and read into memory: a file of a few bytes must not fill that."""


def write(session: Session, path: Path) -> None:
    """Raises FileNotFoundError where the folder is not there. A file of that name is replaced whole or not at all."""
    tensors = {"latents": np.ascontiguousarray(session.latents), "first": np.ascontiguousarray(session.first)}
    if session.spec.image is not None:
        tensors["image"] = np.frombuffer(session.spec.image, np.uint8)
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for the session file")
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        save_file(tensors, name, {METADATA: json.dumps(_described(session))})
        _sync(name)
        os.replace(name, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def read(path: Path) -> Session:
    """Raises ValueError that names the file when it is none of ours, damaged, or of a newer version."""
    if not Path(path).is_file():
        raise ValueError(f"there is no session file {path}")
    try:
        with safe_open(path, "np") as file:
            text = (file.metadata() or {}).get(METADATA)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no session file, or is cut short ({error})") from None
    if text is None:
        raise ValueError(f"{path} is no session file: its metadata has no {METADATA!r}; `generate --save` writes one")
    if len(text) > MAX_METADATA_BYTES:
        raise ValueError(f"{path}: its metadata has {len(text)} bytes; at most {MAX_METADATA_BYTES} are read")
    try:
        return _session(_checked_version(json.loads(text), path), tensors)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__} {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _checked_version(described: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    version = described["version"]
    if version != VERSION:
        raise ValueError(
            f"it is a session file of version {version!r}, and this chunkcast reads version {VERSION}; "
            "use the chunkcast that wrote it, or a newer one"
        )
    return described


def _described(session: Session) -> dict[str, Any]:
    spec = session.spec
    runs = [[_letters(keys), len(list(run))] for keys, run in itertools.groupby(spec.script)]
    return {
        "version": VERSION,
        "preset": session.preset,
        "session": spec.session,
        "prompt": spec.prompt,
        "seed": spec.seed,
        "script": runs,
        "chunk": session.chunk,
        "frame": session.frame,
        "events": [[e.chunk, _letters(e.keys), e.prompt, e.rewrites] for e in session.events],
        "held": _control(session.held),
        "waiting": session.waiting and _control(session.waiting),
    }


def _session(described: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Session:
    runs = [(frozenset(keys), _count(frames)) for keys, frames in described["script"]]
    if (frames := sum(frames for _, frames in runs)) > MAX_SCRIPT_FRAMES:
        raise ValueError(f"its walk has {frames} frames; at most {MAX_SCRIPT_FRAMES} are read")
    script = tuple(keys for keys, frames in runs for _ in range(frames))
    image = tensors["image"].tobytes() if "image" in tensors else None
    for name in ("latents", "first"):
        if tensors[name].dtype != np.float32 or not np.isfinite(tensors[name]).all():
            raise ValueError(f"its {name} must be finite float32 numbers")
    waiting = described["waiting"]
    return Session(
        preset=_text(described["preset"]),
        spec=SessionSpec(_text(described["session"]), described["prompt"], described["seed"], image, script),
        chunk=_count(described["chunk"]),
        frame=_count(described["frame"]),
        events=tuple(Event(_count(c), frozenset(k), prompt, _count(r)) for c, k, prompt, r in described["events"]),
        first=tensors["first"],
        latents=tensors["latents"],
        held=_read_control(described["held"]),
        waiting=None if waiting is None else _read_control(waiting),
    )


def _control(control: Control) -> list[Any]:
    return [control.sequence, _letters(control.keys), control.prompt]


def _read_control(parts: list[Any]) -> Control:
    sequence, keys, prompt = parts
    return Control(_count(sequence), frozenset(keys), prompt)


def _letters(keys: frozenset[str]) -> str:
    return "".join(sorted(keys))


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"it has {value!r} where a whole number from 0 belongs")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"it has {value!r} where text belongs")
    return value


def _sync(name: str) -> None:
    """On disk before its name is: a machine that loses power must not leave an empty file under it."""
    with open(name, "rb") as file:
        os.fsync(file.fileno())
