"""Weights by their name on the hub: `org/name`, `org/name@revision`, or one file, `org/name/path/file.pt@revision`.

huggingface_hub fetches, keeps and shows the progress; only the files that a model is made of are asked for.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pipeline.layouts import LORA_CONFIG, find_parts

_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>[\w./-]+))?")
TRANSFORMER = "transformer"
OTHER_PARTS = ("vae", "text", "tokenizer")
LISTING_SECONDS = 10.0


class HubName(NamedTuple):
    """`file` is "" for a whole repository, `revision` None for its main branch."""

    repository: str
    file: str
    revision: str | None

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        return f"{self.repository}{file}" + (f"@{self.revision}" if self.revision else "")


def parse_name(text: str) -> HubName | None:
    """None for what is no name on the hub: an absolute path, one that begins with a dot, one without a slash."""
    match = _NAME.fullmatch(text)
    if match is None or text.startswith((".", "/")) or ".." in text:
        return None
    return HubName(match["repository"], match["file"] or "", match["revision"])


def check_place(text: str, option: str) -> None:
    """Raise ValueError unless `text` is a folder, a file or a name on the hub; nothing is fetched."""
    if not Path(text).exists() and parse_name(text) is None:
        raise ValueError(
            f"there is no {text}; {option} takes a folder, a file, or a name on the hub, org/name[@revision]"
        )


def resolve(text: str | Path, parts: Iterable[str]) -> Path:
    """A path as it is; of a name on the hub the files of `parts` (fields of Layout) are fetched into the hub's cache.

    What is on disk comes first. Raises ValueError, with what would be right, where nothing of that name can be had.
    """
    if Path(text).exists():
        return Path(text)
    name = parse_name(str(text))
    if name is None:
        raise ValueError(f"there is no {text}: it is no folder, no file, and no name on the hub like org/name")
    return _fetched(name, tuple(parts))


def listed(name: HubName) -> list[str] | None:
    """The files of a repository on the hub, or None where it cannot be asked and may yet be in the cache.

    Raises ValueError for a repository or a revision that is not there or not open to us.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        found = HfApi().model_info(name.repository, revision=name.revision, timeout=LISTING_SECONDS)
        return [file.rfilename for file in found.siblings or ()]
    except GatedRepoError:
        raise ValueError(
            f"{name.repository} is gated: accept its terms on https://huggingface.co/{name.repository} and log in "
            "with `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise ValueError(f"{name.repository} has no revision {name.revision} on the hub") from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"there is no {name.repository}, neither here nor on the hub (a private one needs `hf auth login`)"
        ) from None
    except HFValidationError as error:
        raise ValueError(f"{name.repository} is no name on the hub: {error}") from None
    except Exception:  # no network, a proxy, a server that is down: whose class is that of the hub's HTTP client
        return None


def wanted_files(name: HubName, files: Iterable[str], parts: Iterable[str]) -> list[str]:
    """Those of a repository's files that `parts` are made of.

    Raises ValueError where there are none, where the named file is not there, and where several may be the model.
    """
    files, parts = list(files), tuple(parts)
    layout = find_parts(files)
    named = name.file if TRANSFORMER in parts else ""
    if named and named not in files:
        raise ValueError(f"{name.repository} has no file {named} on the hub")
    transformer = () if TRANSFORMER not in parts else (named,) if named else layout.transformer
    others = [file for part in parts if part != TRANSFORMER for file in getattr(layout, part)]
    if not transformer and (TRANSFORMER in parts or not others):
        raise ValueError(f"{name} holds no {' or '.join(parts)} in a layout that is known: {_some(files)}")
    pickles = [file for file in transformer if file.endswith(".pt")]
    if len(pickles) > 2 or (pickles and len(pickles) < len(transformer)):  # two may be a model and its LoRA
        listed = ", ".join(file for file in transformer if file.endswith((".pt", ".safetensors")))
        raise ValueError(f"{name} holds {listed}; name the one that is meant: {name.repository}/FILE")
    return [*transformer, *others]


def _some(files: list[str], most: int = 6) -> str:
    return ", ".join(files[:most]) + (f" and {len(files) - most} more" if len(files) > most else "")


def _fetched(name: HubName, parts: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    files = listed(name)
    if files is None:
        if (found := cached(name)) is not None:
            return found
        raise ValueError(f"the hub cannot be reached, and {name} is neither a path here nor in the hub's cache")
    wanted = wanted_files(name, files, parts)
    patterns = [_literal(file) for file in (*wanted, *_lora_configs(files, wanted))]
    try:
        folder = snapshot_download(name.repository, revision=name.revision, allow_patterns=patterns)
    except Exception as error:  # a full disk, a transfer that broke: some classes are those of the hub's HTTP client
        raise ValueError(f"{name} cannot be fetched from the hub: {_first_line(error)}") from None
    return Path(folder) / name.file


def _lora_configs(files: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """What tells the scale of a LoRA that is wanted."""
    folders = {Path(file).parent for file in wanted}
    return [file for file in files if Path(file).name == LORA_CONFIG and Path(file).parent in folders]


def cached(name: HubName) -> Path | None:
    """Where an earlier run put the files, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name.repository, revision=name.revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        if not (path := getattr(error, "snapshot_path", "")):
            return None
        folder = Path(path)  # the repository has more files than were asked for
    except (OSError, ValueError):  # no name that could be
        return None
    return folder / name.file if (folder / name.file).exists() else None


def _literal(file: str) -> str:
    """A pattern that only this name matches."""
    return re.sub(r"([*?\[])", r"[\1]", file)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
