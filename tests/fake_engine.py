"""An engine without a model: a bar that the keys move over a colour that the prompt chooses, or a picture's corner."""

import ctypes
import io
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.chunk import Chunk, Control, Ended, Event, Session, SessionSpec, World, WorldFull

WIDTH, HEIGHT, FPS, CHUNK_FRAMES = 160, 96, 16, 4
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


class Ready:
    """A chunk that nobody has to wait for; under the prompt "spoil" it is broken, under "burst" it raises. With
    `part_seconds` its frames come two at a time, so long after each other."""

    def __init__(self, chunk: Chunk, part_seconds: float = 0.0):
        self.session, self.frames, self._chunk = chunk.session, len(chunk.frames), chunk
        self._part_seconds = part_seconds

    def arriving(self):
        if "spoil" in self._chunk.scene:
            yield Ended(self.session, "the paint has run")
            return
        if "burst" in self._chunk.scene:
            raise RuntimeError("out of canvas")
        if not self._part_seconds:
            yield self._chunk
            return
        for first in range(0, self.frames, 2):
            frames, more = self._chunk.frames[first : first + 2], first + 2 < self.frames
            yield replace(self._chunk, first_frame=self._chunk.first_frame + first, frames=frames, more=more)
            time.sleep(self._part_seconds * more)


class FakeEngine:
    """Draws as the contract of pipeline.engine.Engine says; some prompts break it as an engine may break.

    "die" kills the process in its next step, "hang" never returns, "seize" neither and lets no other thread run,
    "ponder" takes its time, "explode" raises, "starve" has no memory left, "blurt" and more raises with its words,
    "stop" ends its session, "rot" has nothing that can be kept. The latents of a chunk are where the bar is after it.
    """

    def __init__(
        self,
        slots=2,
        schedule="turns",
        seconds=0.0,
        load_seconds=0.0,
        fail="",
        spin_at=-1,
        image="optional",
        part_seconds=0.0,
        names_pictures=False,
    ):
        size, self.part_seconds = (WIDTH, HEIGHT, FPS), part_seconds
        told = {"image": image, "names_pictures": names_pictures}
        self.world = World("fake", *size, slots, CHUNK_FRAMES, CHUNK_FRAMES, (0.01, 0.02), schedule, **told)
        self.seconds, self.load_seconds, self.fail, self.spin_at = seconds, load_seconds, fail, spin_at
        self.sessions: dict[str, dict] = {}

    def prewarm(self, progress, before=None):
        if self.fail:
            raise ValueError(self.fail)
        progress(1, 2)
        time.sleep(self.load_seconds)
        self.world = before or self.world
        return self.world

    def open(self, spec: SessionSpec):
        if len(self.sessions) == self.world.slots:
            raise WorldFull
        if spec.prompt == "refuse":
            raise ValueError("this prompt is refused")
        if spec.image is None and self.world.image == "required":
            raise ValueError("there is no picture")
        self.sessions[spec.session] = {
            "spec": spec,
            "prompt": spec.prompt,
            "control": Control(),
            "frame": 0,
            "x": spec.seed % WIDTH,
            "after": [],
            "events": [],
        }

    def snapshot(self, session: str, chunks=None):
        if session not in self.sessions or self.sessions[session]["prompt"] == "rot":
            raise ValueError(f"{session} cannot be kept")
        state = self.sessions[session]
        after = np.array(state["after"], np.float32).reshape(-1, 1, 1, 1, 1)
        made = state["frame"] // CHUNK_FRAMES
        events = tuple({event.chunk: event for event in state["events"]}.values())
        first = np.empty((0, 1, 1, 1, 1), np.float32)
        held = replace(state["control"], prompt=None)
        kept = after if chunks is None else after[-max(1, chunks) :]
        waiting = state["control"] if state["control"].prompt else None
        return Session("fake", state["spec"], made, state["frame"], events, first, kept, held, waiting)

    def resume(self, data: Session, name=None, windows=None):
        if data.preset != "fake":
            raise ValueError(f"the session is of the preset {data.preset}; this engine runs fake")
        self.open(replace(data.spec, session=name or data.spec.session))
        state = self.sessions[name or data.spec.session]
        prompts = [event.prompt for event in data.events if event.prompt]
        after = [0] * data.oldest + [int(each) for each in data.latents.ravel()]
        state.update(frame=data.chunk * CHUNK_FRAMES, events=list(data.events), control=data.waiting or data.held)
        state.update(prompt=[data.spec.prompt, *prompts][-1], after=after, x=[state["x"], *after][-1])

    def rewind(self, session: str, chunk: int, windows=None):
        data = self.snapshot(session).rewound(chunk, chunk * CHUNK_FRAMES)
        self.close(session)
        self.resume(data)

    def control(self, session: str, control: Control):
        state = self.sessions[session]
        state["control"] = state["control"].then(control)

    def close(self, session: str):
        self.sessions.pop(session, None)

    def begin(self, sessions=None):
        made = [self._chunk(session) for session in (list(self.sessions) if sessions is None else sessions)]
        return [each if isinstance(each, Ended) else Ready(each, self.part_seconds) for each in made]

    def wait(self):
        pass

    def _chunk(self, session: str):
        state = self.sessions[session]
        control = state["control"]
        state["prompt"] = control.prompt or state["prompt"]
        if control.prompt:
            state["events"].append(Event(state["frame"] // CHUNK_FRAMES, control.keys, control.prompt))
        state["control"] = replace(control, prompt=None)
        self._break_if_told(state["prompt"])
        if state["prompt"] == "stop":
            self.close(session)
            return Ended(session, "the engine gave up this session")
        time.sleep(self.seconds)
        if state["frame"] == self.spin_at * CHUNK_FRAMES:
            spin(3600)
        speed = 4 * (("l" in control.keys) - ("j" in control.keys)) + 1
        first, state["frame"] = state["frame"], state["frame"] + CHUNK_FRAMES
        frames = np.stack([self._draw(state, speed) for _ in range(CHUNK_FRAMES)])
        state["after"].append(state["x"])
        words = tuple(word for word in state["prompt"].split() if word not in COLOURS)
        seconds = {"total": self.seconds}
        return Chunk(
            session, first // CHUNK_FRAMES, first, frames, control.sequence, f"a {state['prompt']} bar", words, seconds
        )

    def _draw(self, state, speed):
        state["x"] = (state["x"] + speed) % WIDTH
        frame = np.empty((HEIGHT, WIDTH, 3), np.uint8)
        frame[:] = corner(state["spec"].image) or COLOURS.get(state["prompt"].split()[0], (90, 90, 90))
        frame[:, state["x"] : state["x"] + 12] = 250
        return frame

    def _break_if_told(self, prompt: str):
        if prompt == "die":
            os._exit(3)
        if prompt == "hang":
            time.sleep(3600)
        if prompt == "seize":
            ctypes.PyDLL(None).sleep(3600)  # with the interpreter's lock
        if prompt == "ponder":
            spin(2.5)
        if prompt == "explode":
            raise RuntimeError("out of paint")
        if prompt == "starve":
            raise MemoryError("CUDA out of memory")
        if prompt.startswith("blurt"):
            raise RuntimeError(f"cannot draw {prompt!r}")


def spin(seconds):
    """Be busy for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def corner(picture):
    """The colour of a picture's first pixel; the picture must have the world's size, as the server makes it."""
    if picture is None:
        return None
    from PIL import Image  # here, for most engines draw none, and each is a process of its own

    image = Image.open(io.BytesIO(picture))
    assert image.size == (WIDTH, HEIGHT), image.size
    return image.getpixel((0, 0))


def build(**options):
    """The factory that a Worker is given: "fake_engine:build"."""
    return FakeEngine(**options)


def build_fewer(starts, slots):
    """Each start finds a slot less, as on a machine that grows busy; the file `starts` counts them."""
    counted = Path(starts)
    before = len(counted.read_text()) if counted.exists() else 0
    counted.write_text("x" * (before + 1))
    return FakeEngine(slots - before)
