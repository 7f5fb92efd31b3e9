"""One session from the command line into a video file."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.chunk import Control, Ended, Session, SessionSpec
from pipeline.cues import Cue
from pipeline.engine import Engine
from pipeline.history import by_chunk
from pipeline.presets import Preset
from pipeline.steering import Steering
from pipeline.video_file import VideoFile, check_output


def generate(
    engine: Engine,
    start: SessionSpec | Session,
    frames: int,
    out: Path,
    progress: Callable[[int], None] = lambda frames: None,
    cues: Sequence[Cue] = (),
    save: Path | None = None,
) -> int:
    """Write `frames` video frames to `out` and return how many there are; a Session goes on where it was.

    A cue's frame counts from this run's first and takes effect at the chunk that makes it. Frames reach the file as
    their chunk is made, `progress` hears how many; Ctrl-C ends the run after the chunk in the making.
    `save` gets the session at the frame after the last one written, also when the run ends early. Raises ValueError for
    a file name, a number of frames or a session that cannot be, and for a file that the disk does not take.
    """
    check_output(out)
    if frames < 1:
        raise ValueError(f"{frames} frames were asked for; it must be at least 1")
    begin(engine, start)
    name, first = (start.spec.session, start.frame) if isinstance(start, Session) else (start.session, 0)
    written = 0
    try:
        size = engine.preset.height, engine.preset.width
        with VideoFile(out, engine.preset.fps, *size) as video, _unhurried() as hurried:
            for pictures in _pictures(engine, name, _held(start), first, frames, cues):
                video.write(pictures)
                written += len(pictures)
                progress(len(pictures))
                if hurried():
                    break
        if save is not None:
            at_frame(engine.snapshot(name), engine.preset, first + written).save(save)
    finally:
        engine.close(name)
    return written


def begin(engine: Engine, start: SessionSpec | Session) -> None:
    if isinstance(start, Session):
        engine.resume(start)
    else:
        engine.open(start)


def at_frame(data: Session, preset: Preset, frame: int) -> Session:
    """The session with `frame` frames shown: where a chunk was shown in part, that chunk is to be made once more."""
    chunk = preset.chunk_of(frame)
    if chunk == data.chunk:
        return replace(data, frame=frame)
    again = next((event for event in data.events if event.chunk == chunk), None)
    waiting = again and Control(data.held.sequence, again.keys, again.prompt)
    return replace(data.rewound(chunk, frame), waiting=waiting)


def walking_on(data: Session, preset: Preset, walk: Sequence[frozenset[str]]) -> Session:
    """The session with the keys of its next video frames recorded, after those of all that it has walked."""
    steering = Steering(preset, data.spec.seed, data.spec.script)
    walked: list[frozenset[str]] = []
    for _, event in by_chunk(data.events, data.chunk):
        steering.advance(event.keys)
        walked += steering.walked.keys
    shown = data.frame - preset.frames_until(data.chunk)
    script = (*walked, *[_held(data)] * shown, *walk)
    return replace(data, spec=replace(data.spec, script=script))


def _held(start: SessionSpec | Session) -> frozenset[str]:
    if isinstance(start, SessionSpec):
        return frozenset()
    return (start.waiting or start.held).keys


def _pictures(
    engine: Engine, session: str, keys: frozenset[str], first: int, frames: int, cues: Sequence[Cue]
) -> Iterator[np.ndarray]:
    """The session's pictures from its frame `first`, chunk by chunk. Raises ValueError when it ends before."""
    coming = list(cues)
    chunk, end = engine.preset.chunk_of(first), first + frames
    while (begins := engine.preset.frames_until(chunk)) < end:
        chunk += 1
        while coming and first + coming[0].frame < engine.preset.frames_until(chunk):
            cue = coming.pop(0)
            keys = keys if cue.keys is None else cue.keys
            engine.control(session, Control(keys=keys, prompt=cue.prompt))
        (result,) = engine.step([session])
        if isinstance(result, Ended):
            raise ValueError(result.reason)
        yield result.frames[max(0, first - begins) : end - begins]


@contextlib.contextmanager
def _unhurried() -> Iterator[Callable[[], bool]]:
    """Within it the first Ctrl-C is only noted, so that the chunk in the making is finished and the session whole.

    Yields what says whether it came; the second one ends all at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed: list[int] = []

    def note(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
