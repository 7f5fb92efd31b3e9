"""What /metrics tells Prometheus. One registry a server, so that two in one process do not meet."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)


class Metrics:
    """The numbers of one server."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.slots = Gauge(
            "chunkcast_slots", "Sessions that may be live at once; 0 while no engine is", registry=registry
        )
        self.viewers = Gauge("chunkcast_viewers", "Live sessions", registry=registry)
        self.waiting = Gauge("chunkcast_waiting", "Sessions in line", registry=registry)
        self.parked = Gauge("chunkcast_parked", "Sessions that are kept for viewers to come back", registry=registry)
        self.parked_bytes = Gauge("chunkcast_parked_bytes", "Bytes on disk of parked sessions", registry=registry)
        self.chunks = Counter("chunkcast_chunks", "Chunks made", registry=registry)
        self.frames = Counter("chunkcast_frames_sent", "Video frames sent to viewers", registry=registry)
        self.late = Counter(
            "chunkcast_chunks_late", "Chunks that came after their first frame was due", registry=registry
        )
        self.dropped = Counter("chunkcast_frames_dropped", "Frames dropped from a full queue", registry=registry)
        self.deaths = Counter("chunkcast_engine_deaths", "Times that the engine died or hung", registry=registry)
        self.errors = Counter("chunkcast_bad_messages", "Messages refused", registry=registry)
        self.stage = Histogram(
            "chunkcast_chunk_seconds", "Time of a chunk by stage", ["stage"], buckets=_SECONDS, registry=registry
        )
        self.shown = Histogram(
            "chunkcast_control_to_screen_seconds",
            "From a viewer's key or prompt to the first frame on the viewer's screen that obeys it",
            buckets=_SECONDS,
            registry=registry,
        )

    def text(self) -> bytes:
        """The page for Prometheus."""
        return generate_latest(self.registry)
