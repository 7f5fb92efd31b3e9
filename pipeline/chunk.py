"""The plain data that crosses between the engine and the viewers' side. No torch here.

Frames are numpy arrays (frames, height, width, 3), uint8, RGB.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

KEYS = frozenset("wasdijkl")
"""W A S D walk forward, left, back, right; I K look up, down; J L turn left, right."""

MAX_PROMPT_CHARACTERS = 2000
MAX_SEED = 2**63 - 1
MAX_WALK_FRAMES = 100_000
PICTURES = ("none", "optional", "required")
"""Whether a world begins with a viewer's picture: it takes none, it may, or it cannot begin without one."""


@dataclass(frozen=True)
class World:
    """What an engine that is ready offers: sizes in pixels, rates in frames a second.

    `slots` is how many sessions may be live at once: what was asked for or what prewarm found the
    machine to carry, whichever is less; `limit` says in a sentence why it is less, else is empty.
    `chunk_seconds` is the measured least time of one chunk for 1, 2, ... live slots. `resume_chunks` is how many of
    a session's newest chunks must be kept to go on with it at once, `kept_chunks` how many a live one keeps, 0 for all.
    `image` is one of PICTURES, `camera` whether keys move it; `names_pictures` says that it tells by itself what a
    picture shows, so that a session with one needs no prompt.
    """

    preset: str
    width: int
    height: int
    fps: int
    slots: int
    chunk_frames: int
    first_chunk_frames: int
    chunk_seconds: tuple[float, ...] = ()
    schedule: str = "turns"
    limit: str = ""
    resume_chunks: int = 0
    kept_chunks: int = 0
    image: str = "none"
    camera: bool = True
    names_pictures: bool = False


@dataclass(frozen=True)
class SessionSpec:
    """Everything a session starts from; with the controls that follow it determines every frame.

    `image` is an encoded picture (PNG, JPEG, WebP) that becomes the first frame, or None. With one `prompt` may be
    empty, where the world names pictures: then it is what the picture shows. `script` is a recorded walk: the keys
    held in each video frame from the first; while it lasts it stands in for the keys of the controls.
    """

    session: str
    prompt: str
    seed: int
    image: bytes | None = None
    script: tuple[frozenset[str], ...] = ()

    def __post_init__(self) -> None:
        if self.prompt != "" or self.image is None:
            check_prompt(self.prompt)
        check_seed(self.seed)
        check_keys(frozenset().union(*self.script))


@dataclass(frozen=True)
class Control:
    """What a viewer holds down now, and a new prompt or None for "as before".

    `sequence` is the number of the newest message that this state includes; the chunk that obeys
    it carries the same number.
    """

    sequence: int = 0
    keys: frozenset[str] = frozenset()
    prompt: str | None = None

    def __post_init__(self) -> None:
        check_keys(self.keys)
        if self.prompt is not None:
            check_prompt(self.prompt)

    def then(self, newer: "Control") -> "Control":
        """The control that replaces this one while its chunk has not begun: newest of everything."""
        prompt = self.prompt if newer.prompt is None else newer.prompt
        return Control(max(self.sequence, newer.sequence), newer.keys, prompt)


@dataclass(frozen=True)
class Event:
    """What changed before a chunk was made: the keys held from there on, and a new prompt or None.

    `rewrites` is how many chunks of the past were written anew under that prompt before each chunk from there on,
    0 where the past stayed as it was.
    """

    chunk: int
    keys: frozenset[str] = frozenset()
    prompt: str | None = None
    rewrites: int = 0

    def __post_init__(self) -> None:
        Control(keys=self.keys, prompt=self.prompt)
        if self.chunk < 0 or self.rewrites < 0:
            raise ValueError(f"an event counts from 0: chunk {self.chunk}, rewrites {self.rewrites}")


@dataclass(frozen=True, eq=False)
class Session:
    """A session as its history: all that an engine of the same preset needs to go on with it.

    `chunk` chunks were made and `frame` video frames of them were shown. `events` rise by chunk and are the whole
    history; `latents` (chunks, C, T, h, w) float32 are the clean latents of the newest chunks, `first` those of the
    stream's first chunks, which a preset with a sink sees for ever. `held` is the control in force, `waiting` one that
    no chunk obeys yet. Raises ValueError where that does not fit together.
    """

    preset: str
    spec: SessionSpec
    chunk: int
    frame: int
    events: tuple[Event, ...]
    first: np.ndarray
    latents: np.ndarray
    held: Control = field(default_factory=Control)
    waiting: Control | None = None

    def __post_init__(self) -> None:
        if self.chunk < 0 or self.frame < 0:
            raise ValueError(f"a session counts from 0: chunk {self.chunk}, frame {self.frame}")
        if self.latents.ndim != 5 or self.first.shape[1:] != self.latents.shape[1:]:
            raise ValueError(f"the latents are {self.latents.shape} and {self.first.shape}; (chunks, C, T, h, w) fit")
        if max(len(self.first), len(self.latents)) > self.chunk:
            raise ValueError(f"there are latents of {len(self.latents)} chunks, and {self.chunk} were made")
        chunks = [event.chunk for event in self.events]
        if chunks != sorted(set(chunks)) or (chunks and chunks[-1] >= self.chunk):
            raise ValueError("the events must rise by chunk and be of chunks that were made")

    @property
    def oldest(self) -> int:
        """The first chunk from which on all latents are kept."""
        return self.chunk - len(self.latents)

    def rewound(self, chunk: int, frame: int) -> "Session":
        """The session as it was when `chunk` chunks, of `frame` video frames in all, had been made.

        Raises ValueError for a chunk that has not been made.
        """
        if not 0 <= chunk <= self.chunk:
            raise ValueError(
                f"the session has {self.chunk} chunks; it can go back to 0 up to {self.chunk}, not {chunk}"
            )
        events = tuple(event for event in self.events if event.chunk < chunk)
        keys = events[-1].keys if events else frozenset()
        return replace(
            self,
            chunk=chunk,
            frame=frame,
            events=events,
            first=self.first[:chunk],
            latents=self.latents[: max(0, chunk - self.oldest)],
            held=Control(self.held.sequence, keys),
            waiting=None,
        )

    def save(self, path: Path) -> None:
        """Write a file that load() reads; the one that was there stays whole until the new one is complete."""
        from pipeline.session_file import write

        write(self, path)

    @staticmethod
    def load(path: Path) -> "Session":
        """Raises ValueError that names the file when it is none of ours, damaged, or of a newer version."""
        from pipeline.session_file import read

        return read(path)


@dataclass(frozen=True, eq=False)
class Chunk:
    """One chunk of one session, ready to show.

    `begun` is when its making began and the control was read, by time.monotonic().
    `first_frame` counts the session's video frames from 0, `sequence` is the newest control that
    the chunk obeys, `scene` is how the prompt was understood and `unknown_words` what was not; `guessed_words` are
    words of it that no one listed, each with what it was taken for;
    `seconds` is the time by stage ("prepare", "denoise", "decode", and "total" of it all). With `more` others of its
    frames follow, in chunks of the same `index`, and `seconds` with the last of them. `early` is how many seconds
    before its own time it was begun, for others' sake.
    """

    session: str
    index: int
    first_frame: int
    frames: np.ndarray
    sequence: int = 0
    scene: str = ""
    unknown_words: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    begun: float = field(default=0.0, kw_only=True)
    guessed_words: tuple[tuple[str, str], ...] = ()
    more: bool = False
    early: float = 0.0


NO_FRAMES = np.empty((0, 0, 0, 3), np.uint8)


@dataclass(frozen=True)
class Ended:
    """The engine gave up one session; `reason` is a sentence for its viewer."""

    session: str
    reason: str


class Pending(Protocol):
    """A chunk that is being made; `frames` is how many video frames it will have."""

    @property
    def session(self) -> str: ...
    @property
    def frames(self) -> int: ...

    def arriving(self) -> Iterator[Chunk | Ended]:
        """The chunk's frames as they come, at least one part, the last one without `more`; or at last why it cannot be.

        Waits for the device. Any thread may call.
        """


class WorldFull(Exception):
    """Every slot is taken; the caller keeps the viewer in line."""


def check_prompt(prompt: str) -> None:
    """Raise ValueError unless 1 <= length <= MAX_PROMPT_CHARACTERS and something but space is in it."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("the prompt is empty: say in a few words what to see, such as 'a snowy forest at night'")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise ValueError(f"the prompt has {len(prompt)} characters; at most {MAX_PROMPT_CHARACTERS} are taken")


def check_seed(seed: int) -> None:
    """Raise ValueError unless `seed` is an int with 0 <= seed <= MAX_SEED."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED:
        raise ValueError(f"the seed is {seed!r}; it must be a whole number from 0 to {MAX_SEED}")


def check_keys(keys: frozenset[str]) -> None:
    """Raise ValueError naming the keys that do not exist and those that do."""
    unknown = sorted(str(key) for key in set(keys) - KEYS)
    if unknown:
        raise ValueError(f"no such key: {', '.join(unknown)[:60]}; the keys are {' '.join(sorted(KEYS))}")


def parse_keys(walk: str) -> tuple[frozenset[str], ...]:
    """The keys held in each video frame of a walk such as `w-48,wl-24,none-10`: keys, a dash, for how many frames.

    Empty for an empty one. Raises ValueError with the part that is not understood and what would be right.
    """
    held: list[frozenset[str]] = []
    for part in walk.split(",") if walk.strip() else ():
        match = re.fullmatch(r"\s*(\w+)-([0-9]{1,6})\s*", part)
        if match is None or int(match[2]) == 0:
            raise ValueError(f"{part.strip()!r} is no part of a walk; write keys and frames, such as w-48,none-10")
        keys = frozenset() if match[1] == "none" else frozenset(match[1])
        check_keys(keys)
        if len(held) + int(match[2]) > MAX_WALK_FRAMES:
            raise ValueError(f"the walk is longer than {MAX_WALK_FRAMES} video frames; write a shorter one")
        held += [keys] * int(match[2])
    return tuple(held)
