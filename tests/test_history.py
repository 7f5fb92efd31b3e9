"""Which context passes bring a cache back; chunk numbers only."""

import pytest
import torch

from pipeline.chunk import Control, Event
from pipeline.history import SHELF_CHUNKS, History, Made, Sight, Stale, by_chunk, plan_rebuild, stale_after

SIGHT = Sight(chunk=1, window=8, sink=0)
SUNK = Sight(chunk=3, window=18, sink=6)


def chunks(plan) -> list[int]:
    return [one.chunk for one in plan.passes]


def test_a_chunk_sees_the_sink_and_what_the_window_leaves():
    assert SIGHT.past(3) == [0, 1, 2] and SIGHT.past(20) == list(range(13, 20)) and SIGHT.span == 7
    assert SUNK.past(1) == [0] and SUNK.past(20) == [0, 1, 17, 18, 19] and SUNK.span == 3
    unaligned = Sight(chunk=4, window=18, sink=6)
    assert unaligned.past(10) == [0, 1, 8, 9] and unaligned.span == 2


@pytest.mark.parametrize("sight", [SIGHT, SUNK, Sight(chunk=2, window=7, sink=2), Sight(chunk=4, window=18, sink=6)])
@pytest.mark.parametrize("settles", [True, False])
def test_a_plan_without_depth_writes_what_the_next_chunk_sees_once(sight, settles):
    plan = plan_rebuild((), 30, sight, kept=0, depth=0, settles=settles)
    assert [*chunks(plan), *([] if settles else [plan.owed.chunk])] == sight.past(30)
    assert {one.alone for one in plan.passes} == {settles}


def test_a_plan_of_a_short_session_is_the_whole_run():
    plan = plan_rebuild((), 5, SIGHT, kept=0, depth=56, settles=False)
    assert chunks(plan) == [0, 1, 2, 3] and plan.owed.chunk == 4 and plan.owed.oldest == 0


def test_a_plan_begins_where_a_prompt_had_all_of_the_past_written_anew():
    events = (Event(30, prompt="a desert", rewrites=6),)
    plan = plan_rebuild(events, 33, SIGHT, kept=0, depth=56, settles=False)
    assert chunks(plan) == [*range(23, 29), 29, 30, 31] and {one.prompt for one in plan.passes} == {1}
    assert [one.alone for one in plan.passes] == [True] * 6 + [False] * 3
    assert {one.oldest for one in plan.passes} == {23}


def test_with_swap_each_chunk_is_written_under_the_prompt_of_its_time():
    plan = plan_rebuild((Event(30, prompt="a desert"),), 33, SIGHT, kept=0, depth=0, settles=True)
    assert [(one.chunk, one.prompt) for one in plan.passes] == [(c, int(c >= 30)) for c in range(26, 33)]


def test_a_sink_is_written_as_it_was_last():
    plan = plan_rebuild((Event(10, prompt="a desert", rewrites=5),), 40, SUNK, kept=30, depth=3, settles=True)
    assert [(one.chunk, one.prompt) for one in plan.passes[:2]] == [(0, 1), (1, 1)]
    assert chunks(plan)[2:] == list(range(34, 40))


def test_a_rewrite_that_is_spread_goes_on_after_the_plan():
    plan = plan_rebuild((Event(30, prompt="a desert", rewrites=2),), 32, SIGHT, kept=0, depth=0, settles=True)
    assert plan.stale == Stale((27, 28, 29), 2)


def test_what_has_left_the_window_is_not_written_anew():
    due, left = Stale((13, 14, 15), 1).due(SIGHT, 21)
    assert due == (14,) and left.chunks == (15,)


def test_a_pass_that_is_owed_needs_no_other():
    assert stale_after(SIGHT, 3, owed=True) == (0, 1) and stale_after(SIGHT, 3, owed=False) == (0, 1, 2)


def test_an_event_is_in_force_until_the_next():
    events = (Event(1, frozenset("w")), Event(3, frozenset("l")))
    assert ["".join(event.keys) for _, event in by_chunk(events, 5)] == ["", "w", "w", "l", "l"]


def test_an_event_is_checked_like_a_control():
    with pytest.raises(ValueError, match="no such key: x"):
        Event(0, frozenset("x"))
    with pytest.raises(ValueError, match="counts from 0"):
        Event(-1)
    assert Event(2, frozenset("w")).keys == Control(keys=frozenset("w")).keys


def test_latents_are_kept_in_few_pieces_of_memory_whatever_becomes_of_the_tensors_they_came_from():
    history = History(sink_chunks=1, kept=100)
    for chunk in range(130):
        latents = torch.full((2, 1, 3, 4), float(chunk))
        history.keep(Made(latents, None))
        latents.fill_(-1)
    assert [history.made(chunk).latents.unique().tolist() for chunk in (0, 30, 129)] == [[0], [30], [129]]
    pieces = {history.made(chunk).latents.untyped_storage().data_ptr() for chunk in range(30, 130)}
    assert len(pieces) <= 100 / SHELF_CHUNKS + 2
