"""stream/protocol.py: what is taken, what is refused and in which words, and the page's copy."""

import json
import shutil
import subprocess
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream import protocol
from stream.protocol import (
    MAX_MESSAGE_BYTES,
    Hello,
    Keys,
    Leave,
    Park,
    Pause,
    Prompt,
    ProtocolError,
    Restart,
    Rewind,
    Shown,
    Unpause,
    parse,
)
from stream.session import LIFE

GOOD = [
    Hello(version=1, prompt="a forest", seed=7),
    Hello(version=1, prompt="a forest"),
    Prompt(seq=1, text="the sun comes up"),
    Keys(seq=2, held=("w", "l")),
    Keys(seq=3, held=()),
    Shown(seq=3, ms=212.5),
    Restart(seq=4),
    Restart(seq=5, seed=0, prompt="a desert"),
    Hello(version=1, prompt="a forest", token="x" * 32),
    Hello(version=1, prompt="a forest", access="a-long-enough-secret"),
    Rewind(seq=6, chunk=0),
    Pause(seq=7),
    Unpause(seq=8),
    Park(),
    Leave(),
]


@pytest.mark.parametrize("message", GOOD, ids=repr)
def test_a_good_message_comes_back_as_it_was_sent(message):
    assert parse(message.model_dump_json()) == message


@pytest.mark.parametrize("model", {type(message) for message in GOOD}, ids=lambda model: model.__name__)
def test_the_example_in_an_error_is_itself_taken(model):
    assert isinstance(parse(model.example), model)


BAD = [
    ("hello there", "not JSON"),
    ("[" * 10_000, "not JSON"),
    ("[1]", "JSON object"),
    ('"keys"', "JSON object"),
    ("{}", "the types are hello, prompt, keys"),
    ('{"type": "jump"}', "no such type of message: 'jump'"),
    ('{"type": ["keys"]}', "no such type"),
    ('{"type": "hello", "version": 2, "prompt": "a"}', "speaks version 1, not 2"),
    ('{"type": "hello", "prompt": "a"}', "'version' is wrong"),
    ('{"type": "hello", "version": 1, "prompt": ""}', "the prompt is empty"),
    ('{"type": "hello", "version": 1, "prompt": "a", "seed": -1}', "'seed' is wrong"),
    ('{"type": "hello", "version": 1, "prompt": "a", "seed": 9007199254740992}', "'seed' is wrong"),
    ('{"type": "prompt", "seq": 1, "text": "   "}', "the prompt is empty"),
    ('{"type": "prompt", "seq": 1, "text": "\\ud800"}', "a broken character"),
    (json.dumps({"type": "prompt", "seq": 1, "text": "a" * 10_000}), "has 10000 characters; at most 2000"),
    ('{"type": "keys", "seq": 1, "held": ["q"]}', "no such key: q; the keys are a d i j k l s w"),
    ('{"type": "keys", "seq": 1, "held": "w"}', "'held' is wrong"),
    ('{"type": "keys", "held": []}', "'seq' is wrong"),
    ('{"type": "keys", "seq": true, "held": []}', "'seq' is wrong"),
    ('{"type": "keys", "seq": 1, "held": [], "also": 1}', "'also' is wrong"),
    ('{"type": "shown", "seq": 1, "ms": NaN}', "'ms' is wrong"),
    ('{"type": "hello", "version": 1, "prompt": "a", "token": "../etc"}', "'token' is wrong"),
    ('{"type": "rewind", "seq": 1, "chunk": -1}', "'chunk' is wrong"),
    ('{"type": "leave", "seq": ' + "9" * 5000 + "}", "not JSON"),
    (" " * (MAX_MESSAGE_BYTES + 1), "characters; at most"),
]


@pytest.mark.parametrize(("text", "says"), BAD, ids=[says for _, says in BAD])
def test_a_bad_message_is_answered_with_what_would_be_right(text, says):
    with pytest.raises(ProtocolError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_error_carries_the_number_of_the_message_it_answers():
    with pytest.raises(ProtocolError) as caught:
        parse('{"type": "keys", "seq": 41, "held": ["q"]}')
    assert caught.value.seq == 41


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_no_text_raises_anything_but_a_protocol_error_that_can_be_sent(text):
    with pytest.raises(ProtocolError) as caught:
        parse(text)
    protocol.Error(message=str(caught.value), seq=caught.value.seq).model_dump_json().encode()


@given(st.dictionaries(st.sampled_from(["type", "seq", "held", "text", "prompt", "seed", "version", "ms"]), st.text()))
def test_no_object_raises_anything_but_a_protocol_error(data):
    for kind in ("hello", "prompt", "keys", "shown", "restart"):
        with pytest.raises(ProtocolError):
            parse(json.dumps({**data, "type": kind}))


def test_the_page_has_the_messages_of_this_protocol():
    assert protocol.PAGE_COPY.read_text() == protocol.javascript()
    assert protocol.DOCUMENT.read_text() == protocol.markdown()
    assert protocol.main(["--check"]) == 0


def test_the_document_tells_every_message_every_field_and_every_step_of_a_life():
    text = protocol.markdown()
    for model in (*get_args(protocol.FromClient), *get_args(protocol.FromServer)):
        section = text.split(f"### `{model.model_fields['type'].default}`\n")[1].split("\n#")[0]
        assert all(f"| `{name}` |" in section for name in model.model_fields if name != "type"), section
    assert all(f"| {state.value} | {event} | " in text for state, event in LIFE)


@pytest.mark.parametrize("name", ["PAGE_COPY", "DOCUMENT"])
def test_a_stale_copy_is_said_to_be_stale(tmp_path, monkeypatch, capsys, name):
    for each in ("PAGE_COPY", "DOCUMENT"):
        monkeypatch.setattr(protocol, each, tmp_path / each)
    assert protocol.main(["--write"]) == 0 and protocol.main(["--check"]) == 0
    (tmp_path / name).write_text("old")
    assert protocol.main(["--check"]) == 1
    assert capsys.readouterr().err == f"{name} is stale: run python -m stream.protocol --write\n"


@pytest.mark.skipif(shutil.which("node") is None, reason="node runs the page's copy outside a browser")
def test_what_the_page_writes_is_what_the_server_reads(tmp_path):
    script = tmp_path / "write.mjs"
    module = protocol.PAGE_COPY.as_uri()
    script.write_text(
        f"import * as m from {json.dumps(module)};\n"
        "console.log(m.hello({prompt: 'a'})); console.log(m.keys({seq: 1, held: ['w']})); console.log(m.leave());\n"
        "console.log(m.prompt({seq: 2, text: 'b'})); console.log(m.restart({seq: 3, seed: 5}));\n"
        'm.parse(\'{"type": "received", "seq": 1}\');\n'
        'try { m.parse(\'{"type": "toString"}\'); } catch { console.log("refused"); }\n'
    )
    lines = subprocess.run(["node", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [type(parse(line)) for line in lines[:-1]] == [Hello, Keys, Leave, Prompt, Restart]
    assert lines[-1] == "refused"
