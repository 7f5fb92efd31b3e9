"""Where compiled code is kept on disk, so that the second start of a process compiles nothing.

In the folders that TORCHINDUCTOR_CACHE_DIR, TRITON_CACHE_DIR and FLASH_ATTENTION_CUTE_DSL_CACHE_DIR name, else in
chunkcast/compiled of the user's cache folder (XDG_CACHE_HOME, ~/.cache).
"""

import os
from pathlib import Path


def keep_on_disk() -> Path:
    """Tell torch, Triton and flash-attn 4 unless they have been told; they settle on a folder when first used.

    Returns torch's. flash-attn 4 fails where it cannot write, so there it compiles at each start.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chunkcast" / "compiled"
    flash = Path(os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", str(caches / "flash-attn")))
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", str(int(_can_be_written(flash))))
    compiled = os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(caches))
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path(compiled) / "triton"))
    return Path(compiled)


def _can_be_written(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
