"""Frozen, checked configurations: one name gives a model and everything that belongs to it.

Sizes and schedules of the public families as their authors publish them. The families differ in step
indexes AND shift; mixing them gives pictures that are subtly wrong, so neither can be set alone.
"""

import re
from dataclasses import dataclass, replace

from pipeline.sampler import PREDICTIONS, Step, steps_from_indexes, steps_from_timesteps
from pipeline.tiny import landscape
from pipeline.transformer import PATCH, TransformerConfig
from pipeline.world_map import Landmark, WorldMapConfig

CAMERA_CHANNELS = {"none": 0, "cam": 6 * 8 * 8, "act": 7 * 8 * 8}
IMAGE_CHANNELS = 4 + 16
PROMPT_CHANGES = ("rebuild", "swap")
PRECISION_NAMES = {"bf16": "plain", "fp8": "fp8"}
"""What a user calls the precisions of kernels.linear."""
LATER_FRAMES = 4
"""Video frames in each latent frame but the first of a stream."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model and how it is run.

    `chunk`, `window` and `sink` count latent frames; the window holds the sink, the past and the
    chunk in the making, None is a context that grows without end. `control` is what steers it: "cam"
    Plucker maps, "act" ray directions and WASD flags, "none" the prompt alone. `image` says what a
    picture becomes: extra input "channels" (which the model then needs), the stream's "first" latent
    frame, or "none". `scale` is pixels along a latent pixel, `first_frames` the video frames of a
    stream's first latent frame, `field_of_view` and `pitch_limit` are in degrees, horizontal and
    up or down. `prediction` is what the model gives of a noisy chunk: its "flow" or the clean chunk ("sample").
    `prompt_change` is whether a new prompt has the cache written anew under it ("rebuild") or is heard by
    cross-attention alone ("swap").

    Raises ValueError where the values do not fit together.
    """

    name: str
    summary: str
    transformer: TransformerConfig
    steps: tuple[Step, ...]
    chunk: int
    window: int | None
    sink: int
    control: str
    image: str
    vae: str = "wan"
    text: str = "umt5"
    height: int = 480
    width: int = 832
    fps: int = 16
    scale: int = 8
    first_frames: int = 1
    field_of_view: float = 70.0
    pitch_limit: float = 85.0
    prompt_change: str = "rebuild"
    prediction: str = "flow"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}")
        if self.chunk < 1:
            raise ValueError(f"a chunk of {self.chunk} latent frames is none; it must be at least 1")
        pixels = self.scale * PATCH
        if self.height % pixels or self.width % pixels:
            raise ValueError(f"{self.width} x {self.height} must be multiples of {pixels}, one token's pixels")
        if self.window is not None and self.window < self.sink + self.chunk:
            raise ValueError(f"a window of {self.window} cannot hold a sink of {self.sink} and a chunk of {self.chunk}")
        if self.transformer.camera_channels != CAMERA_CHANNELS[self.control]:
            raise ValueError(f"control {self.control!r} needs {CAMERA_CHANNELS[self.control]} camera channels")
        if (self.image == "first") > (self.chunk == 1):
            raise ValueError("a picture can only be the first latent frame where a chunk is one latent frame")

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(C, T, h, w) of one chunk."""
        return self.transformer.out_channels, self.chunk, self.height // self.scale, self.width // self.scale

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens of one latent frame."""
        return self.height // self.scale // PATCH, self.width // self.scale // PATCH

    @property
    def first_chunk_frames(self) -> int:
        return self.first_frames + LATER_FRAMES * (self.chunk - 1)

    @property
    def chunk_frames(self) -> int:
        return LATER_FRAMES * self.chunk

    def frames_until(self, chunk: int) -> int:
        """Video frames in a stream's first `chunk` chunks."""
        return self.first_chunk_frames + (chunk - 1) * self.chunk_frames if chunk else 0

    def chunk_of(self, frame: int) -> int:
        """The chunk that makes a stream's video frame `frame`."""
        return 0 if frame < self.first_chunk_frames else 1 + (frame - self.first_chunk_frames) // self.chunk_frames

    @property
    def picture_wanted(self) -> str:
        """Whether a session takes a picture to begin with, in the words of pipeline.chunk.PICTURES."""
        return {"none": "none", "first": "optional", "channels": "required"}[self.image]

    @property
    def chunk_seconds(self) -> float:
        """How long a chunk plays."""
        return self.chunk_frames / self.fps


_CHOICES = {
    "control": tuple(CAMERA_CHANNELS),
    "image": ("none", "first", "channels"),
    "prompt_change": PROMPT_CHANGES,
    "prediction": PREDICTIONS,
    "vae": ("wan", "tiny"),
    "text": ("umt5", "tiny"),
}


def find_preset(name: str) -> Preset:
    """The preset of that name, or with "-chunkN" behind it the same in chunks of N latent frames.

    Raises ValueError that lists the names when there is none, and where such chunks do not fit.
    """
    if name in PRESETS:
        return PRESETS[name]
    asked = re.fullmatch(r"(.+)-chunk([0-9]{1,2})", name)
    if asked is None or asked[1] not in PRESETS:
        raise ValueError(
            f"no preset {name!r}; there are {', '.join(PRESETS)}, and each with -chunkN behind its name in chunks of N "
            "latent frames"
        )
    return at_chunk(PRESETS[asked[1]], int(asked[2]))


def at_chunk(preset: Preset, latents: int) -> Preset:
    """The preset in chunks of so many latent frames, under a name of its own: its sessions are others.

    Shorter chunks answer sooner and cost more; a model sees less of what it was trained with. ValueError where they do
    not fit.
    """
    if latents == preset.chunk:
        return preset
    summary = f"{preset.summary} (in chunks of {latents}; made for {preset.chunk})"
    return replace(preset, name=f"{preset.name}-chunk{latents}", summary=summary, chunk=latents)


def at_precision(preset: Preset, precision: str) -> Preset:
    """The preset with the linears of its transformer's blocks in that precision, a name of PRECISION_NAMES.

    "bf16" is as it comes (float32 on a CPU and for the tiny world), "fp8" another result. Raises ValueError for others,
    and for the tiny world for any but the first.
    """
    if precision not in PRECISION_NAMES:
        raise ValueError(f"no precision {precision!r}; it is {' or '.join(PRECISION_NAMES)}")
    if precision != "bf16" and preset.vae == "tiny":
        raise ValueError(f"the precision {precision} is for the Wan transformers; the tiny world's is float32")
    return replace(preset, transformer=replace(preset.transformer, precision=PRECISION_NAMES[precision]))


def _wan_14b(control: str) -> TransformerConfig:
    return TransformerConfig(
        dim=5120,
        ffn_dim=13824,
        heads=40,
        layers=40,
        in_channels=16 + IMAGE_CHANNELS,
        camera_channels=CAMERA_CHANNELS[control],
    )


def _wan_1_3b(control: str, image: bool) -> TransformerConfig:
    return TransformerConfig(
        dim=1536,
        ffn_dim=8960,
        heads=12,
        layers=30,
        in_channels=16 + (IMAGE_CHANNELS if image else 0),
        camera_channels=CAMERA_CHANNELS[control],
    )


_LINGBOT_FAST = Preset(
    name="lingbot-world-fast",
    summary="LingBot-World-Fast: a picture, walked through with the camera, 14B class",
    transformer=_wan_14b("cam"),
    steps=steps_from_indexes((0, 179, 358, 679), shift=10.0),
    chunk=3,
    window=None,
    sink=3,
    control="cam",
    image="channels",
)

_LINGBOT_V2 = replace(
    _LINGBOT_FAST,
    name="lingbot-world-v2-14b",
    summary="LingBot-World v2 14B: the same with a bounded window",
    steps=steps_from_indexes((0, 250, 500, 750), shift=5.0),
    window=18,
    sink=6,
)

_SELF_FORCING = Preset(
    name="wan2.1-1.3b-self-forcing",
    summary="Self-Forcing: text to video, causal Wan 2.1 1.3B",
    transformer=_wan_1_3b("none", image=False),
    steps=steps_from_timesteps((1000, 750, 500, 250), shift=5.0),
    chunk=3,
    window=21,
    sink=0,
    control="none",
    image="none",
)


def _landmarks() -> tuple[Landmark, ...]:
    """Where the tiny world's things stand; a kind is a size class, its species is the prompt's affair."""
    heights = [landscape.TYPICAL_HEIGHTS[name] for name in landscape.CLASSES]
    radii = [landscape.widest(name) for name in landscape.CLASSES]
    return tuple(
        Landmark(t.x, t.z, t.size * radii[t.size_class], t.size * heights[t.size_class], t.size_class, t.shade)
        for t in landscape.layout()
    )


_TINY = Preset(
    name="tiny",
    summary="the small world that comes with chunkcast and runs on two CPU cores",
    transformer=TransformerConfig(
        dim=256,
        ffn_dim=1024,
        heads=4,
        layers=8,
        in_channels=32,
        out_channels=32,
        text_dim=128,
        text_rows=4,
        camera_channels=CAMERA_CHANNELS["cam"],
        world_map=WorldMapConfig(
            period=landscape.PERIOD,
            eye_height=landscape.EYE_HEIGHT,
            landmarks=_landmarks(),
            kinds=len(landscape.CLASSES),
        ),
    ),
    steps=steps_from_timesteps((1000,), shift=1.0),
    chunk=1,
    window=8,
    sink=0,
    control="cam",
    image="first",
    vae="tiny",
    text="tiny",
    height=192,
    width=320,
    scale=16,
    first_frames=4,
    field_of_view=75.0,
    pitch_limit=14.0,
    prediction="sample",
    prompt_change="swap",  # as quick within a chunk, and the old scene does not linger: benchmarks.prompt_change
)

PRESETS = {
    preset.name: preset
    for preset in (
        _TINY,
        _LINGBOT_FAST,
        replace(
            _LINGBOT_FAST,
            name="lingbot-world-fast-act",
            summary="LingBot-World-Fast steered by actions instead of Plucker maps",
            transformer=_wan_14b("act"),
            control="act",
        ),
        _LINGBOT_V2,
        replace(
            _LINGBOT_V2,
            name="lingbot-world-v2-14b-chunk4",
            summary="the same 14B in chunks of four latent frames: fewer, longer chunks",
            chunk=4,
        ),
        replace(
            _LINGBOT_V2,
            name="lingbot-world-v2-1.3b",
            summary="LingBot-World v2 1.3B: the small one, in chunks of four latent frames",
            transformer=_wan_1_3b("cam", image=True),
            chunk=4,
        ),
        _SELF_FORCING,
        replace(
            _SELF_FORCING,
            name="wan2.1-1.3b-longlive",
            summary="LongLive 1.0: the same for long streams, with a short window and a sink",
            window=12,
            sink=3,
        ),
    )
}
