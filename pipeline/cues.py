"""The script of a run: what changes at which video frame, as a JSON file. No torch. docs/sessions.md has examples."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.chunk import check_keys, check_prompt

FIELDS = ("frame", "prompt", "keys")


class Cue(NamedTuple):
    """What changes at a video frame of a run: the keys held from there on, and the prompt; None for "as before"."""

    frame: int
    keys: frozenset[str] | None = None
    prompt: str | None = None


def read_cues(path: Path) -> tuple[Cue, ...]:
    """The cues of a script file. Raises ValueError that names the file, the event and what would be right."""
    try:
        events = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ValueError(f"there is no script {path}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(events, list):
        raise ValueError(f'{path} must be a list of events such as {{"frame": 0, "prompt": "a desert", "keys": "w"}}')
    cues: list[Cue] = []
    for number, event in enumerate(events):
        try:
            cues.append(_cue(event))
            if len(cues) > 1 and cues[-1].frame <= cues[-2].frame:
                raise ValueError(f"its frame is {cues[-1].frame}, after {cues[-2].frame}; frames must rise")
        except ValueError as error:
            raise ValueError(f"{path}, event {number}: {error}") from None
    return tuple(cues)


def _cue(event: Any) -> Cue:
    if not isinstance(event, dict):
        raise ValueError(f"it is {event!r}; it must be an object with the fields {', '.join(FIELDS)}")
    if unknown := sorted(set(event) - set(FIELDS)):
        raise ValueError(f"unknown field {', '.join(unknown)}; the fields are {', '.join(FIELDS)}")
    frame, prompt, keys = (event.get(name) for name in FIELDS)
    if not isinstance(frame, int) or isinstance(frame, bool) or frame < 0:
        raise ValueError(f"its frame is {frame!r}; it must be a whole number from 0")
    if prompt is None and keys is None:
        raise ValueError("it changes nothing: give it a prompt, keys, or both")
    if prompt is not None:
        check_prompt(prompt)
    return Cue(frame, None if keys is None else _held(keys), prompt)


def _held(keys: Any) -> frozenset[str]:
    if not isinstance(keys, str):
        raise ValueError(f'its keys are {keys!r}; write them together, such as "wl", and "none" for no key')
    held = frozenset() if keys == "none" else frozenset(keys)
    check_keys(held)
    return held
