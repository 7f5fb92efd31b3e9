"""stream/tidy.py: when there is time for it."""

from stream.tidy import Tidy, trim


def test_it_is_tidied_now_and_then_where_there_is_time_and_at_last_where_there_is_none(clock):
    tidied, tidy = [], Tidy(20.0, 0.05, clock)
    for _ in range(100):
        clock.advance(1)
        tidy.rest(0.04, lambda: tidied.append(clock.now))
    assert tidied == [1040.0, 1080.0]
    clock.advance(1)
    tidy.rest(0.06, lambda: tidied.append(clock.now))
    assert tidied[2:] == [1101.0]
    clock.advance(1)
    tidy.rest(10.0, lambda: tidied.append(clock.now))
    assert len(tidied) == 3


def test_trimming_does_no_harm():
    trim()
