"""The plain data between engine and viewers, as far as no other file's tests hold it."""

import pytest

from pipeline.chunk import SessionSpec, parse_keys

W, NONE = frozenset("w"), frozenset()


def test_a_walk_lists_the_keys_of_each_frame():
    assert parse_keys("w-2, iw-1,none-1") == (W, W, frozenset("iw"), NONE)
    assert parse_keys("") == ()


@pytest.mark.parametrize(
    "walk", ["w", "w-0", "w-x", "w--3", "W-1", "x-10", "w-10,,l-2", "w-999999", "w-1000000", "w-\u0663"]
)
def test_a_walk_that_is_not_understood_is_refused(walk):
    with pytest.raises(ValueError, match=r"no part of a walk|no such key|longer than"):
        parse_keys(walk)


def test_a_session_needs_no_prompt_beside_a_picture_and_never_blanks():
    assert SessionSpec("a", "", 1, b"a picture").prompt == ""
    for prompt, image in (("", None), ("  ", b"a picture")):
        with pytest.raises(ValueError, match="the prompt is empty"):
            SessionSpec("a", prompt, 1, image)
