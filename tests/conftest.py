"""What the tests share: a clock that they turn, and a server with those who watch it."""

import contextlib
import gc
import os
import time
from pathlib import Path

import pytest

with contextlib.suppress(ImportError):  # tests of the engine run where it is not installed
    from hypothesis import settings

    # The same examples each time, and none fails because the machine was busy with something else for a moment.
    settings.register_profile("calm", derandomize=True, deadline=None)
    settings.load_profile("calm")

# As in the engine's process, and before torch is imported: its threads sleep while they wait, or a busy machine
# makes every small operation many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_collection_finish() -> None:
    """What was imported stays: no collection looks at it again, as in the server's own process."""
    gc.collect()
    gc.freeze()


class FakeClock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Stopwatch:
    """Seconds since it was made, but for those for which this process waited for a processor: what a busy machine
    keeps it from is no fault of its own."""

    def __init__(self) -> None:
        self._began, self._waited = time.monotonic(), self._waited_seconds()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began - (self._waited_seconds() - self._waited)

    def _waited_seconds(self) -> float:
        from stream.pulse import waited_seconds  # here, as the server's other parts below

        return waited_seconds(os.getpid())


def shared_memory() -> set[str]:
    """The pieces that have a name; a browser's, which others may run beside this, are not ours."""
    names = os.listdir("/dev/shm") if Path("/dev/shm").is_dir() else ()
    return {name for name in names if "chrom" not in name.lower()}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def client():
    """A client of a server with the fake engine."""
    from serving import serving  # here, for tests of the engine run where nothing of the server's is installed

    async with serving() as made:
        yield made


@pytest.fixture
async def player():
    """A WHEP player that is no browser."""
    from serving import Player

    made = Player()
    yield made
    await made.connection.close()


@pytest.fixture
def server(tmp_path):
    """Starts servers with the fake engine in processes of their own: `server(**options)`, as serving.Server takes."""
    from serving import Server

    made = []

    def start(**options):
        made.append(Server(tmp_path, **options))
        return made[-1]

    yield start
    for one in made:
        one.kill()
