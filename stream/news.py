"""What viewers are told of themselves and of the world, as messages. Plain functions."""

from pipeline.chunk import KEYS, World
from stream import protocol
from stream.viewer import Spectator, Viewer

LOADING = "The world is being made ready."
FULL = "All places in this world are taken."
DIED = "The world's engine stopped and is starting again."
LACKS_PICTURE = "This world begins with a picture: send one."
TURN_OVER = "Your turn is over, for others wait; your world goes on when it is your turn again."
STATS_FRAMES_SECONDS = 2.0


def welcome(
    viewer: Viewer, world: World, ice_servers: tuple[protocol.IceServer, ...], may_be_watched: bool = False
) -> protocol.Welcome:
    """What the world is, and who the viewer is in it."""
    return protocol.Welcome(
        version=protocol.VERSION,
        session=viewer.session.name,
        token=viewer.session.token,
        preset=world.preset,
        width=world.width,
        height=world.height,
        fps=world.fps,
        chunk_frames=world.chunk_frames,
        keys=tuple(sorted(KEYS)) if world.camera else (),
        image=world.image,
        ice_servers=ice_servers,
        seq=viewer.session.sequence or None,
        names_pictures=world.names_pictures or None,
        watch_token=viewer.session.watch_token if may_be_watched else None,
    )


def glimpse(
    spectator: Spectator, world: World, ice_servers: tuple[protocol.IceServer, ...], paused_from: int
) -> list[protocol.FromServer]:
    """What a new spectator is told: the world, which takes nothing of them, and how it is. `paused_from` is the chunk
    from which on a world that is paused stands."""
    viewer = spectator.viewer
    mine = {"token": spectator.token, "keys": (), "image": "none", "seq": None, "spectates": True}
    told: list[protocol.FromServer] = [welcome(viewer, world, ice_servers).model_copy(update=mine)]
    if viewer.session.slot is None:
        return told + ([viewer.told] if viewer.told else [])
    told += [live(viewer), *([viewer.scene] if viewer.scene else [])]
    return told + ([protocol.Paused(seq=viewer.session.sequence, chunk=paused_from)] if viewer.paused else [])


def live(viewer: Viewer) -> protocol.Live:
    """The viewer's world is running."""
    session = viewer.session
    assert session.slot is not None, "a live session has a slot"
    return protocol.Live(slot=session.slot, seed=session.seed, prompt=session.prompt)


def queued(
    viewer: Viewer, place: int, waiting: int, reason: str, wait: int | None, lacks_picture: bool
) -> protocol.Queued:
    """The place in line, from 1; `reason` is the world's, and gives way to the viewer's own where the world is well."""
    if viewer.why and reason not in (DIED, LOADING):
        reason = viewer.why
    return protocol.Queued(
        place=place,
        waiting=waiting,
        reason=LACKS_PICTURE if lacks_picture else reason,
        wait_seconds=wait,
        restoring=True if viewer.session.data is not None or viewer.live_since else None,
        needs_picture=lacks_picture or None,
    )


def stats(
    viewer: Viewer, now: float, chunk_seconds: float, live: int, waiting: int, turn_left: float | None
) -> protocol.Stats:
    """How it goes: the rate of the last two seconds, a chunk's median seconds, the lead, the company, and the turn."""
    assert viewer.pacer is not None, "only those with a picture are told how it goes"
    recent = [at for at in viewer.sent_at if now - at <= STATS_FRAMES_SECONDS]
    return protocol.Stats(
        fps=round(len(recent) / STATS_FRAMES_SECONDS, 1),
        chunk_ms=round(1000 * chunk_seconds, 1),
        lead_ms=round(1000 * viewer.pacer.lead_seconds, 1),
        viewers=live,
        waiting=waiting,
        dropped=viewer.pacer.dropped,
        late=viewer.pacer.late,
        chunk=viewer.made,
        turn_seconds=turn_left,
    )
