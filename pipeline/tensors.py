"""Tensors in files, known by their headers until they are read.

A tensor is read when it is wanted and let go at once, so what lies in a file of any size never lies in memory whole.
"""

import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

MAPPED_BYTES = 64_000_000
INDEX = ".safetensors.index.json"
TRAINED_PARTS = ("generator_ema", "generator", "generator_lora")  # of a training run's .pt, the better one first
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Stored:
    """A tensor's header, and how to get at the tensor itself.

    read(device, reader) gives it in the dtype of the file, on whichever device costs least; it may be a view of the
    file, so copy what is kept. `file` is for messages.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | str
    file: Path
    read: "Callable[[torch.device, Reader], Tensor]"

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        return self.numel * (self.dtype.itemsize if isinstance(self.dtype, torch.dtype) else 1)

    @property
    def floats(self) -> bool:
        """Whether the numbers can be used as they are: 8-bit weights mean nothing without their scales."""
        return isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point and self.dtype.itemsize > 1


class Reader:
    """Opens files for one loading, and lets go of them whenever MAPPED_BYTES have been read.

    Opening costs milliseconds where a file has a thousand tensors, and what is read of an open file stays mapped.
    """

    def __init__(self) -> None:
        self._opened: dict[Path, safe_open | Mapping[str, Tensor]] = {}
        self._count = 0

    def tensor(self, file: Path, name: str) -> Tensor:
        """The tensor of that name, mapped from the file and in its dtype, on the CPU."""
        if file not in self._opened:
            self._opened[file] = safe_open(file, "pt") if file.suffix == ".safetensors" else _unpickled(file)
        opened = self._opened[file]
        tensor = opened[name] if isinstance(opened, Mapping) else opened.get_tensor(name)
        self._count += tensor.nbytes
        if self._count > MAPPED_BYTES:
            self._opened.clear()
            self._count = 0
        return tensor


def scan(files: Iterable[Path]) -> dict[str, Stored]:
    """The headers of all tensors in .safetensors, .pt and .pth files by name.

    Only tensors and plain containers are read from .pt and .pth, never code; from a training run's file the best
    of TRAINED_PARTS is taken. Raises ValueError that names the file which cannot be read, holds something other than
    tensors, or has a tensor that another file has too.
    """
    found: dict[str, Stored] = {}
    for file in files:
        part = _scan_safetensors(file) if file.suffix == ".safetensors" else _scan_pickle(file)
        if twice := sorted(part.keys() & found.keys()):
            raise ValueError(f"{twice[0]} is both in {found[twice[0]].file} and in {file}; keep one of the files")
        found |= part
    return found


def _scan_safetensors(file: Path) -> dict[str, Stored]:
    try:
        with safe_open(file, "pt") as opened:
            return {name: _header(file, name, opened.get_slice(name)) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read as weights: {error}") from error


def _header(file: Path, name: str, part) -> Stored:
    dtype = part.get_dtype()
    return Stored(tuple(part.get_shape()), _DTYPES.get(dtype, dtype), file, partial(_read, file, name))


def _read(file: Path, name: str, device: torch.device, reader: Reader) -> Tensor:
    return reader.tensor(file, name)


def _scan_pickle(file: Path) -> dict[str, Stored]:
    mapped = zipfile.is_zipfile(file)  # torch's files of before 1.6 are none: what is read of them is kept

    def read(name: str, tensor: Tensor) -> Callable[[torch.device, Reader], Tensor]:
        return partial(_read, file, name) if mapped else partial(_itself, tensor)

    return {name: Stored(tuple(t.shape), t.dtype, file, read(name, t)) for name, t in _unpickled(file).items()}


def _unpickled(file: Path) -> Mapping[str, Tensor]:
    """The tensors of a .pt or .pth, mapped rather than read where the file allows it."""
    content = _content(file)
    for part in TRAINED_PARTS:
        if isinstance(content, Mapping) and isinstance(content.get(part), Mapping):
            content = content[part]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(t, Tensor) for t in content.values()):
        raise ValueError(f"{file} holds no tensors of a model, nor {' or '.join(TRAINED_PARTS)}")
    return content


def _content(file: Path) -> object:
    try:
        return torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{file} cannot be read as weights: {error}") from error
    except Exception as error:  # torch raises pickle's errors, whose class depends on what the file holds
        raise ValueError(f"{file} is no file of tensors: {error}") from error


def _itself(tensor: Tensor, device: torch.device, reader: Reader) -> Tensor:
    return tensor


def shards(folder: Path) -> list[Path]:
    """The .safetensors files of a folder, as its index lists them if it has one.

    Raises ValueError for an index that cannot be read or lists a file that is not there.
    """
    indexes = sorted(folder.glob(f"*{INDEX}"))
    if not indexes:
        return sorted(folder.glob("*.safetensors"))
    names = indexed_files(indexes[0])
    if absent := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(f"{indexes[0]} lists files that are not there: {', '.join(absent)}")
    return [folder / name for name in names]


def indexed_files(index: Path) -> list[str]:
    """The names of the files that an index of safetensors lists. Raises ValueError when it is none."""
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index} is no index of safetensors: {error!r}") from error
