"""The CPU's cores in equal shares, one for each slot, that work at the same time.

A small model's operations are too short to be split over cores: on two cores two threads make one chunk only a
quarter sooner, and wait for each other whenever anything else runs. A slot on its own share waits for no one.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


class Shares:
    """`count` shares of the cores that are there; a share has at least one thread."""

    def __init__(self, count: int):
        self.threads = max(1, available_cores() // count)
        shares = itertools.cycle(_divided(sorted(os.sched_getaffinity(0)), self.threads, count))
        # Each thread is bound to its cores: left alone, Linux wakes them all on the core of the one that woke them, and
        # moves them apart only after a while.
        self._pool = ThreadPoolExecutor(count, "share", lambda: os.sched_setaffinity(0, next(shares)))

    @contextlib.contextmanager
    def kept_to(self) -> Iterator[None]:
        """Within it torch splits an operation over the threads of one share only."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def each(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """`function` of each item, all at the same time, whichever is done first; one alone stays on this thread.

        To be read within kept_to().
        """
        if len(items) == 1:
            yield function(items[0])
            return
        for done in as_completed([self._pool.submit(function, item) for item in items]):
            yield done.result()


def _divided(cores: Sequence[int], size: int, count: int) -> list[set[int]]:
    """At most `count` sets of `size` cores."""
    return [set(cores[first : first + size]) for first in range(0, len(cores), size)][:count]
