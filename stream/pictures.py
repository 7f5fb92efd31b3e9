"""Frames on their way to viewers: from a chunk to the pacer, out of the pacer, and how it goes."""

import statistics
from collections import deque
from collections.abc import Callable

from pipeline.chunk import Chunk
from stream import news, protocol
from stream.metrics import Metrics
from stream.pacer import Paced
from stream.runs import Runs
from stream.viewer import Viewer


class Pictures:
    """Counts into `metrics` what comes from the engine and what leaves for viewers, whose credit follows it."""

    def __init__(self, runs: Runs, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._runs, self._metrics, self._clock = runs, metrics, clock
        self._chunk_seconds: deque[float] = deque(maxlen=16)

    def put(self, viewer: Viewer, chunk: Chunk) -> None:
        """A chunk or a part of one has come: its frames wait for their time, and a new scene is told."""
        assert viewer.pacer is not None, "a chunk came for a viewer who was not welcomed"
        if not chunk.more:
            viewer.made = chunk.index + 1
            self._metrics.chunks.inc()
        self._metrics.made.inc(len(chunk.frames))
        for stage, seconds in chunk.seconds.items():
            self._metrics.stage.labels(stage).observe(seconds)
        if "total" in chunk.seconds:
            self._chunk_seconds.append(chunk.seconds["total"])
        scene = protocol.Scene(
            text=chunk.scene, unknown_words=chunk.unknown_words, guessed_words=chunk.guessed_words or None
        )
        if scene != viewer.scene:
            viewer.scene = scene
            viewer.tell(scene)
        viewer.pacer.put(chunk)

    def took(self, viewer: Viewer, paced: Paced) -> None:
        """A frame leaves for the viewer: the engine may go as much further."""
        viewer.fetched = viewer.watched = self._clock()
        viewer.sent_at.append(viewer.fetched)
        viewer.show(paced)
        self._metrics.frames.inc()
        if paced.run == viewer.session.engine_name and not viewer.placing:
            viewer.next_frame = paced.frame + 1
            self._runs.grant(viewer)

    def sent(self, viewer: Viewer, paced: Paced, rtp: int | None) -> None:
        """A frame is on the network with this RTP timestamp: say so if it is the first to obey a control."""
        if paced.run == viewer.session.engine_name and paced.sequence > viewer.applied:
            for seconds in viewer.obeyed(paced.sequence, self._clock()):
                self._metrics.sent.observe(seconds)
            viewer.hear(protocol.Applied(seq=paced.sequence, chunk=paced.chunk, frame=paced.frame, rtp=rtp))

    def tell_stats(
        self, viewers: list[Viewer], waiting: int, turn_left: Callable[[float], float | None] = lambda seconds: None
    ) -> None:
        """Tell those who are live how it goes, and count what their pacers counted. `turn_left` says how much is left
        of the turn of one who has been live for so many seconds."""
        chunk_seconds = statistics.median(self._chunk_seconds) if self._chunk_seconds else 0.0
        for viewer in viewers:
            if viewer.pacer is not None:
                self._count(viewer)
                now, left = self._clock(), turn_left(self._clock() - viewer.live_since)
                viewer.tell(news.stats(viewer, now, chunk_seconds, len(viewers), waiting, left))

    def _count(self, viewer: Viewer) -> None:
        """Put what a pacer counted since the last time into the metrics."""
        assert viewer.pacer is not None, "only those with a picture are counted"
        pacer, (late, dropped, unfetched) = viewer.pacer, viewer.counted
        viewer.counted = pacer.late, pacer.dropped, pacer.unfetched
        self._metrics.late.inc(pacer.late - late)
        self._metrics.dropped.inc(pacer.dropped - dropped)
        self._metrics.unfetched.inc(pacer.unfetched - unfetched)
