"""Words to a scene of the small world, and back to one sentence that says how they were understood. No torch.

A scene has four attributes: place, things, hour and weather. A prompt names some of them in its own words; the rest
has a default, or stays what it was where a prompt follows another.
"""

import re
from typing import NamedTuple

from pipeline.tiny.landscape import HOURS, PLACES, WEATHERS
from pipeline.tiny.vocabulary import (
    FILLERS,
    LISTED,
    LONGEST_PHRASE,
    NEGATIONS,
    VALUES,
    Meaning,
    learnt,
    singular,
)


class Scene(NamedTuple):
    """Indexes into PLACES, OVERRIDES (1 is the first, 0 the place's own things), HOURS and WEATHERS."""

    place: int
    thing: int
    hour: int
    weather: int


class Understood(NamedTuple):
    """A prompt as a complete scene; its words that mean nothing here; and those that were understood without being
    listed, each with what it was taken for, such as ("clover", "meadow"). Each word once, in the prompt's order; a
    guess that the scene does not show, for it was denied or another word came after it, is left out."""

    scene: Scene
    unknown: tuple[str, ...]
    guessed: tuple[tuple[str, str], ...] = ()


DEFAULT = Scene(
    place=list(PLACES).index("meadow"), thing=0, hour=list(HOURS).index("day"), weather=list(WEATHERS).index("clear")
)
_NOT_DEFAULT = Scene(
    place=list(PLACES).index("desert"), thing=0, hour=list(HOURS).index("night"), weather=list(WEATHERS).index("clouds")
)
"""What is shown where the default is denied."""

_SENTENCE_PLACES = {
    "meadow": "a green meadow",
    "desert": "a desert",
    "forest": "a snowy forest",
    "canyon": "a red canyon",
    "glade": "a mushroom glade",
    "garden": "a lantern garden",
    "shore": "a sandy shore",
    "lava": "a lava field",
}
_SENTENCE_THINGS = ("trees", "pines", "columns", "cacti", "crystals", "mushrooms", "lanterns", "boulders")
_SENTENCE_HOURS = {"dawn": "at dawn", "day": "by day", "dusk": "at dusk", "night": "at night"}
_SENTENCE_WEATHERS = {"clear": "clear sky", "clouds": "clouds", "fog": "fog", "rain": "rain", "snow": "snowfall"}


def understand(prompt: str, rest: Scene = DEFAULT) -> Understood:
    """The scene of a prompt; what it does not name is as in `rest`.

    Of two words for one attribute a listed one counts before a guess, and the later one of two of a kind.
    """
    read = _read(prompt)
    scene = _complete(read, rest)
    shown = {word: meaning for word, meaning in read.guessed.items() if getattr(scene, meaning[0]) == meaning[1]}
    return Understood(scene, tuple(read.unknown), tuple((word, name(meaning)) for word, meaning in shown.items()))


def sentence(scene: Scene) -> str:
    """What `scene` shows, such as "a snowy forest with crystals at night, fog"; understanding it gives `scene` again.

    Raises IndexError for an index outside the tables.
    """
    place, thing, hour, weather = scene
    things = f" with {_SENTENCE_THINGS[thing - 1]}" if thing else ""
    where, when = _SENTENCE_PLACES[list(PLACES)[place]], _SENTENCE_HOURS[list(HOURS)[hour]]
    return f"{where}{things} {when}, {_SENTENCE_WEATHERS[list(WEATHERS)[weather]]}"


def name(meaning: Meaning) -> str:
    """A meaning as a viewer reads it: "a snowy forest", "pines", "at night", "fog"."""
    attribute, index = meaning
    value = VALUES[attribute][index]
    if attribute == "thing":
        return _SENTENCE_THINGS[index - 1]
    return {"place": _SENTENCE_PLACES, "hour": _SENTENCE_HOURS, "weather": _SENTENCE_WEATHERS}[attribute][value]


def vocabulary() -> dict[tuple[str, ...], Meaning]:
    """Every listed word and phrase (a tuple of words in the singular): which attribute it names and the index there."""
    return dict(LISTED)


class _Read(NamedTuple):
    """What a prompt names by listed words and by others; what it denies ("no rain"); its words that no one listed."""

    named: dict[str, int]
    hinted: dict[str, int]
    denied: list[Meaning]
    guessed: dict[str, Meaning]
    unknown: dict[str, None]


def _read(prompt: str) -> _Read:
    """The longest phrase wins. A negation counts for the next word that is no filler, and on over an "or"."""
    words = _words(prompt)
    read = _Read({}, {}, [], {}, {})
    at, denying, denied = 0, False, False
    while at < len(words):
        length, meaning = _meaning(words[at : at + LONGEST_PHRASE], read)
        if words[at] in NEGATIONS or (words[at] == "or" and denied):
            denying = True
        elif meaning is not None or words[at] not in FILLERS:
            denied, denying = denying, False
        if meaning is not None and denied:
            read.denied.append(meaning)
        elif meaning is not None:
            by = read.hinted if length == 1 and words[at] in read.guessed else read.named
            by[meaning[0]] = meaning[1]
        at += length
    return read


def _words(prompt: str) -> list[str]:
    """In lower case; "isn't" is a "not"."""
    return re.findall(r"[^\W\d_]+", re.sub(r"\b\w+n['’]t\b", "not", prompt.lower()))


def _meaning(words: list[str], read: _Read) -> tuple[int, Meaning | None]:
    """How many of the first `words` are one phrase (1 where none is), and its meaning or None; notes what is new."""
    length, meaning = _longest(words)
    word = words[0]
    if meaning is None and word not in FILLERS:
        meaning = learnt().get(word) or learnt().get(singular(word))
        if meaning is not None:
            read.guessed[word] = meaning
        elif len(word) > 1:
            read.unknown[word] = None
    return length, meaning


def _longest(words: list[str]) -> tuple[int, Meaning | None]:
    """How many of the first `words` are one listed phrase (1 where none is), and its meaning or None."""
    for length in range(len(words), 0, -1):
        for phrase in (tuple(words[:length]), tuple(map(singular, words[:length]))):
            if phrase in LISTED:
                return length, LISTED[phrase]
    return 1, None


def _complete(read: _Read, rest: Scene) -> Scene:
    scene = rest._replace(**read.hinted | read.named)
    for attribute, index in read.denied:
        if getattr(scene, attribute) == index:
            other = _NOT_DEFAULT if getattr(DEFAULT, attribute) == index else DEFAULT
            scene = scene._replace(**{attribute: getattr(other, attribute)})
    return scene
