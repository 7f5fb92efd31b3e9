"""WordNet 3.0's dictionary files: what a word may mean, and how often it means it. For the maker of words.txt alone.

The format is that of wndb(5) and cntlist(5). A synset is one meaning that several words share.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

PARTS = {"noun": "n", "adj": "a", "verb": "v", "adv": "r"}
"""WordNet's parts of speech and the letters that pointers use; s, a kind of adjective, is in adj too."""
_OF_SENSE_KEY = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}
_LIKELIER = {"n": 1.0, "a": 1.0, "v": 0.25, "r": 0.25}
"""A prompt names things and what they are like; the verb of the same spelling is seldom meant."""
_SENSES, _RAREST, _PARENTS, _SYNONYMS, _DEFINITION = 3, 0.1, 3, 3, 120
"""Of a word: most senses, least share of one; of a sense: kinds above it, synonyms, characters of its definition."""


class Synset(NamedTuple):
    """Its words, its definition without examples, and the synsets of the kinds that it belongs to."""

    words: tuple[str, ...]
    definition: str
    kinds: tuple[tuple[str, str], ...]


class Sense(NamedTuple):
    """One of a word's meanings: its share of the word's uses, and a line that says what it is."""

    share: float
    text: str


class Dictionary:
    """WordNet in memory, some 100 MB."""

    def __init__(self, folder: Path):
        """Raises ValueError when the folder lacks WordNet's files."""
        missing = [name for part in PARTS for name in (f"index.{part}", f"data.{part}") if not (folder / name).exists()]
        if missing or not (folder / "cntlist.rev").exists():
            raise ValueError(f"{folder} has no WordNet: it should hold index.noun, data.noun and the like, cntlist.rev")
        self._synsets = {key: synset for part in PARTS for key, synset in _read_synsets(folder, part)}
        self._index = _read_index(folder)
        self._counts = _read_counts(folder / "cntlist.rev")

    def __contains__(self, word: str) -> bool:
        return any(part != "r" for part, _ in self._index.get(word, ()))

    def senses(self, word: str) -> list[Sense]:
        """The most frequent ones, at least one for a word that is in the dictionary."""
        ranks: dict[str, int] = defaultdict(int)
        found = []
        for part, offset in self._index.get(word, ()):
            ranks[part] += 1
            often = (self._counts.get((word, part, ranks[part]), 0) + 0.5) / ranks[part] * _LIKELIER[part]
            found.append((-often, part, offset))
        found = sorted(found)[:_SENSES]
        total = sum(often for often, *_ in found)
        senses = [Sense(often / total, self._describe(word, (part, offset))) for often, part, offset in found]
        return [sense for sense in senses if sense.share > _RAREST]

    def _describe(self, word: str, key: tuple[str, str]) -> str:
        """Such as "oak, oak tree (tree, woody plant, vascular plant): a deciduous tree of the genus Quercus"."""
        synset = self._synsets[key]
        others = [other for other in synset.words if other.lower() != word][:_SYNONYMS]
        kinds = self._kinds(key)
        above = f" ({', '.join(kinds)})" if kinds else ""
        return ", ".join([word, *others]) + above + ": " + synset.definition[:_DEFINITION]

    def _kinds(self, key: tuple[str, str]) -> list[str]:
        """From the nearest kind up; adjectives are each other's, so a word that comes again ends it."""
        kinds: list[str] = []
        while len(kinds) < _PARENTS and self._synsets[key].kinds:
            key = self._synsets[key].kinds[0]
            if self._synsets[key].words[0] in kinds:
                break
            kinds.append(self._synsets[key].words[0])
        return kinds


def _read_synsets(folder: Path, part: str):
    """((part, offset), Synset) for each line: offset file kind w_count [word id]... p_count [pointer]... | gloss."""
    for line in _lines(folder / f"data.{part}"):
        head, _, gloss = line.partition(" | ")
        fields = head.split()
        words, pointers = int(fields[3], 16), 4 + 2 * int(fields[3], 16)
        names = tuple(re.sub(r"\(.*\)", "", name).replace("_", " ") for name in fields[4 : 4 + 2 * words : 2])
        rows = [fields[pointers + 1 + 4 * n : pointers + 5 + 4 * n] for n in range(int(fields[pointers]))]
        kinds = tuple((row[2].replace("s", "a"), row[1]) for row in rows if row[0] in ("@", "@i", "&"))
        yield (PARTS[part], fields[0]), Synset(names, gloss.split('; "')[0].strip(), kinds)


def _read_index(folder: Path) -> dict[str, list[tuple[str, str]]]:
    """Of each word the synsets, the most frequent of a part of speech first."""
    index = defaultdict(list)
    for part, letter in PARTS.items():
        for line in _lines(folder / f"index.{part}"):
            fields = line.split()
            index[fields[0]] += [(letter, offset) for offset in fields[len(fields) - int(fields[2]) :]]
    return index


def _read_counts(path: Path) -> dict[tuple[str, str, int], int]:
    """How often a word was found in a sense: by word, part of speech, and the sense's number from 1."""
    counts = {}
    for line in _lines(path):
        key, number, count = line.split()
        word, _, rest = key.partition("%")
        counts[word, _OF_SENSE_KEY[rest[0]], int(number)] = int(count)
    return counts


def _lines(path: Path) -> list[str]:
    """Without the licence at its head, whose lines begin with two blanks."""
    return [line for line in path.read_text(encoding="latin-1").splitlines() if not line.startswith("  ")]
