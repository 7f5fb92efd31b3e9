"""The body of a request, within a time and a length."""

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException, Request
from starlette.requests import ClientDisconnect

SLACK_SECONDS, PACE = 10.0, 32 * 1024
"""Bytes a second that must come on average, once so much time has passed: a slow sender holds a place that is few."""


async def receive(request: Request, write: Callable[[bytes], Any], seconds: float, limit: int) -> None:
    """Hand what comes to `write`.

    Raises HTTPException: 413 for more than `limit` bytes, before any is read where the head says so, 408 for more than
    `seconds` or less than PACE, 400 when it ends early.
    """
    size, begun = 0, asyncio.get_running_loop().time()
    _check_size(_announced(request), limit)
    try:
        async with asyncio.timeout(min(seconds, SLACK_SECONDS)) as clock:
            async for part in request.stream():
                size += len(part)
                _check_size(size, limit)
                write(part)
                clock.reschedule(begun + min(seconds, SLACK_SECONDS + size / PACE))
    except TimeoutError:
        reason = f"the body did not come within {seconds:.0f} seconds, or not at {PACE // 1024} KiB a second"
        raise HTTPException(408, reason) from None
    except ClientDisconnect:  # no one is left to read this, and nothing went wrong here
        raise HTTPException(400, "the body was cut short") from None


def _announced(request: Request) -> int:
    """What the head says that the body's length is; 0 where it says none."""
    given = request.headers.get("content-length", "")
    return int(given[:18]) if given.isascii() and given.isdigit() else 0  # more digits are too many, however they go on


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise HTTPException(413, f"the body is too long; at most {limit} bytes are taken")


async def read(request: Request, seconds: float, limit: int) -> bytes:
    """All of it at once; raises as receive()."""
    body = bytearray()
    await receive(request, body.extend, seconds, limit)
    return bytes(body)
