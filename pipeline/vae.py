"""The Wan 2.1 VAE: weights in one place, the state of each stream in its own object.

Every convolution in time looks only back, so a stream can be decoded or encoded a few latent frames at a time: a
causal convolution keeps the last frames of its input, and that is the whole state. Module names are the checkpoint's.

A picture before frames of nothing. Each layer of the encoder looks a bounded number of frames back, so behind a picture
and zeros its output repeats after a few frames: two more for every convolution, half as many and one more where time is
halved. The `settle` methods take a video whose last frame goes on for ever and return their output until it does the
same. For Wan's encoder that is 12 frames after the full-resolution stage, 20 after each of the two below it, and 30
latent frames at the end, where encoding frame by frame would put 117 through every layer.

C channels, N frames, T latent frames, h w latent height and width, H W picture height and width in pixels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.conv import norm_silu

WAN_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
WAN_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


class StreamingDecoder(Protocol):
    """One a slot: shares the weights, owns its state.

    `reach` is how many latent frames that state depends on: decode so many after a reset(), and it is what a stream
    that never stopped has.
    """

    reach: int

    def reset(self) -> None: ...

    def decode(self, latent: Tensor) -> Tensor:
        """Normalised latents (C, T, h, w), as the transformer sees them, to frames (3, N, H, W) in [-1, 1]."""


class StreamingEncoder(Protocol):
    """One a slot: shares the weights, owns its state."""

    def reset(self) -> None: ...

    def encode(self, video: Tensor) -> Tensor:
        """Frames (3, N, H, W) in [-1, 1] to normalised latents (C, T, h, w)."""


class StillEncoder(Protocol):
    """Encodes a picture that nothing follows."""

    def encode_still(self, image: Tensor) -> Tensor:
        """A picture (3, H, W) in [-1, 1] before zero frames without end, to normalised latents (C, T, h, w).

        They are the stream's first T; from there on the last one repeats.
        """


class VAE(Protocol):
    """Weights, and what keeps one stream's state."""

    dtype: torch.dtype

    def decoder(self) -> StreamingDecoder: ...
    def encoder(self) -> StreamingEncoder | StillEncoder: ...


@dataclass(frozen=True)
class WanVAEConfig:
    """Raises ValueError where the values do not fit together.

    `temporal_downsample` says for each change of resolution on the way down whether time is halved too; `mean` and
    `std` are those of each latent channel.
    """

    dim: int = 96
    latent_channels: int = 16
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    residual_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    mean: tuple[float, ...] = WAN_MEAN
    std: tuple[float, ...] = WAN_STD

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.multipliers) - 1:
            raise ValueError(f"{len(self.multipliers)} stages change resolution {len(self.multipliers) - 1} times")
        if {len(self.mean), len(self.std)} != {self.latent_channels}:
            raise ValueError(f"mean and std must have one number for each of {self.latent_channels} latent channels")

    @property
    def group(self) -> int:
        """Video frames in each latent frame but a stream's first, which has one."""
        return 2 ** sum(self.temporal_downsample)

    @property
    def reach(self) -> int:
        """Latent frames that the decoder's state depends on.

        Each convolution in time looks two of its own frames back, and those are finer after each doubling.
        """
        residual = 4.0
        rate, reach = 1, 2 + 2 * residual
        for doubles in (*self.temporal_downsample[::-1], None):
            reach += (self.residual_blocks + 1) * residual / rate
            if doubles:
                reach += 2 / rate
                rate *= 2
        return math.ceil(reach + 2 / rate) + 1  # and the first after a reset has a path of its own


class State:
    """What the convolutions of one stream remember; `fresh` until the stream's first latent frame is through."""

    def __init__(self) -> None:
        self.past: dict[nn.Module, Tensor] = {}
        self.fresh = True

    def extend(self, layer: nn.Module, x: Tensor, frames: int) -> Tensor:
        """x (1, C, N, H, W) behind the `frames` frames before it, zeros at a stream's start; remembers the new last."""
        past = self.past.get(layer)
        if past is None:
            past = x.new_zeros(*x.shape[:2], frames, *x.shape[3:])
        joined = torch.cat((past, x), dim=2)
        self.past[layer] = joined[:, :, -frames:].clone()  # a copy, or the whole of `joined` would stay alive
        return joined


class CausalConv3d(nn.Conv3d):
    """Pads in space as told, in time with the stream's past only."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int], stride_in_time: int = 1):
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        super().__init__(inputs, outputs, kernel, stride=(stride_in_time, 1, 1), padding=padding)

    def forward(self, x: Tensor, state: State) -> Tensor:
        frames = self.kernel_size[0] - 1
        return super().forward(state.extend(self, x, frames) if frames else x)

    def settle(self, x: Tensor) -> Tensor:
        frames = self.kernel_size[0] - 1
        return super().forward(_held(x, x.shape[2] + frames, frames) if frames else x)


class RMSNorm(nn.Module):
    """x / ||x|| * sqrt(C) * gamma over the channels of a picture (..., H, W) or a video (..., N, H, W).

    With `silu` that too, in the same pass where there is a kernel for it.
    """

    def __init__(self, channels: int, space_and_time: int, silu: bool = False):
        super().__init__()
        self.silu = silu
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * space_and_time))

    def forward(self, x: Tensor) -> Tensor:
        if self.silu:
            return norm_silu(x, self.gamma)
        return F.normalize(x, dim=1) * (self.gamma * math.sqrt(self.gamma.shape[0]))


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.residual = nn.Sequential(
            RMSNorm(inputs, 3, silu=True),
            nn.Identity(),  # SiLU's place in the checkpoint
            CausalConv3d(inputs, outputs, (3, 3, 3)),
            RMSNorm(outputs, 3, silu=True),
            nn.Identity(),
            nn.Identity(),  # dropout in training
            CausalConv3d(outputs, outputs, (3, 3, 3)),
        )
        self.shortcut = CausalConv3d(inputs, outputs, (1, 1, 1)) if inputs != outputs else None

    def forward(self, x: Tensor, state: State) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x, state)
        return shortcut + _run(self.residual, x, state)

    def settle(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut.settle(x)
        settled, frames = _settle(self.residual, x), x.shape[2]
        settled[:, :, :frames] += shortcut
        settled[:, :, frames:] += shortcut[:, :, -1:]
        return settled


class SpatialAttention(nn.Module):
    """One head over the pixels of each frame by itself."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = RMSNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, state: State) -> Tensor:
        frames = _as_pictures(x)
        q, k, v = self.to_qkv(self.norm(frames)).flatten(2).mT.unsqueeze(1).chunk(3, dim=-1)  # (N, 1, HW, C)
        seen = F.scaled_dot_product_attention(q, k, v).squeeze(1).mT.unflatten(2, frames.shape[2:])
        return x + _as_video(self.proj(seen), len(x))

    def settle(self, x: Tensor) -> Tensor:
        return torch.cat([self(frame, State()) for frame in x.split(1, dim=2)], dim=2)  # all at once is much memory


class Downsample(nn.Module):
    """Half the height and width; with `in_time` half the frames too, but for a stream's first."""

    def __init__(self, channels: int, in_time: bool):
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if in_time else None

    def forward(self, x: Tensor, state: State) -> Tensor:
        x = _as_video(self.resample(_as_pictures(x)), len(x))
        if self.time_conv is None:
            return x
        if state.fresh:
            state.past[self.time_conv] = x[:, :, -1:].clone()
            return x
        return self.time_conv(state.extend(self.time_conv, x, 1))

    def settle(self, x: Tensor) -> Tensor:
        x = _as_video(self.resample(_as_pictures(x)), len(x))
        if self.time_conv is None:
            return x
        # Output j sees inputs 2j-2 to 2j, and the first input is the first output: it settles at j = last/2 + 1.
        settled = math.ceil((x.shape[2] - 1) / 2) + 1
        x = _held(x, 2 * settled + 1)
        return torch.cat((x[:, :, :1], self.time_conv(x)), dim=2)


class Upsample(nn.Module):
    """Twice the height and width, half the channels; with `in_time` twice the frames too, but for a stream's first."""

    def __init__(self, channels: int, in_time: bool):
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest-exact"), nn.Conv2d(channels, channels // 2, 3, padding=1)
        )
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if in_time else None

    def forward(self, x: Tensor, state: State) -> Tensor:
        if self.time_conv is not None and not state.fresh:
            x = _in_turns(self.time_conv(x, state))
        return _as_video(self.resample(_as_pictures(x)), len(x))


def _in_turns(pairs: Tensor) -> Tensor:
    """(1, 2C, N, H, W), two frames' channels, to (1, C, 2N, H, W), in the layout that it came in."""
    if pairs.is_contiguous():
        return pairs.unflatten(1, (2, -1)).movedim(1, 3).flatten(2, 3)
    return pairs.movedim(1, -1).unflatten(-1, (2, -1)).movedim(-2, 2).flatten(1, 2).movedim(-1, 1)


def _as_pictures(x: Tensor) -> Tensor:
    """(B, C, N, H, W) to (B*N, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)


def _as_video(x: Tensor, batch: int) -> Tensor:
    """(B*N, C, H, W) to (B, C, N, H, W)."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)


STATEFUL = (CausalConv3d, Residual, SpatialAttention, Downsample, Upsample)


def _run(layers: nn.Sequential, x: Tensor, state: State) -> Tensor:
    for layer in layers:
        x = layer(x, state) if isinstance(layer, STATEFUL) else layer(x)
    return x


def _settle(layers: nn.Sequential, x: Tensor) -> Tensor:
    """x: (1, C, N, H, W), its last frame for ever; returns the same of the layers' output."""
    for layer in layers:
        x = layer.settle(x) if isinstance(layer, STATEFUL) else layer(x)
    return x


def _held(x: Tensor, frames: int, before: int = 0) -> Tensor:
    """x (1, C, N, H, W) and its last frame again until there are `frames`, behind `before` of zeros; laid out as x."""
    last = x.movedim(1, -1).is_contiguous()
    layout = torch.channels_last_3d if last else torch.contiguous_format
    shape = (*x.shape[:2], before + frames, *x.shape[3:])
    held, end = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout), before + x.shape[2]
    held[:, :, :before] = 0
    held[:, :, before:end] = x
    held[:, :, end:] = x[:, :, -1:]
    return held


def _middle(channels: int) -> nn.Sequential:
    return nn.Sequential(Residual(channels, channels), SpatialAttention(channels), Residual(channels, channels))


def _head(channels: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(RMSNorm(channels, 3, silu=True), nn.Identity(), CausalConv3d(channels, outputs, (3, 3, 3)))


class Encoder(nn.Module):
    def __init__(self, config: WanVAEConfig):
        super().__init__()
        widths = [config.dim * multiplier for multiplier in config.multipliers]
        self.conv1 = CausalConv3d(3, config.dim, (3, 3, 3))
        self.downsamples = nn.Sequential(*self._stages(config, widths))
        self.middle = _middle(widths[-1])
        self.head = _head(widths[-1], 2 * config.latent_channels)

    @staticmethod
    def _stages(config: WanVAEConfig, widths: list[int]) -> Iterator[nn.Module]:
        width = config.dim
        for stage, wider in enumerate(widths):
            for _ in range(config.residual_blocks):
                yield Residual(width, wider)
                width = wider
            if stage < len(widths) - 1:
                yield Downsample(width, config.temporal_downsample[stage])

    def forward(self, x: Tensor, state: State) -> Tensor:
        x = self.conv1(x, state)
        for part in (self.downsamples, self.middle, self.head):
            x = _run(part, x, state)
        return x

    def settle(self, x: Tensor) -> Tensor:
        x = self.conv1.settle(x)
        for part in (self.downsamples, self.middle, self.head):
            x = _settle(part, x)
        return x


class Decoder(nn.Module):
    def __init__(self, config: WanVAEConfig):
        super().__init__()
        widths = [config.dim * multiplier for multiplier in reversed(config.multipliers)]
        self.conv1 = CausalConv3d(config.latent_channels, widths[0], (3, 3, 3))
        self.middle = _middle(widths[0])
        self.upsamples = nn.Sequential(*self._stages(config, widths))
        self.head = _head(widths[-1], 3)

    @staticmethod
    def _stages(config: WanVAEConfig, widths: list[int]) -> Iterator[nn.Module]:
        width = widths[0]
        for stage, wider in enumerate(widths):
            for _ in range(config.residual_blocks + 1):
                yield Residual(width, wider)
                width = wider
            if stage < len(widths) - 1:
                yield Upsample(width, config.temporal_downsample[::-1][stage])
                width //= 2

    def forward(self, x: Tensor, state: State) -> Tensor:
        x = self.conv1(x, state)
        for part in (self.middle, self.upsamples, self.head):
            x = _run(part, x, state)
        return x


class WanVAE(nn.Module):
    """The weights; `decoder()` and `encoder()` give a stream its own state over them."""

    def __init__(self, config: WanVAEConfig | None = None):
        super().__init__()
        self.config = config or WanVAEConfig()
        channels = self.config.latent_channels
        self._modules["encoder"] = Encoder(self.config)  # the methods of these names are what callers want
        self._modules["decoder"] = Decoder(self.config)
        self.conv1 = CausalConv3d(2 * channels, 2 * channels, (1, 1, 1))
        self.conv2 = CausalConv3d(channels, channels, (1, 1, 1))

    @property
    def dtype(self) -> torch.dtype:
        return self.conv1.weight.dtype

    def decoder(self) -> "WanDecoder":
        return WanDecoder(self)

    def encoder(self) -> "WanEncoder":
        return WanEncoder(self)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of the latent channels, (C, 1, 1, 1) each."""
        mean, std = (like.new_tensor(values)[:, None, None, None] for values in (self.config.mean, self.config.std))
        return mean, std


class _Stream:
    """The state of one stream over shared weights; its first latent frame goes alone, those after it together."""

    def __init__(self, vae: WanVAE):
        self.vae = vae
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        self._state = State()
        self._mean, self._std = self.vae._statistics(self.vae.conv1.weight)

    def _pieces(self, x: Tensor) -> Iterator[Tensor]:
        """Parts of x (C, N, ...) that may go through the network at once, each as a batch of one."""
        if self._state.fresh:
            yield x[None, :, :1]
            self._state.fresh = False
            x = x[:, 1:]
        if x.shape[1]:
            yield x[None]


class WanDecoder(_Stream):
    """A StreamingDecoder: a stream's first latent frame gives 1 frame, each later one 4 (`config.group`)."""

    def __init__(self, vae: "WanVAE"):
        super().__init__(vae)
        self.reach = vae.config.reach

    def decode(self, latent: Tensor) -> Tensor:
        """Normalised latents (C, T, h, w), T at least 1, to frames (3, N, H, W), clamped to [-1, 1]."""
        return self.decode_unclamped(latent).clamp(-1, 1)

    def decode_unclamped(self, latent: Tensor) -> Tensor:
        """The same as the network gives it, a little out of range where it overshoots."""
        latent = latent.to(self.vae.dtype) * self._std + self._mean
        decode, conv2 = self.vae._modules["decoder"], self.vae.conv2
        frames = [decode(conv2(piece, self._state), self._state) for piece in self._pieces(latent)]
        return torch.cat(frames, dim=2)[0]


class WanEncoder(_Stream):
    """A StreamingEncoder: a stream's first frame gives a latent frame by itself, then 4 (`config.group`) give one."""

    def encode(self, video: Tensor) -> Tensor:
        """Frames (3, N, H, W) in [-1, 1] to normalised latents (C, T, h, w).

        Raises ValueError unless N is 1 + a multiple of the group at a stream's start, a multiple later.
        """
        group, given = self.vae.config.group, video.shape[1]
        first = 1 if self._state.fresh else 0
        if given < 1 or given < first or (given - first) % group:
            raise ValueError(f"{given} frames came; it takes a multiple of {group}, and at a stream's start one more")
        encode, conv1 = self.vae._modules["encoder"], self.vae.conv1
        pieces = self._pieces(video.to(self.vae.dtype))
        return self._normalised(torch.cat([conv1(encode(piece, self._state), self._state) for piece in pieces], dim=2))

    def encode_still(self, image: Tensor) -> Tensor:
        """A picture (3, H, W) in [-1, 1] before zero frames without end, to normalised latents (C, T, h, w).

        T is the encoder's own, 30 for Wan; what would follow repeats the last. The stream's state stays as it is.
        """
        picture = image.to(self.vae.dtype)
        video = torch.stack((picture, torch.zeros_like(picture)), dim=1)[None]
        return self._normalised(self.vae.conv1.settle(self.vae._modules["encoder"].settle(video)))

    def _normalised(self, latent: Tensor) -> Tensor:
        """(1, 2C, T, h, w), means before log variances, to (C, T, h, w)."""
        return (latent[0, : self.vae.config.latent_channels] - self._mean) / self._std
