"""stream/rate.py: the rate follows what the receiver reports, and stays within its bounds."""

import pytest

from stream.rate import MOST_ABOVE, START_BITRATE, Rate


def test_the_lower_of_estimate_and_losses_counts():
    rate = Rate(100_000, 4_000_000)
    assert rate.target == START_BITRATE
    rate.hear_estimate(900_000)
    assert rate.target == 900_000
    rate.hear_estimate(9_000_000)
    assert rate.target == START_BITRATE


def test_without_losses_the_rate_rises_to_the_ceiling_and_no_further():
    rate = Rate(100_000, 4_000_000)
    targets = []
    for _ in range(20):
        rate.hear_loss(0.0)
        targets.append(rate.target)
    assert targets == sorted(targets)
    assert targets[0] == 1.08 * START_BITRATE and targets[-1] == 4_000_000


def test_losses_lower_the_rate_to_the_floor_and_it_comes_back():
    rate = Rate(100_000, 4_000_000)
    rate.hear_loss(0.4)
    assert rate.target == 0.8 * START_BITRATE
    rate.hear_loss(0.05)
    assert rate.target == 0.8 * START_BITRATE
    for _ in range(20):
        rate.hear_loss(0.9)
    assert rate.target == 100_000
    for _ in range(60):
        rate.hear_loss(0.0)
    assert rate.target == 4_000_000


def test_losses_lower_what_is_sent_even_where_the_estimate_is_what_bounds_it():
    rate = Rate(100_000, 4_000_000)
    rate.hear_estimate(300_000)
    rate.hear_loss(0.2)
    assert rate.target == 270_000
    rate.hear_estimate(400_000)
    assert rate.target == 270_000
    for _ in range(5):
        rate.hear_loss(0.0)
    assert rate.target == pytest.approx(270_000 * 1.08**5, rel=0.01)


def test_a_flood_of_requests_lowers_the_rate_though_no_loss_is_reported():
    rate = Rate(100_000, 4_000_000)
    rate.hear_estimate(300_000)
    rate.hear_flood()
    rate.hear_estimate(310_000)
    assert rate.target == 225_000 and not rate.is_calm


def test_a_sudden_fall_of_the_estimate_is_known_and_the_first_one_is_none(clock):
    rate = Rate(100_000, 4_000_000, clock)
    for estimate in (500_000, 800_000, 650_000, 600_000, 500_000):
        rate.hear_estimate(estimate)
    assert rate.fell_at < 0
    rate.hear_estimate(300_000)
    assert rate.fell_at == clock()


def test_the_estimate_is_taken_within_the_bounds_only():
    rate = Rate(300_000, 800_000)
    rate.hear_estimate(1)
    assert rate.target == 300_000
    rate.hear_estimate(10**9)
    assert rate.target == 800_000


def test_a_calm_link_is_sent_a_little_more_than_its_estimate_until_that_falls_or_packets_are_lost():
    for ends in (lambda rate: rate.hear_estimate(900_000), lambda rate: rate.hear_loss(0.03)):
        rate = Rate(100_000, 4_000_000)
        rate.hear_estimate(1_000_000)
        for _ in range(9):
            rate.hear_loss(0.0)
        assert rate.target == round(MOST_ABOVE * 1_000_000)
        ends(rate)
        assert rate.target <= 1_000_000


def test_a_link_is_calm_again_after_some_reports_without_losses():
    rate = Rate(100_000, 4_000_000)
    rate.hear_estimate(200_000)
    rate.hear_loss(0.05)
    for _ in range(4):
        rate.hear_loss(0.0)
        assert not rate.is_calm and rate.target == 200_000
    rate.hear_loss(0.0)
    assert rate.is_calm and rate.target == 216_000


def test_a_link_for_which_more_was_too_much_is_left_alone_for_longer_each_time_and_not_for_ever():
    rate = Rate(100_000, 4_000_000)
    rate.hear_estimate(200_000)
    waits = []
    for _ in range(5):
        rate.hear_loss(0.05)
        waits.append(0)
        while rate.target == 200_000:
            rate.hear_loss(0.0)
            waits[-1] += 1
    assert waits == [5, 10, 20, 40, 80]
    for _ in range(160):
        rate.hear_loss(0.0)
    rate.hear_loss(0.05)
    for _ in range(10):
        rate.hear_loss(0.0)
    assert rate.is_calm
