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
        """A chunk has come: its frames wait for their time, and a new scene is told."""
        assert viewer.pacer is not None, "a chunk came for a viewer who was not welcomed"
        viewer.made = chunk.index + 1
        self._metrics.chunks.inc()
        for stage, seconds in chunk.seconds.items():
            self._metrics.stage.labels(stage).observe(seconds)
        if "total" in chunk.seconds:
            self._chunk_seconds.append(chunk.seconds["total"])
        if (chunk.scene, chunk.unknown_words) != viewer.scene:
            viewer.scene = chunk.scene, chunk.unknown_words
            viewer.hear(protocol.Scene(text=chunk.scene, unknown_words=chunk.unknown_words))
        viewer.pacer.put(chunk)

    def took(self, viewer: Viewer, paced: Paced) -> None:
        """A frame leaves for the viewer: the engine may go as much further."""
        viewer.fetched = viewer.watched = self._clock()
        viewer.sent_at.append(viewer.fetched)
        self._metrics.frames.inc()
        if paced.run == viewer.session.engine_name and not viewer.placing:
            viewer.next_frame = paced.frame + 1
            self._runs.grant(viewer)

    def sent(self, viewer: Viewer, paced: Paced, rtp: int | None) -> None:
        """A frame is on the network with this RTP timestamp: say so if it is the first to obey a control."""
        if paced.run == viewer.session.engine_name and paced.sequence > viewer.applied:
            viewer.applied = paced.sequence
            viewer.hear(protocol.Applied(seq=paced.sequence, chunk=paced.chunk, frame=paced.frame, rtp=rtp))

    def tell_stats(self, viewers: list[Viewer], waiting: int) -> None:
        """Tell those who are live how it goes, and count what their pacers counted."""
        chunk_seconds = statistics.median(self._chunk_seconds) if self._chunk_seconds else 0.0
        for viewer in viewers:
            if viewer.pacer is not None:
                self._count(viewer)
                viewer.hear(news.stats(viewer, self._clock(), chunk_seconds, len(viewers), waiting))

    def _count(self, viewer: Viewer) -> None:
        """Put what a pacer counted since the last time into the metrics."""
        assert viewer.pacer is not None, "only those with a picture are counted"
        late, dropped = viewer.counted
        viewer.counted = viewer.pacer.late, viewer.pacer.dropped
        self._metrics.late.inc(viewer.pacer.late - late)
        self._metrics.dropped.inc(viewer.pacer.dropped - dropped)
