"""The session file: everything comes back, and what is no whole file of ours is refused with a reason."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from pipeline import session_file
from pipeline.chunk import Control, Event, Session, SessionSpec

SHAPE = (4, 2, 3, 5)


def session() -> Session:
    numbers = np.random.default_rng(0)
    return Session(
        preset="small",
        spec=SessionSpec("a", "a meadow, schön", 2**62, b"\x89PNG...", (frozenset("w"),) * 3 + (frozenset(),)),
        chunk=5,
        frame=31,
        events=(Event(0, frozenset("w")), Event(3, frozenset("wl"), "a desert", 2)),
        first=numbers.standard_normal((1, *SHAPE), dtype=np.float32),
        latents=numbers.standard_normal((3, *SHAPE), dtype=np.float32),
        held=Control(9, frozenset("wl")),
        waiting=Control(10, frozenset(), "a shore"),
    )


def metadata(path: Path) -> dict:
    with safe_open(path, "np") as file:
        return json.loads(file.metadata()[session_file.METADATA])


def rewritten(path: Path, to: Path, **changes) -> Path:
    """The file with other metadata."""
    with safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, to, {session_file.METADATA: json.dumps(metadata(path) | changes)})
    return to


@pytest.fixture
def saved(tmp_path) -> Path:
    session().save(tmp_path / "a.session")
    return tmp_path / "a.session"


def test_everything_comes_back(saved):
    before, after = session(), Session.load(saved)
    assert np.array_equal(before.first, after.first) and np.array_equal(before.latents, after.latents)
    plain = {"first": before.first, "latents": before.latents}
    assert vars(before) == vars(after) | plain and after.oldest == 2


def test_a_session_without_picture_or_chunks_comes_back(tmp_path):
    empty = np.empty((0, *SHAPE), np.float32)
    Session("small", SessionSpec("a", "x", 1), 0, 0, (), empty, empty).save(tmp_path / "a")
    again = Session.load(tmp_path / "a")
    assert again.spec.image is None and again.waiting is None and again.latents.shape == (0, *SHAPE)


def test_the_folder_holds_the_file_and_nothing_else(saved):
    session().save(saved)
    assert list(saved.parent.iterdir()) == [saved]


def test_a_write_that_fails_leaves_the_old_file_whole(saved, monkeypatch):
    def fail(tensors, name, metadata):
        Path(name).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(session_file, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        replace(session(), preset="other").save(saved)
    assert Session.load(saved).preset == "small" and list(saved.parent.iterdir()) == [saved]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        session().save(tmp_path / "nowhere" / "a")
    with pytest.raises(ValueError, match="no session file"):
        Session.load(tmp_path / "none")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_a_truncated_file_is_refused(saved, share):
    data = saved.read_bytes()
    saved.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="is no session file, or is cut short"):
        Session.load(saved)


def test_a_foreign_file_is_refused(tmp_path):
    (tmp_path / "text").write_text("hello, this is no safetensors file")
    with pytest.raises(ValueError, match="no session file"):
        Session.load(tmp_path / "text")
    save_file({"x": np.zeros(1)}, tmp_path / "weights")
    with pytest.raises(ValueError, match=r"has no 'chunkcast.session'; `generate --save` writes one"):
        Session.load(tmp_path / "weights")


def test_a_newer_version_is_refused_and_says_so(saved, tmp_path):
    newer = rewritten(saved, tmp_path / "newer", version=session_file.VERSION + 1)
    with pytest.raises(ValueError, match="version 2, and this chunkcast reads version 1"):
        Session.load(newer)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"seed": -1}, "the seed is -1"),
        ({"prompt": " "}, "the prompt is empty"),
        ({"chunk": 2}, "there are latents of 3 chunks, and 2 were made"),
        ({"chunk": "5"}, "where a whole number"),
        ({"events": [[3, "w", None, 0], [1, "", None, 0]]}, "must rise"),
        ({"events": [[9, "w", None, 0]]}, "chunks that were made"),
        ({"events": [[1, "x", None, 0]]}, "no such key: x"),
        ({"events": [1]}, "damaged"),
        ({"held": None}, "damaged"),
        ({"script": [["w", "x"]]}, "whole number"),
        ({"preset": 3}, "where text belongs"),
    ],
)
def test_values_that_cannot_be_are_refused(saved, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words) as raised:
        Session.load(rewritten(saved, tmp_path / "bad", **changes))
    assert "bad" in str(raised.value)


def test_more_metadata_than_any_session_has_is_not_read(saved, monkeypatch):
    monkeypatch.setattr(session_file, "MAX_METADATA_BYTES", 100)
    with pytest.raises(ValueError, match=r"its metadata has \d+ bytes; at most 100 are read"):
        Session.load(saved)


def test_latents_that_are_not_finite_are_refused(saved):
    bad = session()
    bad.latents[0, 0] = np.nan
    bad.save(saved)
    with pytest.raises(ValueError, match="finite float32"):
        Session.load(saved)


def test_a_session_file_is_read_and_written_without_torch(saved):
    code = (
        "import sys; from pathlib import Path; from pipeline.chunk import Session\n"
        "path = Path(sys.argv[1]); Session.load(path).save(path)\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, saved], cwd=Path(__file__).parent.parent, check=True)


def test_a_session_goes_back_to_a_chunk():
    back = session().rewound(3, 20)
    assert (back.chunk, back.frame, back.oldest, len(back.latents)) == (3, 20, 2, 1)
    assert back.events == (Event(0, frozenset("w")),) and back.held == Control(9, frozenset("w")) and not back.waiting
    assert session().rewound(1, 4).latents.shape == (0, *SHAPE)
    with pytest.raises(ValueError, match="0 up to 5, not 6"):
        session().rewound(6, 1)
