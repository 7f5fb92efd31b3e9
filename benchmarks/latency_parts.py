"""The arithmetic of benchmarks/latency.py: from what a page and the server noted to the parts of each press.

Times of a page are ms of its performance.now(), those of the server seconds of its time.monotonic(); `offset` is how
many ms the server's clock is ahead of a page's. A band (H, W) is a part of a displayed picture in grey.
"""

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stream.mark import FRAME_BITS, SEQUENCE_BITS, rows
from stream.trace import FrameTimes

PARTS = (
    "to_server",
    "boundary",
    "denoise",
    "decode",
    "hand_over",
    "queue",
    "encode",
    "network",
    "jitter_buffer",
    "browser_decode",
    "display",
)
GENERATOR = ("boundary", "denoise", "decode")
TURNS = {"l": -1, "j": 1}
"""Where the picture moves when the viewer turns: right makes it move left."""
REACH = 24
"""Columns of a band that a picture may move from frame to frame."""
STRATA = 10
"""Few presses at random moments would by chance be too often at good ones."""
FREEZE_FRAMES, FREEZE_SECONDS = 3, 0.150
"""As in WebRTC's statistics: a freeze is a gap of 3 frames, or of 150 ms more than a frame, whichever is longer."""


class Shown(NamedTuple):
    """A frame on a page: what its mark says (None where it could not be read) and, in ms of the page, when it was
    presented, was to be displayed, and its last packet was received (None where the page does not know), how long
    the browser decoded it, its RTP timestamp, and how many frames had been presented with it. (A page that is busy is
    not told of every one.)"""

    frame: int | None
    chunk: int | None
    sequence: int | None
    presented: float
    displayed: float
    received: float | None
    decoding: float
    rtp: int | None
    count: int


class Press(NamedTuple):
    """A key that went down, in ms of the page, and the message that said so."""

    key: str
    at: float
    sequence: int


def moments(count: int, chance: random.Random) -> list[float]:
    """So many random moments of a chunk, 0 to 1: of each STRATA in a row one falls into each part of it."""
    found: list[float] = []
    while len(found) < count:
        found += [(part + chance.random()) / STRATA for part in chance.sample(range(STRATA), STRATA)]
    return found[:count]


def presses(keys: Iterable[Sequence[Any]], sent: Iterable[Sequence[Any]]) -> list[Press]:
    """The presses among what a page noted: each with the first message after it that holds this key alone."""
    messages = [(sequence, held, at) for kind, sequence, held, _, at in sent if kind == "keys"]
    found = []
    for key, at in keys:
        after = (sequence for sequence, held, when in messages if when >= at - 1 and held == key)
        if key in TURNS and (sequence := next(after, None)) is not None:
            found.append(Press(key, at, sequence))
    return found


def reached(sequence: int, target: int) -> bool:
    """Whether a mark's sequence number, which wraps, is that of `target` or a later one."""
    return (sequence - target) % 2**SEQUENCE_BITS < 2 ** (SEQUENCE_BITS - 1)


def answer(shown: Sequence[Shown], press: Press) -> int | None:
    """The index of the first frame displayed after a press whose mark obeys it."""
    for index, frame in enumerate(shown):
        if frame.displayed > press.at and frame.sequence is not None and reached(frame.sequence, press.sequence):
            return index
    return None


def split(press: Press, came: float, way: FrameTimes, shown: Shown, offset: float) -> dict[str, float]:
    """The parts of a press in ms, from the key to the screen; they follow each other without a gap.

    `way` is one of by_frame().
    Where the engine does not say how long it decoded, handing over is in "decode"; where the page does not know when a
    frame was received, all from the server to the screen's queue is in "network".
    """
    sent = 1000 * way.sent - offset
    received = shown.presented - shown.decoding if shown.received is None else shown.received
    behind = 1000 * (way.arrived - way.begun - way.denoise)
    decode = behind if way.decode is None else 1000 * way.decode
    return {
        "to_server": 1000 * came - offset - press.at,
        "boundary": 1000 * (way.begun - came),
        "denoise": 1000 * way.denoise,
        "decode": decode,
        "hand_over": behind - decode,
        "queue": 1000 * (way.took - way.arrived),
        "encode": 1000 * (way.sent - way.took),
        "network": received - sent,
        "jitter_buffer": shown.presented - shown.decoding - received,
        "browser_decode": shown.decoding,
        "display": shown.displayed - shown.presented,
    }


def by_frame(ways: Iterable[FrameTimes]) -> dict[tuple[str, int], FrameTimes]:
    """Frames' ways by the session's name and the frame's number as a mark has it.

    Of a chunk that came in parts the last one says how long denoising took.
    """
    ways = list(ways)
    denoise = {(way.run, way.chunk): way.denoise for way in ways if way.denoise is not None}
    told = [way._replace(denoise=denoise.get((way.run, way.chunk), 0.0)) for way in ways]
    return {(way.run.partition(".")[0], way.frame % 2**FRAME_BITS): way for way in told}


# The picture itself.


def sideways(before: np.ndarray, after: np.ndarray) -> int:
    """By how many columns the picture moved, positive to the right: where the two bands agree best."""
    one, other = (band - band.mean(1, keepdims=True) for band in (before.astype(np.float32), after.astype(np.float32)))
    width = one.shape[1]

    def agreement(shift: int) -> float:
        here, there = one[:, max(0, -shift) : width - max(0, shift)], other[:, max(0, shift) : width - max(0, -shift)]
        return float((here * there).sum() / np.sqrt((here**2).sum() * (there**2).sum() + 1e-6))

    return max(range(-REACH, REACH + 1), key=lambda shift: (agreement(shift), -abs(shift)))


def turn(bands: Sequence[np.ndarray], first: int, last: int, direction: int) -> int | None:
    """The index of the first frame from `first` to `last` from which on the picture moves in `direction` (-1, 1), two
    frames in a row; None where it does not."""
    signs = {}
    for index in range(max(1, first), min(last + 2, len(bands))):
        signs[index] = np.sign(sideways(bands[index - 1], bands[index]))
    turned = [index for index in signs if signs[index] == direction and signs.get(index + 1) == direction]
    return turned[0] if turned else None


def agreement(distances: Sequence[int | None]) -> dict[str, Any]:
    """How the two ways to find the answer compare: `distances` in frames between them, None where the picture alone
    could not tell."""
    told = [abs(distance) for distance in distances if distance is not None]
    return {
        "presses": len(distances),
        "told": len(told),
        "same_frame": sum(distance == 0 for distance in told),
        "within_a_frame": sum(distance <= 1 for distance in told),
    }


def likeness(seen: np.ndarray, sent: bytes) -> float:
    """PSNR in dB of a picture in grey (H, W) against the RGB bytes of the frame that was sent, below the mark."""
    height, width = seen.shape
    red, green, blue = np.moveaxis(np.frombuffer(sent, np.uint8).reshape(height, width, 3).astype(np.int32), 2, 0)
    below = rows(width)
    error = ((red + 2 * green + blue >> 2) - seen.astype(np.int32))[below:]
    return float(10 * np.log10(255**2 / max(1e-9, float(np.mean(error**2)))))


# Many of them.


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """p50, p90, p99 and the mean, rounded to 0.1; None of nothing."""
    if not len(values):
        return None
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    named = {"p50": p50, "p90": p90, "p99": p99, "mean": np.mean(values)}
    return {name: round(float(value), 1) for name, value in named.items()}


def evenness(shown: Sequence[Shown], fps: int, seconds: float) -> dict[str, Any]:
    """Frames/s of one page over `seconds`, the gaps between its frames in ms, and its freezes.

    Frames that the page was not told of count as evenly spread between those before and after.
    """
    steps = [max(1, after.count - before.count) for before, after in itertools.pairwise(shown)]
    wholes = [after.displayed - before.displayed for before, after in itertools.pairwise(shown)]
    gaps = np.repeat(np.divide(wholes, steps), steps) if steps else np.empty(0)
    limit = 1000 * max(FREEZE_FRAMES / fps, 1 / fps + FREEZE_SECONDS)
    freezes = gaps[gaps > limit]
    return {
        "frames_a_second": round((len(gaps) + (len(shown) > 0)) / seconds, 2),
        "not_told": len(gaps) - len(steps),
        "gap_ms": spread(gaps),
        "longest_gap_ms": round(float(gaps.max()), 1) if len(gaps) else None,
        "freezes": len(freezes),
        "freeze_seconds": round(float(freezes.sum()) / 1000, 2),
    }


def phases(pressed: Sequence[float], starts: Sequence[float], period: float) -> list[int]:
    """How many presses fall into each quarter of a chunk's `period`, from when its first frame left. All in seconds."""
    starts = np.sort(np.asarray(starts))
    quarters = [0, 0, 0, 0]
    for at in pressed:
        before = starts[starts <= at]
        if len(before):
            quarters[int(4 * ((at - before[-1]) / period % 1.0))] += 1
    return quarters


def add_up(parts: Sequence[Mapping[str, float]], wholes: Sequence[float]) -> dict[str, Any]:
    """How far the parts of a press are from the whole that the page measured, at most, in ms; and which parts are below
    zero by more than a millisecond, how often, and the least of them: if those of all presses are, a clock is off."""
    differences = [abs(sum(each.values()) - whole) for each, whole in zip(parts, wholes, strict=True)]
    below = {name: [each[name] for each in parts if each[name] < -1] for name in PARTS}
    negative = {name: {"times": len(few), "least_ms": round(min(few), 1)} for name, few in below.items() if few}
    return {"most_off_ms": round(max(differences, default=0.0), 3), "negative_parts": negative}
