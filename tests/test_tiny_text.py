import torch

from pipeline.tiny.scene import understand
from pipeline.tiny.text import KINDS, TinyTextEncoder


def encoder() -> TinyTextEncoder:
    torch.manual_seed(0)
    return TinyTextEncoder(16)


def test_a_prompt_is_one_row_for_each_attribute():
    encoded = encoder().encode("a desert at night with zeppelins")
    assert encoded.rows.shape == (len(KINDS), 16)
    assert encoded.unknown_words == ("zeppelins",)
    assert encoded.scene == "a desert at night, clear sky"


def test_prompts_of_one_scene_have_the_same_rows():
    text = encoder()
    assert torch.equal(text.encode("sahara").rows, text.encode("desert by day").rows)


def test_only_the_rows_of_what_was_renamed_change():
    text = encoder()
    day, night = text.encode("a beach by day").rows, text.encode("a beach at night").rows
    assert [torch.equal(a, b) for a, b in zip(day, night, strict=True)] == [True, True, False, True]


def test_a_merged_prompt_keeps_the_scene_and_what_nobody_understood():
    merged = encoder().merge("a canyon in the fog", "zeppelin at dusk")
    assert understand(merged).scene == understand("canyon fog dusk").scene
    assert understand(merged).unknown == ("zeppelin",)


def test_a_merged_prompt_still_tells_which_words_were_guessed_at():
    text = encoder()
    merged = text.merge("a canyon in the fog", "sequoias with zeppelins")
    assert text.encode(merged).guessed_words == (("sequoias", "pines"),)
    assert text.encode(merged).scene == "a red canyon with pines by day, fog"


def test_unknown_words_that_were_apart_make_no_phrase_once_merged():
    merged = encoder().merge("a beach", "wild dunes of the west")
    assert understand(merged).scene == understand("dunes").scene
