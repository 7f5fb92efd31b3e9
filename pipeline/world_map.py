"""What stands where: a learned periodic map that the camera embedding reads along the viewer's rays.

A live world must look the same when one comes back, and a window of a few seconds cannot remember that. So the
absolute pose on a finite map is part of the camera: its Fourier features, and the map's own cells, sampled at points
along the rays of each token column. What the transformer is left to learn is projection and occlusion.

B slots, T latent frames, S rays a token column, N points a ray, E channels of a cell, C model width.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class WorldMapConfig:
    """The map repeats after `period` world units along x and z and has `cells` x `cells` cells of `channels` numbers.

    Each token column of a picture `field_of_view` degrees wide sends `rays` rays with `points` samples from `near` to
    `far` world units. Raises ValueError for values that no map can have.
    """

    period: float = 10.0
    cells: int = 80
    channels: int = 12
    rays: int = 4
    points: int = 20
    near: float = 0.2
    far: float = 7.5
    field_of_view: float = 75.0
    place_harmonics: int = 10
    angle_harmonics: int = 12
    hidden: int = 256

    def __post_init__(self) -> None:
        if min(self.period, self.cells, self.channels, self.rays, self.points, self.hidden) <= 0:
            raise ValueError(f"every size of a world map must be positive: {self}")
        if not 0 < self.near < self.far:
            raise ValueError(f"near ({self.near}) must lie between 0 and far ({self.far})")


class WorldMap(nn.Module):
    """The map and the layers that turn what a column sees of it into an embedding."""

    def __init__(self, config: WorldMapConfig, dim: int):
        super().__init__()
        self.config = config
        self.cells = nn.Parameter(0.1 * torch.randn(config.cells, config.cells, config.channels))
        seen = config.rays * config.points * config.channels
        fourier = 4 * config.place_harmonics + 2 * config.angle_harmonics + 1
        self.layers = nn.Sequential(
            nn.Linear(2 * (seen + fourier), config.hidden), nn.SiLU(), nn.Linear(config.hidden, dim)
        )

    def forward(self, pose: Tensor, rows: int, columns: int) -> Tensor:
        """pose: (B, T, 2, 4) x, z, yaw, pitch at the latent frame's start and end, of any size.

        Returns (B, T*rows*columns, C) in the dtype of the weights; all rows of a column get the same.
        """
        # Wrapped before they become float32: a walker may be far out after hours.
        x, z = (_wrapped(pose[..., i], self.config.period) for i in (0, 1))
        yaw, pitch = _wrapped(pose[..., 2], 2 * math.pi), pose[..., 3].float()
        seen = self._sample(x, z, yaw, columns)
        fourier = self._fourier(x, z, yaw, pitch, columns)
        features = torch.cat((seen, fourier), dim=-1)  # (B, T, 2, columns, ...)
        embedding = self.layers(features.movedim(2, 3).flatten(3).to(self.layers[0].weight.dtype))
        return embedding.unsqueeze(2).expand(-1, -1, rows, -1, -1).flatten(1, 3)

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
