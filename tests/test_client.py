"""stream/client.py: the reference client, against the server with the fake engine."""

import asyncio
import os
import signal
from fractions import Fraction

import av
import numpy as np
import pytest
from serving import hear, until

from stream import protocol
from stream.client import Recording, Wish, check_url, told, watch


def url(client):
    return f"http://127.0.0.1:{client.port}"


def frames_of(path):
    with av.open(str(path)) as video:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in video.decode(video=0)]


def bar(image):
    """Where the bright bar of the fake engine's picture is."""
    return float(np.flatnonzero(image[40].min(axis=1) > 150).mean())


async def test_a_watched_world_is_in_the_file_steered_and_at_its_own_pace(client, tmp_path):
    said = []
    wish = Wish("red", 32, seed=5, walk=(*[frozenset()] * 8, *[frozenset("l")] * 24))
    assert await watch(url(client), wish, tmp_path / "out.mp4", said.append) == 32
    frames = frames_of(tmp_path / "out.mp4")
    assert len(frames) == 32 and said == ["live, with the seed 5"]
    assert frames[0][1][40, 100, 0] > frames[0][1][40, 100, 1] + 60
    times = np.diff([time for time, _ in frames])
    assert np.median(times) == pytest.approx(1 / 16, abs=0.002) and times.min() > 0.9 / 16, times
    steps = np.diff([bar(image) for _, image in frames])
    assert steps[:6].mean() == pytest.approx(1, abs=0.6), steps
    assert steps[-6:].mean() == pytest.approx(5, abs=0.6), "the key moves the bar"
    assert client.service.hub.has_room, "it has left"


async def test_it_waits_in_line_and_is_told_its_place(client, tmp_path):
    said = []
    async with client.page() as first, client.page() as second:
        await hear(first, "live")
        await hear(second, "live")
        watching = asyncio.ensure_future(watch(url(client), Wish("green", 4), tmp_path / "a.mp4", said.append))
        await until(lambda: said)
        assert said[0].startswith("in line, 1 of 1: All places")
    assert await watching == 4


async def test_it_comes_through_the_death_of_the_engine(client, tmp_path):
    said = []
    watching = asyncio.ensure_future(watch(url(client), Wish("green", 32), tmp_path / "a.mp4", said.append))
    await until(lambda: said)
    await asyncio.sleep(1)
    os.kill(client.service._engine.pid, signal.SIGKILL)
    assert await watching == 32
    assert [line.split(",")[0] for line in said] == ["live", "in line", "live"]
    times = [time for time, _ in frames_of(tmp_path / "a.mp4")]
    assert len(times) == 32 and times == sorted(times)


async def test_what_the_server_says_no_to_is_said_in_its_words(client, tmp_path):
    with pytest.raises(ValueError, match="this prompt is refused"):
        await watch(url(client), Wish("refuse", 4), tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="the engine gave up this session"):
        await watch(url(client), Wish("stop", 4), tmp_path / "a.mp4")


def full_disk(path):
    path.symlink_to("/dev/full")


@pytest.mark.parametrize(("spoil", "says"), [(lambda path: path.mkdir(), "Is a directory"), (full_disk, "No space")])
async def test_a_file_that_cannot_be_written_ends_it_with_a_sentence_and_gives_the_slot_back(
    client, tmp_path, spoil, says
):
    spoil(tmp_path / "a.mp4")
    watching = watch(url(client), Wish("red", 4), tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=rf"a\.mp4 cannot be written \({says}.*another name or more room"):
        await asyncio.wait_for(watching, 20)
    await until(lambda: client.service.hub.has_room)


async def test_a_frame_that_cannot_be_kept_ends_it_whatever_the_reason(client, tmp_path, monkeypatch):
    def spill(self, frame, fps):
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(Recording, "write", spill)
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(watch(url(client), Wish("red", 4), tmp_path / "a.mp4"), 20)
    await until(lambda: client.service.hub.has_room)


async def test_a_server_that_is_not_there_is_said_to_be_out_of_reach(tmp_path, monkeypatch):
    monkeypatch.setattr("stream.client.FIRST_DELAY_SECONDS", 0.001)
    said = []
    with pytest.raises(ValueError, match=r"http://127.0.0.1:9/ is out of reach .* is the server up\?"):
        await watch("http://127.0.0.1:9", Wish("red", 4), tmp_path / "a.mp4", said.append)
    assert len(said) == 5 and not (tmp_path / "a.mp4").exists()


def test_a_recording_goes_on_where_it_ended_when_the_clock_is_another(tmp_path):
    with Recording(tmp_path / "a.mp4") as recording:
        for pts in (900_000, 905_625, "again", 10, 5635, 5635):
            if pts == "again":
                recording.begin_again()
                continue
            frame = av.VideoFrame.from_ndarray(np.zeros((96, 160, 3), np.uint8), "rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 90_000)
            recording.write(frame, 16)
    times = [round(time * 16, 2) for time, _ in frames_of(tmp_path / "a.mp4")]
    assert times == [0, 1, 2, 3, 3]


@pytest.mark.parametrize("wrong", ["localhost:8080", "ftp://x", "http://"])
def test_an_address_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="must look like"):
        check_url(wrong)
    assert check_url("https://x/world") == "https://x/world/"


def test_what_became_of_a_prompt_is_told_in_a_line():
    guessed = protocol.Scene(text="pines", unknown_words=("dragon",), guessed_words=(("sequoia", "pines"),))
    assert told(guessed) == "shown: pines; took sequoia for pines; not understood: dragon"
    assert told(protocol.Scene(text="pines", unknown_words=("dragon",))) == "shown: pines; not understood: dragon"
