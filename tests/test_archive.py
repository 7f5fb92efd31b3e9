"""stream/archive.py: what is parked comes back, and the folder stays bounded and gives no one away."""

import os

import numpy as np
import pytest

from pipeline.chunk import Session, SessionSpec
from stream.archive import Archive


def session(seed=1, size=10):
    latents = np.arange(size, dtype=np.float32).reshape(-1, 1, 1, 1, 1)
    return Session("fake", SessionSpec("a", "red", seed), size, 4 * size, (), latents[:0], latents)


@pytest.fixture
def open_archive(tmp_path, clock):
    made = []

    def open_(**bounds):
        made.append(Archive(tmp_path / "parked", clock=clock, **bounds))
        return made[-1]

    yield open_
    for one in made:
        one.close()


def put(archive, token, data, clock):
    """Kept, at the clock's time."""
    archive.put(token, data)
    archive.flush()
    newest = max(archive._folder.glob("*.session"), key=lambda path: path.stat().st_mtime)
    os.utime(newest, (clock(), clock()))


def test_what_was_parked_comes_back_to_its_token_alone_also_to_the_next_server(open_archive, clock):
    archive = open_archive()
    put(archive, "secret", session(7), clock)
    assert archive.get("guess") is None
    for one in (archive, open_archive()):
        again = one.get("secret")
        assert again.spec.seed == 7 and np.array_equal(again.latents, session(7).latents)


def test_what_is_not_on_disk_yet_is_there_already(open_archive):
    archive = open_archive()
    archive.put("secret", session(1))
    archive.put("secret", session(2))
    assert archive.get("secret").spec.seed == 2
    archive.remove("secret")
    assert archive.get("secret") is None
    archive.flush()
    assert archive.get("secret") is None and (archive.count, archive.bytes) == (0, 0)


def test_a_file_does_not_tell_its_token_and_is_for_its_owner_alone(open_archive, clock):
    archive = open_archive()
    put(archive, "secret", session(), clock)
    (file,) = archive._folder.iterdir()
    assert "secret" not in file.name and b"secret" not in file.read_bytes()
    assert (archive._folder.stat().st_mode & 0o77, file.stat().st_mode & 0o77) == (0, 0)


def test_the_oldest_go_first_when_there_are_too_many_or_they_are_too_large(open_archive, clock):
    archive = open_archive(max_sessions=3, max_bytes=12_000)
    for number in range(4):
        clock.advance(1)
        put(archive, f"t{number}", session(number), clock)
    assert [archive.get(f"t{number}") is not None for number in range(4)] == [False, True, True, True]
    clock.advance(1)
    put(archive, "large", session(9, size=2500), clock)
    assert archive.get("large") and archive.get("t1") is None and archive.bytes <= 12_000


def test_after_a_day_nothing_is_left(open_archive, clock):
    archive = open_archive(max_seconds=100)
    put(archive, "secret", session(), clock)
    clock.advance(99)
    archive.sweep()
    archive.flush()
    assert archive.get("secret")
    clock.advance(2)
    assert archive.get("secret") is None
    archive.sweep()
    archive.flush()
    assert list(archive._folder.iterdir()) == []


def test_files_of_others_stay_and_a_damaged_one_is_no_session(open_archive, clock, caplog):
    archive = open_archive(max_seconds=100)
    foreign = archive._folder / "mine.session"
    foreign.write_text("hands off")
    put(archive, "secret", session(), clock)
    (ours,) = archive._folder.glob("?" * 64 + ".session")
    ours.write_bytes(b"junk")
    os.utime(ours, (clock(), clock()))
    assert archive.get("secret") is None and "cannot be read" in caplog.text
    clock.advance(200)
    archive.sweep()
    archive.flush()
    assert foreign.exists() and not ours.exists()
