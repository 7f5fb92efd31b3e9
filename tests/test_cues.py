"""The script of a run: what it may hold, and what is said of what it may not."""

import json

import pytest

from pipeline.cues import Cue, read_cues


def script(tmp_path, content) -> str:
    path = tmp_path / "script.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_script_is_read(tmp_path):
    events = [
        {"frame": 0, "prompt": "a meadow", "keys": "wl"},
        {"frame": 48, "prompt": "a desert"},
        {"frame": 96, "keys": "none"},
    ]
    assert read_cues(script(tmp_path, events)) == (
        Cue(0, frozenset("wl"), "a meadow"),
        Cue(48, None, "a desert"),
        Cue(96, frozenset(), None),
    )


@pytest.mark.parametrize(
    "content, words",
    [
        ("[{", "is no JSON"),
        ({"frame": 0}, "must be a list of events"),
        ([3], "event 0: it is 3; it must be an object"),
        ([{"frame": 0, "prompts": "x"}], "unknown field prompts; the fields are frame, prompt, keys"),
        ([{"prompt": "x"}], "its frame is None"),
        ([{"frame": -1, "keys": "w"}], "its frame is -1"),
        ([{"frame": True, "keys": "w"}], "its frame is True"),
        ([{"frame": 0, "keys": "w"}, {"frame": 0, "keys": "a"}], "event 1: its frame is 0, after 0; frames must rise"),
        ([{"frame": 0}], "it changes nothing"),
        ([{"frame": 0, "keys": "wx"}], "no such key: x"),
        ([{"frame": 0, "keys": ["w"]}], 'write them together, such as "wl"'),
        ([{"frame": 0, "prompt": " "}], "the prompt is empty"),
        ([{"frame": 0, "prompt": 5}], "the prompt is empty"),
    ],
)
def test_a_mistake_is_named_with_what_would_be_right(tmp_path, content, words):
    with pytest.raises(ValueError, match=words) as raised:
        read_cues(script(tmp_path, content))
    assert "script.json" in str(raised.value)


def test_a_script_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no script .*nowhere"):
        read_cues(tmp_path / "nowhere")
