"""What the tiny world makes of words that no one listed, on words held out from all that made its table.

The numbers: of the synonyms in held_out_words.txt, 4 for each value of each attribute of a scene, how many mean the
right value, a wrong one, or nothing; of its words that should mean nothing, how many do, and how many mean something.
Only the shipped table is asked, no encoder. A wrong meaning is worse than an unknown word.

    python -m benchmarks.words [--save words]
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine
from pipeline.tiny import scene
from pipeline.tiny.vocabulary import VALUES, Meaning, learnt

HELD_OUT = Path(__file__).with_name("held_out_words.txt")


class Word(NamedTuple):
    """A word and the meanings that are right for it, none for a word that should mean nothing."""

    word: str
    meanings: tuple[Meaning, ...]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    machine.add_output(parser)
    options = parser.parse_args(arguments)
    print("limit: every synonym right, every other word unknown")
    found = measure()
    for kind, row in found.items():
        for said, words in row.items():
            print(f"{kind} {said} ({len(words)}): {', '.join(words)}")
    counts = {kind: {said: len(words) for said, words in row.items()} for kind, row in found.items()}
    missed = {kind: {said: words for said, words in row.items() if said != "right"} for kind, row in found.items()}
    result = {"benchmark": "words", "table": len(learnt()), **counts, "missed": missed}
    machine.finish(result | machine.facts(), options.save)
    return 0


def measure() -> dict[str, dict[str, list[str]]]:
    """The words by kind ("synonyms", "others") and by verdict."""
    found = {"synonyms": {"right": [], "wrong": [], "unknown": []}, "others": {"right": [], "wrong": []}}
    for held in read(HELD_OUT):
        found["synonyms" if held.meanings else "others"][verdict(held)].append(held.word)
    return found


def read(path: Path) -> list[Word]:
    """Lines such as "elm thing tree", "wintry weather snow or place forest" and "laptop nothing"."""
    lines = (line.split(maxsplit=1) for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return [Word(word, () if said.strip() == "nothing" else _meanings(said)) for word, said in lines]


def verdict(held: Word) -> str:
    """What the world makes of it: "right", "wrong" or "unknown"; unknown is right for a word that means nothing."""
    understood = scene.understand(held.word)
    if not understood.guessed:
        return "unknown" if held.meanings else "right"
    return "right" if understood.guessed[0][1] in map(scene.name, held.meanings) else "wrong"


def _meanings(said: str) -> tuple[Meaning, ...]:
    pairs = (one.split() for one in said.split(" or "))
    return tuple((attribute, VALUES[attribute].index(value)) for attribute, value in pairs)


if __name__ == "__main__":
    raise SystemExit(main())
