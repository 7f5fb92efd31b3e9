import json
import time

import pytest
import torch

from benchmarks import machine, words
from pipeline.tiny import scene
from pipeline.tiny.dictionary import Dictionary
from pipeline.tiny.scene import sentence, understand
from pipeline.tiny.vocabulary import FILLERS, LEARNT_FILE, LISTED, VALUES, learnt, parse_line, read_learnt, singular
from pipeline.tiny.words import CLASSES, THRESHOLD, Examples, Known, left_out, make_table, read_examples, validate

RECORD = json.loads((machine.RESULTS / "words.json").read_text())


@pytest.fixture
def table(monkeypatch):
    """A table of four words in place of the shipped one, two of them listed as well."""
    lines = "flower place meadow 0.9\npalm thing cactus 0.9\nthe place lava 0.9\nlarch thing pine 0.9"
    monkeypatch.setattr(scene, "learnt", lambda: read_learnt(lines))


def shown(prompt: str) -> str:
    return sentence(understand(prompt).scene)


def said_after(previous: str, prompt: str) -> str:
    return sentence(understand(prompt, understand(previous).scene).scene)


# The shipped table


def test_every_line_of_the_shipped_table_is_valid_and_in_order():
    lines = [line for line in LEARNT_FILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    names = [parse_line(line)[0] for line in lines]
    assert names == sorted(set(names)) and len(names) == len(learnt()) > 1500
    assert LEARNT_FILE.stat().st_size < 200_000


def test_no_learnt_word_is_listed_or_a_filler():
    assert [word for word in learnt() if (word,) in LISTED or (singular(word),) in LISTED or word in FILLERS] == []


def test_every_value_of_every_attribute_has_learnt_words():
    values = {(attribute, index) for attribute, names in VALUES.items() for index, name in enumerate(names) if name}
    assert set(learnt().values()) == values == set(CLASSES) - {None}


@pytest.mark.parametrize("line", ["clover place", "clover place sky 0.9", "Clover place meadow 0.9", "a b c 2.0", "x"])
def test_a_broken_line_of_a_table_is_named(line):
    with pytest.raises(ValueError, match="is no line of a table of words"):
        read_learnt(f"# a remark\n\nclover place meadow 0.93\n{line}")


# Words held out


def test_the_recorded_figures_are_those_of_the_shipped_table():
    found = words.measure()
    counts = {kind: {said: len(names) for said, names in row.items()} for kind, row in found.items()}
    assert {kind: RECORD[kind] for kind in counts} == counts and RECORD["table"] == len(learnt())


def test_more_than_half_of_the_synonyms_held_out_are_understood_and_few_words_get_a_wrong_meaning():
    found = words.measure()
    assert len(found["synonyms"]["right"]) >= 55 and len(found["synonyms"]["wrong"]) <= 8
    assert len(found["others"]["wrong"]) <= 3


def test_a_hundred_synonyms_for_all_values_and_a_hundred_other_words_are_held_out():
    held = words.read(words.HELD_OUT)
    first = [word.meanings[0] for word in held if word.meanings]
    assert len(first) == 100 and set(first) == set(CLASSES) - {None} and {first.count(one) for one in first} == {4}
    assert sum(not word.meanings for word in held) >= 100 and len({word.word for word in held}) == len(held)


def test_no_word_held_out_is_listed_or_an_example():
    read_examples(leave_out=left_out(words.HELD_OUT))


def test_an_example_that_is_held_out_is_refused():
    with pytest.raises(ValueError, match="forest: to be left out, but an example"):
        read_examples(leave_out=frozenset({"forest"}))


# A prompt


def test_a_learnt_word_counts_and_is_told_with_what_it_was_taken_for():
    understood = understand("sequoias at midnight")
    assert sentence(understood.scene) == "a green meadow with pines at night, clear sky"
    assert understood.guessed == (("sequoias", "pines"),) and understood.unknown == ()


def test_listed_words_and_fillers_go_before_learnt_ones(table):
    assert understand("the palm").guessed == () and shown("the palm") == shown("shore")


def test_the_longest_listed_phrase_wins_over_a_learnt_word_in_it(table):
    assert understand("a flower field").guessed == ()
    assert understand("a flower").guessed == (("flower", "a green meadow"),)


def test_a_listed_word_counts_before_a_guess_wherever_it_stands(table):
    assert shown("a desert with a flower") == shown("a flower in a desert") == shown("a desert")
    assert shown("an oak and larches") == shown("oaks")


def test_a_guess_that_the_scene_does_not_show_is_not_told(table):
    assert understand("larches, oaks").guessed == understand("without larches").guessed == ()


def test_what_a_later_prompt_does_not_name_stays_for_learnt_words_too(table):
    said = said_after("larches at night in the rain", "a flower")
    assert said == "a green meadow with pines at night, rain"


@pytest.mark.parametrize(
    ("prompt", "same"),
    [
        ("no rain", "clear sky"),
        ("a beach without any fog or snow, at night", "a beach at night"),
        ("it isn’t raining in the desert", "a desert"),
        ("a desert, not at night", "a desert by day"),
        ("not by day", "at night"),
        ("no people at night", "at night"),
        ("neither snow nor clouds in the canyon", "canyon"),
    ],
)
def test_what_is_denied_is_not_shown(prompt, same):
    assert shown(prompt) == shown(same)


def test_a_denial_takes_back_what_was_said_before_and_nothing_else():
    before = "a desert with lanterns at dusk, rain"
    assert said_after(before, "no rain") == "a desert with lanterns at dusk, clear sky"
    assert said_after(before, "without lanterns") == "a desert at dusk, rain"
    assert said_after(before, "no snow") == said_after(before, "not a forest") == before


@pytest.mark.parametrize(
    "prompt",
    ["\N{SNOWMAN}\N{SNOWMAN}", "森の中の夜", "лес ночью", "غابة", "x" * 500, "'" * 500, "n't " * 125, "a\0b\ud800"],
)
def test_odd_input_changes_nothing_and_takes_no_time(prompt):
    def seconds():
        begun = time.thread_time()  # what a busy machine keeps from us does not count
        assert understand(prompt).scene == scene.DEFAULT
        return time.thread_time() - begun

    assert min(seconds() for _ in range(3)) < 0.1


@pytest.mark.parametrize("word", ["zq", "forest", "sequoia", "no"])
def test_the_longest_prompt_is_read_in_about_a_millisecond(word):
    prompt, times = (f"{word} " * 250)[:500], []
    for _ in range(50):
        begun = time.thread_time()
        understand(prompt)
        times.append(time.thread_time() - begun)
    assert min(times) < 0.003


# How the table is made


def known() -> Known:
    """Two dimensions: forests along the first, shores along the second; "nothing" is near the origin."""
    names = ["bay", "bayou", "dull", "fir", "grove", "lake", "none", "wood"]
    vectors = torch.tensor(
        [[0, 3], [0, 2.8], [0.1, 0.1], [3, 0], [2.9, 0], [0, 2.9], [0, 0], [3.1, 0]], dtype=torch.float
    )
    forest, shore = CLASSES.index(("place", 2)), CLASSES.index(("place", 6))
    examples = Examples(
        {"wood": forest, "fir": forest, "lake": shore, "bay": shore, "none": 0}, {}, frozenset({"bayou"})
    )
    return Known(names, vectors, torch.zeros(0, 2), examples)


def test_words_near_the_examples_of_a_value_get_it_and_listed_ones_stay_out():
    lines = make_table(known())
    assert [line.rsplit(" ", 1)[0] for line in lines] == ["bayou place shore", "grove place forest"]
    assert all(parse_line(line)[2] >= THRESHOLD for line in lines)


def test_an_example_means_what_it_says():
    made = known()
    examples = made.examples._replace(words=made.examples.words | {"grove": CLASSES.index(("hour", 3))})
    assert "grove hour night 1.00" in make_table(made._replace(examples=examples))


def test_examples_are_tried_without_being_learnt_from():
    assert validate(known())[0].startswith("examples left out, threshold 0.3: of 4 with a meaning")


WORDNET = {
    "data.noun": '00000001 20 n 02 oak 0 oak_tree 0 001 @ 00000002 n 0000 | a deciduous tree; has acorns; "an oak"\n'
    "00000002 20 n 01 tree 0 000 | a tall woody plant\n00000003 20 n 01 oak 1 000 | the wood of an oak\n",
    "index.noun": "oak n 2 1 @ 2 1 00000003 00000001\ntree n 1 0 1 0 00000002\n",
    "cntlist.rev": "oak%1:20:00:: 2 5\noak%1:20:01:: 1 1\n",
} | {f"{kind}.{part}": "" for kind in ("data", "index") for part in ("adj", "verb", "adv")}


def test_a_dictionary_says_what_a_word_means_and_how_often(tmp_path):
    for name, text in WORDNET.items():
        (tmp_path / name).write_text("  1 the licence\n" + text)
    dictionary = Dictionary(tmp_path)
    assert "oak" in dictionary and "elm" not in dictionary
    tree, wood = sorted(dictionary.senses("oak"), reverse=True)
    assert tree.text == "oak, oak tree (tree): a deciduous tree; has acorns" and wood.text == "oak: the wood of an oak"
    assert tree.share == pytest.approx(2.75 / 4.25) and tree.share + wood.share == pytest.approx(1)


def test_a_folder_without_wordnet_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no WordNet"):
        Dictionary(tmp_path)
