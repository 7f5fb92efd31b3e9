"""Who holds which row of the batch: admit, free, and what each session keeps in its slot."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from pipeline.batch import Owed
from pipeline.chunk import Control, SessionSpec, WorldFull
from pipeline.conditioning import ImageConditioning
from pipeline.history import History, Stale
from pipeline.steering import Steering
from pipeline.text_encoder import EncodedPrompt
from pipeline.transformer import TextTerms


@dataclass
class Slot:
    """One live session: its position in the stream and everything that only it may touch.

    `index` is the row of the key-value cache and the decoder that are its own. A picture that it began
    with is extra input channels (`image`) or the first latent frame (`first`). `chunk` and `frame`
    count what was made so far; `owed` is the chunk whose context pass has not run; `held` is the control in
    force, `waiting` the newest one that no chunk obeys yet; `stale` is what a new prompt left to be written anew.
    """

    index: int
    spec: SessionSpec
    steering: Steering
    history: History
    prompt: str = ""
    encoded: EncodedPrompt | None = None
    text: list[TextTerms] = field(default_factory=list)
    image: ImageConditioning | None = None
    first: Tensor | None = None
    owed: Owed | None = None
    stale: Stale = field(default_factory=Stale)
    held: Control = field(default_factory=Control)
    waiting: Control | None = None
    chunk: int = 0
    frame: int = 0

    def receive(self, control: Control) -> None:
        """Keep `control` for the next boundary; it replaces what still waits there."""
        self.waiting = control if self.waiting is None else self.waiting.then(control)

    def take(self) -> Control:
        """The control for the chunk that begins now; its prompt is None unless it just changed."""
        control = self.held if self.waiting is None else self.waiting
        self.held, self.waiting = Control(control.sequence, control.keys), None
        return control


class Slots:
    """The rows of the batch. A row belongs to one session from admit() to free(), never to two."""

    def __init__(self, count: int, release: Callable[[int], None]):
        """`release` is called with a row's index when its session has gone."""
        self._rows: list[Slot | None] = [None] * count
        self._release = release

    def __iter__(self) -> Iterator[Slot]:
        return (slot for slot in self._rows if slot is not None)

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, session: str) -> Slot | None:
        return next((slot for slot in self if slot.spec.session == session), None)

    def admit(self, spec: SessionSpec, make: Callable[[int], Slot]) -> Slot:
        """Give `spec` the first free row; `make(index)` builds what it keeps there.

        Raises ValueError when the session is live already, WorldFull when no row is free.
        """
        if self.find(spec.session) is not None:
            raise ValueError(f"session {spec.session} is live already")
        if None not in self._rows:
            raise WorldFull(f"all {len(self._rows)} places are taken")
        index = self._rows.index(None)
        self._rows[index] = make(index)
        return self._rows[index]

    def renew(self, slot: Slot, make: Callable[[int], Slot]) -> Slot:
        """Put what `make(index)` builds into the slot's row in its place; where it fails the row is freed."""
        try:
            self._rows[slot.index] = make(slot.index)
        except BaseException:
            self.free(slot)
            raise
        return self._rows[slot.index]

    def free(self, slot: Slot) -> None:
        assert self._rows[slot.index] is slot, f"row {slot.index} is not held by session {slot.spec.session}"
        self._rows[slot.index] = None
        self._release(slot.index)
