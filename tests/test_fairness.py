"""stream/fairness.py: turns, idle viewers and the wait that is told."""

import pytest

from stream.fairness import Fairness, Stays


def test_without_limits_no_one_has_to_go():
    assert not Fairness().turn_is_over(1e9) and not Fairness().is_idle(1e9)


def test_limits_hold_from_their_very_second_on():
    limits = Fairness(turn=60, idle=300)
    assert [limits.turn_is_over(seconds) for seconds in (59.9, 60)] == [False, True]
    assert [limits.is_idle(seconds) for seconds in (299.9, 300)] == [False, True]


@pytest.mark.parametrize(("place", "wait"), [(1, 10), (2, 40), (3, 70), (4, 100)])
def test_with_turns_the_wait_is_that_of_the_slot_that_is_free_at_this_place(place, wait):
    assert Fairness(turn=60).wait(place, [20, 50], mean_stay=None) == wait


def test_without_turns_the_wait_follows_the_mean_stay_in_steps_of_five_seconds():
    assert Fairness().wait(1, [20, 50], mean_stay=46) == 25
    assert Fairness().wait(4, [20, 50], mean_stay=46) == 90


def test_no_wait_is_made_up():
    assert Fairness().wait(1, [20, 50], mean_stay=None) is None
    assert Fairness(turn=60).wait(1, [], mean_stay=10) is None
    assert Stays().mean is None


def test_the_mean_stay_is_that_of_the_last_viewers():
    stays = Stays()
    for seconds in [1000] * 10 + [10] * 31 + [42]:
        stays.note(seconds)
    assert stays.mean == 11


@pytest.mark.parametrize("limit", [{"turn": 0}, {"idle": -1}])
def test_a_limit_of_nothing_is_refused(limit):
    with pytest.raises(ValueError, match="must be more than 0"):
        Fairness(**limit)
