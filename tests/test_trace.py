"""stream/trace.py: what a server with --mark knows of each frame's way."""

import numpy as np
from serving import hear, say, serving, until

from pipeline.chunk import Chunk
from stream.doors import Doors
from stream.mark import Mark, read
from stream.pacer import Paced
from stream.trace import KEPT, KEPT_EVERY, REMEMBERED, ControlTime, FrameTimes, Trace


def chunk(frames=4, **changes):
    seconds = {"prepare": 0.01, "denoise": 0.04, "decode": 0.05, "total": 0.1}
    given = {"session": "a.1", "index": 2, "first_frame": 8, "sequence": 5, "seconds": seconds, "begun": 999.0}
    return Chunk(frames=np.zeros((frames, 96, 160, 3), np.uint8), **{**given, **changes})


def paced(made, offset):
    return Paced(made.frames[offset], made.first_frame + offset, made.index, made.sequence, made.session)


def test_a_frame_is_stamped_as_it_leaves_and_its_way_is_told_once_it_is_sent(clock):
    trace, made = Trace(clock), chunk()
    trace.arrived(made)
    clock.advance(0.5)
    trace.took(paced(made, 1))
    assert read(made.frames[1]) == Mark(frame=9, chunk=2, sequence=5) and read(made.frames[0]) is None
    assert trace.since(0)["frames"] == []
    clock.advance(0.01)
    trace.sent(paced(made, 1), 4711)
    told = trace.since(0)
    assert (told["now"], told["count"]) == (1000.51, 1)
    assert told["frames"] == [FrameTimes("a.1", 9, 2, 5, 999.0, 0.05, 0.05, 1000.0, 1000.5, 1000.51, 4711)]
    assert trace.since(1)["frames"] == []


def test_some_pictures_are_kept_as_they_left_and_the_oldest_of_them_are_forgotten():
    trace = Trace()
    for frame in range(0, KEPT_EVERY * (KEPT + 2) + 1, 16):
        made = chunk(1, first_frame=frame)
        trace.took(paced(made, 0))
    assert trace.picture("a.1", 16) is None, "not one of those that are kept"
    assert trace.picture("a.1", 0) is None and trace.picture("a.1", 2 * KEPT_EVERY) is None
    assert read(trace.picture("a.1", 3 * KEPT_EVERY)).frame == 3 * KEPT_EVERY


def test_a_control_came_when_it_came_first_and_an_older_one_is_no_news(clock):
    trace = Trace(clock)
    for session, sequence in (("a", 3), ("a", 3), ("a", 2), ("b", 3)):
        trace.came(session, sequence)
        clock.advance(1.0)
    assert trace.since(0)["controls"] == [ControlTime("a", 3, 1000.0), ControlTime("b", 3, 1003.0)]


def test_a_chunk_in_two_parts_is_told_by_its_frames_and_what_the_engine_does_not_say_is_none(clock):
    trace = Trace(clock)
    first = chunk(1, seconds={})
    trace.arrived(first)
    clock.advance(0.02)
    rest = chunk(3, first_frame=9)
    trace.arrived(rest)
    for part in (first, rest):
        trace.took(paced(part, 0))
        trace.sent(paced(part, 0), None)
    one, other = trace.since(0)["frames"]
    assert (one.frame, one.denoise, one.decode, one.arrived) == (8, None, None, 1000.0)
    assert (other.frame, other.denoise, other.decode, other.arrived) == (9, 0.05, 0.05, 1000.02)


def test_frames_that_no_one_fetches_are_forgotten():
    trace, made = Trace(), chunk(1)
    for frame in range(REMEMBERED + 10):
        trace.arrived(chunk(1, first_frame=frame))
    trace.sent(paced(made, 0), 0)
    assert trace.since(0)["count"] == 0 and len(trace._on_way) == REMEMBERED


def mark_of(seen):
    """The mark in a player's frame; one that cannot be read obeys nothing."""
    return read(seen[1].to_ndarray(format="rgb24")) or Mark(0, 0, 0)


async def test_a_server_with_marks_tells_the_way_of_what_a_viewer_saw_and_others_tell_nothing(client, player):
    assert (await client.http.get("/mark")).status_code == 404
    async with serving(marks=True, doors=Doors(token="s3cret-s3cret-s3cret")) as guarded:
        assert [(await guarded.http.get(path)).status_code for path in ("/mark", "/mark/a.1/0")] == [401, 401]
        allowed = {"Authorization": "Bearer s3cret-s3cret-s3cret"}
        assert (await guarded.http.get("/mark", headers=allowed)).json()["frames"] == []
    async with serving(marks=True) as marked, marked.page() as page:
        welcome = await hear(page, "welcome")
        await hear(page, "live")
        answer = await marked.post(f"/whep?session={welcome['token']}", await player.offer())
        await player.take(answer.text)
        await player.frames_there(4)
        await say(page, type="keys", seq=1, held=["l"])
        await hear(page, "applied")
        await until(lambda: mark_of(player.frames[-1]).sequence == 1)
        await player.frames_there(len(player.frames) + 4)
        marks = [mark_of(frame) for frame in player.frames]
        told = (await marked.http.get("/mark")).json()
        session, sequence, came = told["controls"][0]
        assert (session, sequence) == (welcome["session"], 1)
        ways = {way.frame: way for way in (FrameTimes(*way) for way in told["frames"])}
        first = next(mark for mark in marks if mark.sequence == 1)
        assert ways[first.frame].sequence == 1 and ways[first.frame].chunk == first.chunk
        picture = await marked.http.get(f"/mark/{session}.1/0")
        assert len(picture.content) == 160 * 96 * 3
        assert (await marked.http.get(f"/mark/{session}.1/1")).status_code == 404
        assert came < ways[first.frame].arrived < ways[first.frame].took < ways[first.frame].sent < told["now"]


def test_sessions_that_went_long_ago_are_forgotten():
    trace = Trace()
    for number in range(REMEMBERED + 10):
        trace.came(f"s{number}", 1)
    trace.came("s0", 1)  # known no more, so it counts as new
    assert trace.since(0)["controls"][-1].session == "s0"
    trace.came(f"s{REMEMBERED + 9}", 1)
    assert trace.since(0)["controls"][-1].session == "s0"
