"""pipeline/cores.py: shares of the cores, and that nothing outside them notices."""

import os
import threading

import pytest
import torch

from pipeline.cores import Shares, available_cores


def test_the_items_are_worked_on_at_the_same_time_and_none_waits_for_a_slower_one():
    together, taken = threading.Barrier(2, timeout=60), threading.Event()

    def work(item):
        together.wait()
        assert item == 1 or taken.wait(60)
        return 10 * item

    shares = Shares(2)
    with shares.kept_to():
        results = shares.each(work, [2, 1])
        assert next(results) == 10
        taken.set()
        assert list(results) == [20]


def test_each_share_has_its_part_of_the_cores_also_when_it_is_alone():
    shares = Shares(2)
    expected = max(1, available_cores() // 2)
    with shares.kept_to():
        assert list(shares.each(lambda _: torch.get_num_threads(), [0])) == [expected]
        assert list(shares.each(lambda _: torch.get_num_threads(), [0, 1])) == [expected] * 2


def test_shares_at_work_at_the_same_time_are_on_cores_of_their_own():
    if available_cores() < 2:
        pytest.skip("needs two cores")
    together = threading.Barrier(2, timeout=60)

    def cores(_):
        together.wait()
        return os.sched_getaffinity(0)

    shares, before = Shares(2), os.sched_getaffinity(0)
    one, other = shares.each(cores, [0, 1])
    assert not one & other and len(one) == len(other) == shares.threads
    assert os.sched_getaffinity(0) == before


def test_more_shares_than_cores_have_one_thread_each():
    assert Shares(10 * available_cores()).threads == 1


def test_afterwards_torch_splits_its_work_as_before():
    before = torch.get_num_threads()
    with Shares(2).kept_to():
        pass
    assert torch.get_num_threads() == before
