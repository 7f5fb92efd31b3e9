"""Those who watch somebody's world by a link that was shared: let in, found by their tokens, sent away. No sockets.

A spectator sees the frames that leave for the viewer, through an encoder of its own, and steers nothing. It holds no
slot, takes no place in line and keeps no world alive: where the viewer fetches no picture, nothing is made.
"""

from stream.metrics import Metrics
from stream.viewer import Hear, Spectator, Viewer

SPECTATORS = 8
"""Who may watch one session at once, if not told otherwise."""
UNKNOWN = "There is no one to watch here: the walk is over, or the link is wrong."


class Audience:
    """All spectators of a server; `most` may watch one session at once."""

    def __init__(self, most: int, metrics: Metrics) -> None:
        self._most, self._metrics = most, metrics
        self._spectators: dict[str, Spectator] = {}

    @property
    def is_allowed(self) -> bool:
        """Whether anyone may watch."""
        return self._most > 0

    def find(self, token: str) -> Spectator | None:
        """The spectator whose secret this is."""
        return self._spectators.get(token)

    def join(self, viewer: Viewer, hear: Hear) -> Spectator:
        """One more who watches `viewer`, from the frame that left last. ValueError where there are enough."""
        if len(viewer.audience) >= self._most:
            self._metrics.refuse("spectators")
            raise ValueError(f"At most {self._most} may watch this world at once; try again later.")
        spectator = Spectator(viewer, hear)
        viewer.audience.append(spectator)
        self._spectators[spectator.token] = spectator
        self._metrics.spectators.set(len(self._spectators))
        if viewer.newest is not None:
            spectator.pacer.put(viewer.newest)
        return spectator

    def leave(self, spectator: Spectator) -> None:
        """A spectator goes; once more is no error."""
        if self._spectators.pop(spectator.token, None) is None:
            return
        spectator.viewer.audience.remove(spectator)
        spectator.ended()
        self._metrics.spectators.set(len(self._spectators))

    def dismiss(self, viewer: Viewer) -> None:
        """The viewer's world is over, or put away: all who watch go."""
        for spectator in list(viewer.audience):
            self.leave(spectator)
