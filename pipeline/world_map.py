"""What stands where: a periodic map that the camera embedding reads along the viewer's rays.

A live world must look the same when one comes back, and a window of a few seconds cannot remember that. So the
absolute pose on a finite map is part of the camera: its Fourier features; the map's own learned cells, sampled at
points along the rays of each token column; and, where the preset says what stands there, the landmarks that each column
sees, where it sees them. What they look like, what hides what, and the ground between them is left to learn.

B slots, T latent frames, S rays a token column, N points a ray, E channels of a cell, K landmarks a column, C model
width.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEAREST = 0.3
"""World units; nearer landmarks are told as if they stood here."""
OCTAVES = (-1, 0, 1)
"""Half turns, as powers of two, of a place in half tokens: the finest tells a pixel from the next."""


class Landmark(NamedTuple):
    """Where something stands (x, z), within which `radius`, how high, all in world units; and which of the kinds it is.

    `shade` is its brightness, 1 on average.
    """

    x: float
    z: float
    radius: float
    height: float
    kind: int
    shade: float = 1.0


@dataclass(frozen=True)
class WorldMapConfig:
    """The map repeats after `period` world units along x and z and has `cells` x `cells` cells of `channels` numbers.

    Each token column of a picture `field_of_view` degrees wide sends `rays` rays with `points` samples from `near` to
    `far` world units, and sees the `seen` nearest of the `landmarks` (on level ground, `eye_height` below the viewer's
    eye) that reach into it, up to `far`. Raises ValueError for values that no map can have.
    """

    period: float = 10.0
    cells: int = 80
    channels: int = 12
    rays: int = 4
    points: int = 12
    near: float = 0.2
    far: float = 7.0
    field_of_view: float = 75.0
    place_harmonics: int = 10
    angle_harmonics: int = 12
    hidden: int = 320
    landmarks: tuple[Landmark, ...] = ()
    kinds: int = 4
    seen: int = 8
    eye_height: float = 0.62
    landmark_width: int = 32

    def __post_init__(self) -> None:
        if min(self.period, self.cells, self.channels, self.rays, self.points, self.hidden, self.seen) <= 0:
            raise ValueError(f"every size of a world map must be positive: {self}")
        if not 0 < self.near < self.far:
            raise ValueError(f"near ({self.near}) must lie between 0 and far ({self.far})")
        if any(not 0 <= landmark.kind < self.kinds for landmark in self.landmarks):
            raise ValueError(f"a landmark's kind must be one of 0 to {self.kinds - 1}")


class WorldMap(nn.Module):
    """The map and the layers that turn what a token sees of it into an embedding."""

    def __init__(self, config: WorldMapConfig, dim: int):
        super().__init__()
        self.config = config
        self.cells = nn.Parameter(0.1 * torch.randn(config.cells, config.cells, config.channels))
        width = config.rays * config.points * config.channels
        width += 4 * config.place_harmonics + 2 * config.angle_harmonics + 1
        self.layers = nn.Sequential(nn.Linear(2 * width, config.hidden), nn.SiLU(), nn.Linear(config.hidden, dim))
        if config.landmarks:
            self.landmarks = Landmarks(config)

    def forward(self, pose: Tensor, rows: int, columns: int) -> Tensor:
        """pose: (B, T, 2, 4) x, z, yaw, pitch at the latent frame's start and end, of any size.

        Returns (B, T*rows*columns, C) in the dtype of the weights. Without landmarks all rows of a column get the same.
        """
        # Wrapped before they become float32: a walker may be far out after hours.
        x, z = (_wrapped(pose[..., i], self.config.period) for i in (0, 1))
        yaw, pitch = _wrapped(pose[..., 2], 2 * math.pi), pose[..., 3].float()
        features = torch.cat((self._sample(x, z, yaw, columns), self._fourier(x, z, yaw, pitch, columns)), dim=-1)
        first, *rest = self.layers
        hidden = first(features.movedim(2, 3).flatten(3).to(first.weight.dtype)).unsqueeze(2)  # (B, T, 1, columns, ...)
        if self.config.landmarks:
            hidden = hidden + self.landmarks(Stand(x, z, yaw, pitch), rows, columns)
        for layer in rest:
            hidden = layer(hidden)
        return hidden.expand(-1, -1, rows, -1, -1).flatten(1, 3)

    def _sample(self, x: Tensor, z: Tensor, yaw: Tensor, columns: int) -> Tensor:
        """The cells along each column's rays, (B, T, 2, columns, S*N*E)."""
        config = self.config
        azimuth = yaw[..., None] + _azimuths(columns * config.rays, config.field_of_view, yaw.device)
        share = torch.arange(config.points, device=yaw.device) / (config.points - 1)
        distance = config.near + (config.far - config.near) * share**1.5  # denser near the viewer
        px = x[..., None, None] + distance * azimuth.sin()[..., None]
        pz = z[..., None, None] + distance * azimuth.cos()[..., None]
        return self._bilinear(px, pz).flatten(-2).unflatten(3, (columns, config.rays)).flatten(4)

    def _bilinear(self, x: Tensor, z: Tensor) -> Tensor:
        """The map at points of any shape, with a last axis of E."""
        grid = torch.stack([2 * _wrapped(axis / self.config.period, 1.0) - 1 for axis in (x, z)], dim=-1)
        cells = F.pad(self.cells.float().movedim(2, 0)[None], (0, 1, 0, 1), mode="circular")
        seen = F.grid_sample(cells, grid.flatten(0, -2)[None, None], padding_mode="border", align_corners=True)
        return seen[0, :, 0].T.unflatten(0, x.shape)

    def _fourier(self, x: Tensor, z: Tensor, yaw: Tensor, pitch: Tensor, columns: int) -> Tensor:
        """Sines and cosines of place and of each column's azimuth, and pitch: (B, T, 2, columns, F)."""
        config = self.config
        unit = 2 * math.pi / config.period
        place = torch.cat([_harmonics(unit * axis, config.place_harmonics) for axis in (x, z)], dim=-1)
        place = torch.cat((place, pitch[..., None]), dim=-1)[..., None, :].expand(*yaw.shape, columns, -1)
        angle = yaw[..., None] + _azimuths(columns, config.field_of_view, yaw.device)
        return torch.cat((place, _harmonics(angle, config.angle_harmonics)), dim=-1)


class Stand(NamedTuple):
    """Where viewers stand and look, each (B, T, 2); x, z and yaw wrapped."""

    x: Tensor
    z: Tensor
    yaw: Tensor
    pitch: Tensor


class Sight(NamedTuple):
    """The landmarks that each column sees, the nearest first: (B, T, 2, columns, K) each, but for `what`.

    Distances are inf where there is none; bearings are from straight ahead, offsets from the column's middle and
    reaches (half a landmark's width) in half columns. `what` has the rows of the table.
    """

    distance: Tensor
    bearing: Tensor
    offset: Tensor
    reach: Tensor
    what: Tensor


class Landmarks(nn.Module):
    """What each token sees of the landmarks: each in numbers relative to the token, embedded, then all together."""

    def __init__(self, config: WorldMapConfig):
        super().__init__()
        self.config = config
        table = torch.tensor([landmark[:4] + landmark[5:] for landmark in config.landmarks])
        kinds = F.one_hot(torch.tensor([landmark.kind for landmark in config.landmarks]), config.kinds)
        self.register_buffer("table", torch.cat((table, kinds.float()), dim=1), persistent=False)
        numbers = 8 + config.kinds + 6 * len(OCTAVES)
        width = config.landmark_width
        self.embed = nn.Sequential(nn.Linear(numbers, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.join = nn.Linear(2 * config.seen * width, config.hidden, bias=False)

    def forward(self, stand: Stand, rows: int, columns: int) -> Tensor:
        """(B, T, rows, columns, hidden) in the dtype of the weights."""
        sight = self._seen(stand, columns)
        numbers = torch.cat((self._across(sight, rows), self._up(sight, stand.pitch, rows, columns)), dim=-1)
        embedded = self.embed(numbers.to(self.embed[0].weight.dtype))  # (B, T, 2, rows, columns, K, width)
        embedded = embedded * sight.distance.isfinite()[:, :, :, None, ..., None]
        return self.join(embedded.movedim(2, 4).flatten(4))

    def _seen(self, stand: Stand, columns: int) -> Sight:
        there, which = self._around(stand.x, stand.z)
        distance = there.norm(dim=-1)
        bearing = torch.atan2(there[..., 0], there[..., 1]) - stand.yaw[..., None]
        bearing = torch.remainder(bearing + math.pi, 2 * math.pi) - math.pi
        middle, half = self._columns(columns)
        offset = (bearing[..., None, :] - middle[:, None]) / half[:, None]  # (B, T, 2, columns, candidates)
        reach = torch.asin((self.table[which, 2] / distance).clamp(max=1))[..., None, :] / half[:, None]
        sees = (offset.abs() < 1 + reach) & (distance < self.config.far)[..., None, :]
        nearest, chosen = torch.where(sees, distance[..., None, :], torch.inf).topk(self.config.seen, largest=False)
        bearing = bearing[..., None, :].expand_as(sees)
        return Sight(
            nearest, *(each.gather(-1, chosen) for each in (bearing, offset, reach)), self.table[which[chosen]]
        )

    def _around(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Every landmark at the nine places round the viewer where it may be, (..., candidates, 2), and which it is."""
        period = self.config.period
        relative = self.table[:, :2] - torch.stack((x, z), dim=-1)[..., None, :]
        relative = relative - period * torch.round(relative / period)
        shifts = period * torch.arange(-1, 2, device=x.device)
        grid = torch.cartesian_prod(shifts, shifts)
        which = torch.arange(len(self.table), device=x.device).repeat_interleave(len(grid))
        return (relative[..., None, :] + grid).flatten(-3, -2), which

    def _columns(self, columns: int) -> tuple[Tensor, Tensor]:
        """Azimuth of each column's middle and half its width, radians."""
        edges = torch.atan(self._slope * torch.linspace(-1, 1, columns + 1, device=self.table.device))
        return (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2

    @property
    def _slope(self) -> float:
        """Of a picture's right edge from its middle."""
        return math.tan(math.radians(self.config.field_of_view) / 2)

    def _across(self, sight: Sight, rows: int) -> Tensor:
        """What all rows are told alike: where its middle and edges stand in the column, how far it is, what it is."""
        near, offset = sight.distance.clamp(NEAREST, self.config.far), sight.offset
        plain = (offset.clamp(-4, 4), (offset - sight.reach).clamp(-2, 2), (offset + sight.reach).clamp(-2, 2))
        told = torch.stack((*plain, 1 / near, near / self.config.far), dim=-1)
        told = torch.cat((told, sight.what[..., 4:], _waves(offset)), dim=-1)
        return told.unsqueeze(3).expand(-1, -1, -1, rows, -1, -1, -1)

    def _up(self, sight: Sight, pitch: Tensor, rows: int, columns: int) -> Tensor:
        """Where its foot and its top stand in each row's tokens, in half tokens: (B, T, 2, rows, columns, K, ...)."""
        depth = sight.distance.clamp(NEAREST, self.config.far) * sight.bearing.cos()
        half = self._slope / columns  # tokens are square
        middle = half * (rows - 1 - 2 * torch.arange(rows, device=depth.device, dtype=depth.dtype))
        sine, cosine = (each[..., None, None] for each in (pitch.sin(), pitch.cos()))
        told = []
        for level in (torch.zeros_like(depth), sight.what[..., 3]):
            above = level - self.config.eye_height
            height = (above * cosine - depth * sine) / (depth * cosine + above * sine).clamp(min=NEAREST)
            place = (height.unsqueeze(3) - middle[:, None, None]) / half
            told += [place.clamp(-4, 4).unsqueeze(-1), _waves(place)]
        return torch.cat(told, dim=-1)


def _waves(place: Tensor) -> Tensor:
    """Sines, then cosines, of a place in half tokens, on a new last axis."""
    angle = place[..., None] * (math.pi * torch.arange(OCTAVES[0], OCTAVES[-1] + 1, device=place.device).exp2())
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


def _wrapped(value: Tensor, period: float) -> Tensor:
    return (value - period * torch.floor(value / period)).float()


def _azimuths(count: int, degrees: float, device: torch.device) -> Tensor:
    """Horizontal angles, (count,) radians, of the middles of `count` columns of a pinhole picture."""
    across = (torch.arange(count, device=device) + 0.5) / count * 2 - 1
    return torch.atan(across * math.tan(math.radians(degrees) / 2))


def _harmonics(angle: Tensor, count: int) -> Tensor:
    """Sines, then cosines, of 1, 2, ... count times the angle, on a new last axis."""
    multiples = angle[..., None] * torch.arange(1, count + 1, device=angle.device)
    return torch.cat((multiples.sin(), multiples.cos()), dim=-1)
