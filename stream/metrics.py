"""What /metrics tells Prometheus. One registry a server, so that two in one process do not meet.

Label values are those that stand here, whatever a client sends. docs/grafana.json shows all of it.
"""

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

REFUSALS = {
    "address": "an address has all the connections that it may have",
    "closing": "the server is closing",
    "line": "the line is full",
    "origin": "a page of another site",
    "picture": "a picture to begin with that cannot be taken",
    "rate": "messages came too fast",
    "request": "a request or an offer that cannot be taken",
    "spectators": "a session is watched by as many as may watch it",
    "slots": "a player without a page, and no slot or port is free",
    "token": "the server's token is missing or wrong",
    "upload": "as many session files are being received as are taken at a time",
}


class Metrics:
    """The numbers of one server."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._add_sessions()
        self._add_engine()
        self._add_pictures()
        self._add_controls()

    def _add_sessions(self) -> None:
        self.slots = self._gauge("slots", "Sessions that may be live at once; 0 while no engine is")
        self.viewers = self._gauge("viewers", "Live sessions")
        self.waiting = self._gauge("waiting", "Sessions in line")
        self.spectators = self._gauge("spectators", "Who watches the session of someone else")
        self.parked = self._gauge("parked", "Sessions that are kept for viewers to come back")
        self.parked_bytes = self._gauge("parked_bytes", "Bytes on disk of parked sessions")
        self.errors = self._counter("bad_messages", "Messages refused")
        self.refusals = self._counter("refusals", "Who and what was not let in, by reason", "reason")
        for reason in REFUSALS:
            self.refusals.labels(reason)

    def _add_engine(self) -> None:
        self.deaths = self._counter("engine_deaths", "Times that the engine died or hung")
        self.restarts = self._counter("engine_restarts", "Times that an engine was ready again after a death")
        self.chunks = self._counter("chunks", "Chunks made")
        self.made = self._counter("frames_made", "Video frames made")
        self.stage = self._histogram("chunk_seconds", "Time of a chunk by stage", "stage")
        self.memory = self._gauge("resident_bytes", "Memory of the process, shared memory included", "process")

    def _add_pictures(self) -> None:
        self.frames = self._counter("frames_sent", "Video frames sent to viewers")
        self.dropped = self._counter("frames_dropped", "Frames dropped from a full queue")
        self.late = self._counter("chunks_late", "Chunks that came after their first frame was due")
        self.unfetched = self._counter("clock_moves", "Times that a viewer's clock moved on, as no one fetched in time")
        self.peers = self._gauge("pictures", "Connections that fetch a picture")
        self.encoded = self._counter("encoded_bytes", "Bytes of encoded video for all viewers")
        self.bitrate = self._gauge("bitrate_target", "Bits a second that the links of all viewers are taken to carry")
        self.delay = self._gauge(
            "playout_delay_seconds", "The longest that a receiver may hold a frame now, of all viewers"
        )

    def _add_controls(self) -> None:
        self.sent = self._histogram(
            "control_to_send_seconds", "From a viewer's key or prompt until the first frame that obeys it is sent"
        )
        self.shown = self._histogram(
            "control_to_screen_seconds",
            "From a viewer's key or prompt to the first frame on the viewer's screen that obeys it, as pages report it",
        )

    def refuse(self, reason: str) -> None:
        """Count someone or something that was not let in; `reason` is one of REFUSALS."""
        assert reason in REFUSALS, f"no such refusal: {reason}"
        self.refusals.labels(reason).inc()

    def text(self) -> bytes:
        """The page for Prometheus."""
        return generate_latest(self.registry)

    def _counter(self, name: str, says: str, *labels: str) -> Counter:
        return Counter(f"chunkcast_{name}", says, labels, registry=self.registry)

    def _gauge(self, name: str, says: str, *labels: str) -> Gauge:
        return Gauge(f"chunkcast_{name}", says, labels, registry=self.registry)

    def _histogram(self, name: str, says: str, *labels: str) -> Histogram:
        return Histogram(f"chunkcast_{name}", says, labels, buckets=_SECONDS, registry=self.registry)


def resident_bytes(pid: int | None) -> int:
    """The memory of a process; 0 where there is none, or no /proc."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0
