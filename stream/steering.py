"""What a viewer's messages do to a world: keys and prompts, pause, and the way back. Each is answered."""

import time
from collections.abc import Callable

from pipeline.chunk import Control
from stream import news, protocol
from stream.runs import Runs
from stream.session import State
from stream.upload import name_of
from stream.viewer import REWINDS_A_SECOND, REWINDS_AT_ONCE, Viewer


class Steering:
    """Does what messages say to the sessions that run in `runs`. `clock` is in seconds."""

    def __init__(self, runs: Runs, clock: Callable[[], float] = time.monotonic) -> None:
        self._runs, self._clock = runs, clock

    def obey(self, viewer: Viewer, message: protocol.FromClient) -> None:
        """Do what a message says, and say that it was received. ProtocolError for what cannot be done now."""
        session = viewer.session
        match message:
            case protocol.Keys(seq=seq, held=held):
                self._steer(viewer, session.press(seq, frozenset(held), self._clock()))
            case protocol.Prompt(seq=seq, text=text):
                self._steer(viewer, session.change(seq, text))
            case protocol.Rewind():
                self._rewind(viewer, message)
            case protocol.Pause(seq=seq) | protocol.Unpause(seq=seq):
                self._pause(viewer, seq, isinstance(message, protocol.Pause))
                return
            case _:
                raise AssertionError(f"{message.type} steers nothing")
        viewer.hear(protocol.Received(seq=message.seq))

    def release_stale(self, viewer: Viewer, now: float) -> None:
        """Let go of keys that were not sent again in time."""
        if control := viewer.session.release_stale(now):
            self._steer(viewer, control)

    def _steer(self, viewer: Viewer, control: Control) -> None:
        if viewer.session.state is State.LIVE:
            self._runs.steer(viewer, control)

    def _pause(self, viewer: Viewer, seq: int, paused: bool) -> None:
        session = viewer.session
        if session.state is not State.LIVE:
            raise protocol.ProtocolError("only a world that is live can be paused; wait until it is", seq)
        viewer.hear(protocol.Received(seq=seq))
        session.sequence = max(session.sequence, seq)
        viewer.paused = paused
        if paused:
            self.tell_paused(viewer, seq)
        else:
            if viewer.pacer is not None:
                viewer.pacer.rested()
            self._steer(viewer, Control(session.sequence, session.held))
            self._runs.grant(viewer)
            viewer.tell_audience(news.live(viewer))

    def tell_paused(self, viewer: Viewer, seq: int) -> None:
        """The world stands still, from the chunk on up to which the engine may go."""
        last = max(viewer.granted, viewer.next_frame)
        viewer.tell(protocol.Paused(seq=seq, chunk=self._runs.chunk_from(last)))

    def beginning(self, viewer: Viewer, message: protocol.Restart) -> tuple[str, bytes | None]:
        """The prompt and the picture that the restarted world begins with. ProtocolError, with all as it was, for a
        picture that is not there, and for an empty prompt where no picture says what to see."""
        picture = self._picture_for(viewer, message)
        prompt = viewer.session.prompt if message.prompt is None else message.prompt
        if prompt == "" and picture is None:
            reason = "a world without a picture needs a prompt: say in a few words what to see"
            raise protocol.ProtocolError(reason, message.seq)
        if prompt == "" and not (self._runs.world and self._runs.world.names_pictures):
            reason = "this world does not know what a picture shows: say in a few words what to see"
            raise protocol.ProtocolError(reason, message.seq)
        return prompt, picture

    def _picture_for(self, viewer: Viewer, message: protocol.Restart) -> bytes | None:
        if message.image is None:
            return viewer.session.image
        if message.image == protocol.NO_PICTURE:
            if self._runs.world is not None and self._runs.world.image == "required":
                raise protocol.ProtocolError("this world cannot begin without a picture: send one", message.seq)
            return None
        for picture in (viewer.picture, viewer.session.image):
            if picture is not None and name_of(picture) == message.image:
                return picture
        reason = "there is no such picture: PUT it to /api/sessions/{session}/image first; the newest one is kept"
        raise protocol.ProtocolError(reason, message.seq)

    def _rewind(self, viewer: Viewer, message: protocol.Rewind) -> None:
        session = viewer.session
        self._check_rewind(viewer, message)
        session.sequence, session.prompted = max(session.sequence, message.seq), 0
        viewer.paused = False
        self._runs.rewind(viewer, message.chunk)
        viewer.tell_audience(news.live(viewer))

    def _check_rewind(self, viewer: Viewer, message: protocol.Rewind) -> None:
        if viewer.session.state is not State.LIVE:
            raise protocol.ProtocolError("only a world that is live can go back; wait until it is", message.seq)
        if viewer.placing:
            raise protocol.ProtocolError("the world is going back already; wait until it is there", message.seq)
        if message.chunk > viewer.made:
            raise protocol.ProtocolError(
                f"the world has {viewer.made} chunks; it can go back to 0 up to {viewer.made}, not {message.chunk}",
                message.seq,
            )
        assert self._runs.world is not None, "a live viewer has a world"
        back, kept = viewer.made - message.chunk, self._runs.world.kept_chunks
        if kept and back > kept - self._runs.world.resume_chunks:
            remembered = kept - self._runs.world.resume_chunks
            raise protocol.ProtocolError(
                f"the world remembers {remembered} chunks; it cannot go back {back}", message.seq
            )
        needed = message.chunk - self._runs.world.resume_chunks
        if 0 < needed < viewer.oldest:
            raise protocol.ProtocolError("the world does not remember what was before it was put away", message.seq)
        if not viewer.rewinds.take():
            raise protocol.ProtocolError(
                f"a world can go back {REWINDS_AT_ONCE} times in a row, then every {1 / REWINDS_A_SECOND:.0f} seconds",
                message.seq,
            )
