"""The presets that there are, asked for once, in a process of its own: to know them takes torch and some seconds."""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "stream", "presets", "--json")
CATALOGUE_SECONDS = 120.0
_NICE = 10
"""Nobody who watches a world must notice that somebody asks for the others."""


class Catalogue:
    """What `command` prints: a JSON list of presets, as pipeline.catalogue has it."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._asking = asyncio.Lock()
        self._known: list[dict[str, Any]] | None = None

    async def read(self) -> list[dict[str, Any]]:
        """All presets; the first time takes seconds. Raises OSError with a sentence when they cannot be had."""
        async with self._asking:
            if self._known is None:
                self._known = await self._ask()
            return self._known

    async def _ask(self) -> list[dict[str, Any]]:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*self._command, stdout=pipe, stderr=pipe, cwd=_ROOT)
        try:
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
            printed, said = await asyncio.wait_for(process.communicate(), CATALOGUE_SECONDS)
        except TimeoutError:
            raise OSError("the list of presets takes too long") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        if process.returncode:
            log.error("the list of presets cannot be had: %s", said.decode(errors="replace").strip()[-2000:])
            raise OSError("the list of presets cannot be had; the server's log says why")
        return json.loads(printed)
