"""A first-person outdoor world by analytic ray casting: poses and scenes in, pictures out.

Every object is three closed solids of revolution x^2 + z^2 = p + q*y + s*y^2 between two heights (frustums and
ellipsoids alike), so one ray test serves them all. Sky, hills and ground are closed forms of direction and place.
Everything shown is a function of pose and scene, but for falling rain and snow, which have the frame's phase.

Legend: B pictures, K objects near the viewer, N = 3*K solids, H W rays of a picture.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.tiny.landscape import (
    CLASSES,
    EYE_HEIGHT,
    HORIZONTAL_FIELD_DEGREES,
    HOURS,
    OVERRIDES,
    PERIOD,
    PLACES,
    SPECIES,
    WEATHERS,
    Part,
    height_of,
    layout,
)

NEAREST = 24
"""Objects considered for a picture."""
VIEW_DISTANCE = 7.0
PHASES = 4
"""Falling rain and snow repeat after so many frames, which is one latent frame."""

# Columns of a solid near the viewer: its position, then a row of the table.
_X, _Z, _P, _Q, _S, _LOW, _HIGH, _WIDEST = range(8)
_COLOUR, _GLOW, _FACETS, _MOTTLE = slice(8, 11), 11, 12, 13
_HILL_HARMONICS = ((2, 0.9, 0.5), (3, 2.1, 0.4), (5, 4.0, 0.28), (8, 0.3, 0.16), (13, 1.7, 0.08))


class Rays(NamedTuple):
    """Unit directions (B, H, W) each: x right at yaw 0, y up, z forward at yaw 0."""

    x: Tensor
    y: Tensor
    z: Tensor


class Light(NamedTuple):
    """What hour, weather and place make of the light: colours (B, 1, 1, 3), scalars (B, 1, 1)."""

    zenith: Tensor
    horizon: Tensor
    sun: Tensor
    ambient: Tensor
    direction: Tensor  # (B, 3), towards the sun
    darkness: Tensor
    disc: Tensor


class Renderer:
    """Tables of the world on one device. Stateless but for them: the same input gives the same pictures."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        things = layout()

        def table(rows: list) -> Tensor:
            return torch.tensor(rows, dtype=torch.float32, device=self.device)

        self.spots = table([[t.x, t.z] for t in things])
        self.solids = table([_solids_of_scene(place, override) for place in PLACES for override in range(9)])
        self.solids = self.solids.unflatten(0, (len(PLACES), 9))  # (places, overrides, things, 3, 12)
        self.places = table([_place_row(name) for name in PLACES])
        self.hours = table([_hour_row(name) for name in HOURS])
        self.weathers = table([list(weather) for weather in WEATHERS.values()])

    def render(
        self, pose: Tensor, scene: Tensor, phase: Tensor, height: int, width: int, oversample: int = 2
    ) -> Tensor:
        """Pictures (B, 3, height, width) in [0, 1], float32.

        pose (B, 4): x, z (world units), yaw, pitch (radians). scene (B, 4): indexes of place, object (0 is the place's
        own, n is OVERRIDES[n-1]), hour and weather. phase (B,): frame number within its latent frame.
        `oversample` rays a pixel and axis are averaged.
        """
        rays = cast(pose, height * oversample, width * oversample)
        near = self._nearest(pose, scene)
        picture = shade(
            rays, pose, near, self.places[scene[:, 0]], self.hours[scene[:, 2]], self.weathers[scene[:, 3]], phase
        )
        return F.avg_pool2d(picture.movedim(-1, 1), oversample)

    def _nearest(self, pose: Tensor, scene: Tensor) -> Tensor:
        """The NEAREST objects that the pose can see or whose shadow it can see: (B, K, 3, 14), x and z first.

        Positions are relative to the viewer. Objects shrink to nothing towards VIEW_DISTANCE, so that none pops up,
        and close to the viewer, who walks through all things.
        """
        relative = self.spots - pose[:, None, :2]
        relative = relative - PERIOD * torch.round(relative / PERIOD)
        shifts = torch.tensor([-PERIOD, 0.0, PERIOD], device=self.device)
        grid = torch.cartesian_prod(shifts, shifts)
        spots = (relative[:, :, None] + grid).flatten(1, 2)  # (B, things*9, 2)
        distance = spots.norm(dim=-1)
        yaw = pose[:, 2:3]
        ahead = spots[..., 0] * yaw.sin() + spots[..., 1] * yaw.cos()
        wanted = ((ahead > 0.6 * distance - 0.5) | (distance < 2.5)) & (distance < VIEW_DISTANCE)
        order = torch.where(wanted, distance, distance + 1e3).topk(NEAREST, dim=1, largest=False).indices
        solids = self.solids[scene[:, 0], scene[:, 1]]
        chosen = solids.gather(1, (order // 9)[..., None, None].expand(-1, -1, *solids.shape[2:]))
        spot = spots.gather(1, order[..., None].expand(-1, -1, 2))
        distance = distance.gather(1, order)
        reach = chosen[..., _WIDEST - 2].amax(-1).clamp(max=0.6)
        scale = smoothstep(0.3, 0.85, distance - reach) * smoothstep(VIEW_DISTANCE, VIEW_DISTANCE - 1.2, distance)
        chosen = _scaled(chosen, scale.clamp(min=0.02)[..., None])
        return torch.cat([spot[:, :, None].expand(-1, -1, 3, -1), chosen], dim=-1)


def cast(pose: Tensor, height: int, width: int) -> Rays:
    """Directions through the pixel centres of a pinhole camera at yaw and pitch of pose (B, 4)."""
    slope = math.tan(math.radians(HORIZONTAL_FIELD_DEGREES) / 2)
    u = (torch.arange(width, device=pose.device) + 0.5) / width * 2 - 1
    v = 1 - (torch.arange(height, device=pose.device) + 0.5) / height * 2
    right = (u * slope)[None, None, :]
    up = (v * slope * height / width)[None, :, None]
    yaw, pitch = pose[:, 2, None, None], pose[:, 3, None, None]
    forward = pitch.cos() - up * pitch.sin()
    y = pitch.sin() + up * pitch.cos()
    x = forward * yaw.sin() + right * yaw.cos()
    z = forward * yaw.cos() - right * yaw.sin()
    length = (x.square() + y.square() + z.square()).rsqrt()
    return Rays(x * length, y * length, z * length)


def shade(
    rays: Rays, pose: Tensor, near: Tensor, place: Tensor, hour: Tensor, weather: Tensor, phase: Tensor
) -> Tensor:
    """Colours (B, H, W, 3) in [0, 1) along the rays; arguments are rows of the Renderer's tables, one a picture."""
    light = _light(place, hour, weather)
    backdrop = _hills(rays, place, light, weather, _sky(rays, light, weather))
    hit = _hit(rays, near)
    ground_distance = torch.where(rays.y < -1e-4, -EYE_HEIGHT / rays.y.clamp(max=-1e-4), torch.inf)
    surface = _objects(rays, near, hit, light, weather, hour)
    floor = _ground(rays, pose, near, ground_distance.clamp(max=60.0), place, light, weather)
    haze = light.horizon * 0.92
    density = weather[:, 3, None, None]
    picture = torch.where((ground_distance < 60.0)[..., None], _fogged(floor, ground_distance, density, haze), backdrop)
    before_ground = (hit.distance < ground_distance)[..., None]
    picture = torch.where(before_ground, _fogged(surface, hit.distance, density, haze), picture)
    return _toned(_fallen(picture, weather, light, phase))


class Hit(NamedTuple):
    """The nearest solid along each ray: distance (inf for none), index among the N solids (B, H, W)."""

    distance: Tensor
    index: Tensor


def _hit(rays: Rays, near: Tensor) -> Hit:
    solids = near.flatten(1, 2)[:, :, None, None, :]  # (B, N, 1, 1, 14)
    ox, oz, p, q, s, low, high = (solids[..., i] for i in (_X, _Z, _P, _Q, _S, _LOW, _HIGH))
    dx, dy, dz = (axis[:, None] for axis in rays)
    a = (dx * dx + dz * dz - s * dy * dy).clamp(min=1e-6)
    b = -(dx * ox + dz * oz) - dy * (q / 2 + s * EYE_HEIGHT)
    c = ox * ox + oz * oz - (p + q * EYE_HEIGHT + s * EYE_HEIGHT * EYE_HEIGHT)
    root = b * b - a * c
    side = (-b - root.clamp(min=0).sqrt()) / a
    y = EYE_HEIGHT + side * dy
    side_hit = (root > 0) & (side > 0.02) & (y > low) & (y < high)
    level = torch.where(dy > 0, low, high)
    cap = (level - EYE_HEIGHT) / torch.where(dy.abs() < 1e-5, 1e-5, dy)
    reach = (cap * dx - ox).square() + (cap * dz - oz).square()
    cap_hit = (cap > 0.02) & (reach < p + q * level + s * level * level)
    distance = torch.where(side_hit, side, torch.inf).minimum(torch.where(cap_hit, cap, torch.inf))
    return Hit(distance.amin(1), distance.argmin(1))


def _objects(rays: Rays, near: Tensor, hit: Hit, light: Light, weather: Tensor, hour: Tensor) -> Tensor:
    """Colours (B, H, W, 3) of the solids that were hit; meaningless where none was."""
    solids = near.flatten(1, 2)
    picture = torch.arange(len(solids), device=solids.device)[:, None, None]
    solid = solids[picture, hit.index]  # (B, H, W, 14)
    t = torch.where(hit.distance.isinf(), 1.0, hit.distance)
    y = EYE_HEIGHT + t * rays.y
    nx, nz = t * rays.x - solid[..., _X], t * rays.z - solid[..., _Z]
    ny = -(solid[..., _Q] / 2 + solid[..., _S] * y)
    flat = (y - solid[..., _HIGH]).abs() < 1e-4
    under = (y - solid[..., _LOW]).abs() < 1e-4
    ny = torch.where(flat, 9.0, torch.where(under, -9.0, ny))
    length = (nx * nx + ny * ny + nz * nz).clamp(min=1e-12).rsqrt()
    nx, ny, nz = _faceted(nx * length, nz * length, solid[..., _FACETS], ny * length)
    colour = solid[..., _COLOUR] * _mottled(nx, nz, y, solid[..., _MOTTLE])[..., None]
    snow = weather[:, 5, None, None] * smoothstep(0.15, 0.6, ny)
    colour = torch.lerp(colour, colour.new_tensor([0.93, 0.95, 0.98]).expand_as(colour), snow[..., None])
    sun = light.direction[:, None, None]
    facing = nx * sun[..., 0] + ny * sun[..., 1] + nz * sun[..., 2]
    lambert = ((facing + 0.35) / 1.35).clamp(min=0)
    foot = 0.55 + 0.45 * smoothstep(0.0, 0.3, y)
    ambient = (0.72 + 0.28 * ny) * foot
    rim = (1 + (nx * rays.x + ny * rays.y + nz * rays.z)).clamp(0, 1).pow(3) * 0.22
    lit = colour * (light.sun * lambert[..., None] + light.ambient * ambient[..., None])
    lit = lit + light.horizon * rim[..., None]
    glow = solid[..., _GLOW] * (0.25 + 0.75 * light.darkness)
    return torch.lerp(lit, solid[..., _COLOUR] * 1.08, glow[..., None].clamp(0, 1))


def _faceted(nx: Tensor, nz: Tensor, facets: Tensor, ny: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    step = 2 * math.pi / facets.clamp(min=1)
    azimuth = torch.atan2(nz, nx)
    azimuth = torch.where(facets > 0, (torch.floor(azimuth / step) + 0.5) * step, azimuth)
    level = (nx * nx + nz * nz).sqrt()
    return level * azimuth.cos(), ny, level * azimuth.sin()


def _mottled(nx: Tensor, nz: Tensor, y: Tensor, depth: Tensor) -> Tensor:
    """A soft pattern of a surface: bands in height, patches around."""
    return 1 + depth * 0.35 * (torch.sin(9 * y + 2.2 * nx) * (0.6 + 0.4 * torch.sin(4 * nz + 3 * nx)))


def _ground(
    rays: Rays, pose: Tensor, near: Tensor, distance: Tensor, place: Tensor, light: Light, weather: Tensor
) -> Tensor:
    """Colours (B, H, W, 3) of the ground at `distance` along the rays, shadows and pools of light included."""
    gx, gz = distance * rays.x, distance * rays.z
    x, z = gx + pose[:, 0, None, None], gz + pose[:, 1, None, None]
    detail = smoothstep(9.0, 2.0, distance)
    colour, glow, water = _ground_pattern(x, z, place, detail)
    snow = weather[:, 5, None, None] * (1 - 0.75 * water)
    colour = torch.lerp(colour, colour.new_tensor([0.88, 0.91, 0.96]).expand_as(colour), snow[..., None])
    shadow, contact, pool = _shadows(gx, gz, near, light)
    sun = light.direction[:, 1, None, None].clamp(min=0).sqrt() * (1 - 0.85 * shadow * (1 - 0.5 * water))
    lit = colour * (light.sun * sun[..., None] + light.ambient * (1 - 0.55 * contact)[..., None])
    lit = lit + colour * pool * (0.15 + 1.5 * light.darkness[..., None])
    mirror = torch.lerp(light.horizon, light.zenith, (-rays.y * 2.2).clamp(0, 1)[..., None])
    shine = (water * 0.75 + 0.42 * weather[:, 4, None, None]) * (1 + rays.y * 1.6).clamp(0.15, 1)
    lit = torch.lerp(lit, mirror * (1 - 0.5 * contact * shadow)[..., None], shine.clamp(0, 0.85)[..., None])
    return torch.lerp(lit, glow, (glow.amax(-1, keepdim=True) > 0) * glow.amax(-1, keepdim=True).clamp(0, 0.9))


def _ground_pattern(x: Tensor, z: Tensor, place: Tensor, detail: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Colour (B, H, W, 3), glow (B, H, W, 3) and water (B, H, W) of the ground; PERIOD divides every pattern."""
    w = 2 * math.pi / PERIOD
    patches, ripples, tiles, cracks, water = (place[:, 24 + i, None, None] for i in range(5))
    broad = torch.sin(2 * w * x + 1.3 * torch.sin(w * z)) * torch.sin(3 * w * z + torch.sin(2 * w * x))
    fine = torch.sin(7 * w * x + 2 * torch.sin(3 * w * z)) * torch.sin(6 * w * z + 1.5 * torch.sin(4 * w * x))
    ripple = torch.sin(16 * w * z + 2.2 * torch.sin(2 * w * x) + 1.5 * torch.sin(3 * w * x + w * z))
    tile = torch.sin(8 * w * x).sign() * torch.sin(8 * w * z).sign()
    mix = 0.5 + 0.5 * (patches * (0.7 * broad + 0.5 * fine * detail) + ripples * (0.5 * ripple * detail + 0.4 * broad))
    mix = (mix + tiles * 0.38 * tile * detail).clamp(0, 1)
    colour = torch.lerp(_rgb(place, 0), _rgb(place, 3), mix[..., None])
    path = _path(x, z) * place[:, 23, None, None]
    colour = torch.lerp(colour, _rgb(place, 6), path[..., None])
    vein = (torch.sin(3 * w * x + 1.6 * torch.sin(2 * w * z)) + torch.sin(4 * w * z + 1.9 * torch.sin(3 * w * x))).abs()
    crack = smoothstep(0.3, 0.04, vein) * cracks * (1 - path)
    glow = crack[..., None] * (cracks[..., None] > 0.5) * colour.new_tensor([1.0, 0.42, 0.12])
    colour = colour * (1 - 0.45 * crack[..., None])
    lagoon = smoothstep(-0.12, 0.12, torch.sin(w * x - 0.9) * 0.8 + 0.5 * torch.sin(2 * w * z + w * x) - 0.15)
    lagoon = water * lagoon * (1 - _path(x, z))
    shallow, deep = (colour.new_tensor(rgb).expand_as(colour) for rgb in ([0.32, 0.72, 0.72], [0.08, 0.38, 0.52]))
    sea = torch.lerp(shallow, deep, lagoon[..., None])
    return torch.lerp(colour, sea, lagoon[..., None]), glow, lagoon


def _path(x: Tensor, z: Tensor) -> Tensor:
    w = 2 * math.pi / PERIOD
    along = x - (0.55 * torch.sin(w * z) + 0.2 * torch.sin(2 * w * z))
    across = z - (5.0 + 0.5 * torch.sin(w * x) + 0.3 * torch.cos(2 * w * x))
    nearest = _wrapped(along).minimum(_wrapped(across))
    return smoothstep(0.42, 0.26, nearest)


def _wrapped(offset: Tensor) -> Tensor:
    return (offset - PERIOD * torch.round(offset / PERIOD)).abs()


def _shadows(gx: Tensor, gz: Tensor, near: Tensor, light: Light) -> tuple[Tensor, Tensor, Tensor]:
    """Sun shadow, contact darkening (B, H, W) and pools of light (B, H, W, 3) on the ground at gx, gz."""
    spot = near[:, :, 0, _X : _Z + 1]
    height = near[..., _HIGH].amax(2)[:, :, None, None]
    radius = (near[..., _WIDEST].amax(2) * 0.8)[:, :, None, None]
    dx, dz = gx[:, None] - spot[:, :, 0, None, None], gz[:, None] - spot[:, :, 1, None, None]
    sun = light.direction[:, :, None, None]
    level = (sun[:, 0].square() + sun[:, 2].square()).sqrt().clamp(min=1e-4)
    away_x, away_z = (-sun[:, 0] / level)[:, None], (-sun[:, 2] / level)[:, None]
    length = (height * (level / sun[:, 1].clamp(min=0.1))[:, None]).clamp(max=1.8)
    along = dx * away_x + dz * away_z
    inside = along.clamp(min=0).minimum(length)
    gap = ((dx - inside * away_x).square() + (dz - inside * away_z).square()).sqrt()
    soft = 0.05 + 0.12 * inside
    shadow = (1 - smoothstep(-1.0, 1.0, (gap - radius * 0.85) / soft)) * (1 - inside / length * 0.6) * (height > 0.06)
    distance = (dx * dx + dz * dz).sqrt()
    contact = torch.exp(-((distance / (radius + 0.12)).square()) * 1.2) * (height > 0.06)
    glow = (near[..., _GLOW, None] * near[..., _COLOUR]).amax(2) * (near[:, :, 0, _HIGH, None] > 0.02)
    reach = torch.exp(-distance.square() / 0.55)
    pool = torch.stack([(reach * glow[:, :, i, None, None]).sum(1) for i in range(3)], dim=-1)
    return shadow.amax(1), contact.amax(1), pool.clamp(max=1.2)


def _light(place: Tensor, hour: Tensor, weather: Tensor) -> Light:
    def column(row: Tensor, index: int) -> Tensor:
        return row[:, index, None, None]

    grey = column(weather, 1)[..., None]
    zenith, horizon, sun, ambient = (_rgb(hour, 3 * i) for i in range(4))
    haze = _rgb(place, 15)
    luma = horizon.mean(-1, keepdim=True)
    tint = column(place, 29)[..., None]
    horizon = torch.lerp(horizon, haze * luma * 1.15, tint)
    zenith = torch.lerp(zenith, haze * zenith.mean(-1, keepdim=True) * 1.1, tint * 0.5)
    dull = luma * zenith.new_tensor([0.80, 0.84, 0.90])
    left = column(weather, 2)[..., None]
    return Light(
        zenith=torch.lerp(zenith, dull * 0.8, grey),
        horizon=torch.lerp(horizon, dull, grey * 0.8),
        sun=sun * column(hour, 15)[..., None] * left,
        ambient=torch.lerp(ambient, dull * 0.95, grey * 0.5) * (1 + 0.15 * (1 - left)),
        direction=hour[:, 12:15],
        darkness=column(hour, 17),
        disc=column(hour, 16) * (left[..., 0] > 0.5),
    )


def _sky(rays: Rays, light: Light, weather: Tensor) -> Tensor:
    """Gradient, halo, disc and clouds (B, H, W, 3)."""
    up = rays.y.clamp(min=0)
    colour = torch.lerp(light.horizon, light.zenith, (1 - torch.exp(-4.2 * up))[..., None])
    sun = light.direction[:, None, None]
    toward = (rays.x * sun[..., 0] + rays.y * sun[..., 1] + rays.z * sun[..., 2]).clamp(-1, 1)
    angle = torch.acos(toward * 0.99999)
    halo = torch.exp(-angle * 2.6) * 0.55 + torch.exp(-angle * 9) * 0.35
    colour = colour + (light.sun * halo[..., None]) * (1 - colour).clamp(min=0.1)
    disc = smoothstep(1.15, 0.85, angle / light.disc.clamp(min=1e-3)) * (light.disc > 0)
    colour = torch.lerp(colour, (light.sun * 1.1 + 0.25).clamp(max=1.0).expand_as(colour), disc[..., None])
    azimuth = torch.atan2(rays.x, rays.z)
    wave = torch.sin(3 * azimuth + 8 * up + 1.5 * torch.sin(2 * azimuth)) + torch.sin(5 * azimuth - 14 * up + 1.0)
    wave = wave + 0.6 * torch.sin(9 * azimuth + 22 * up + 2 * torch.sin(4 * azimuth))
    cover = weather[:, 0, None, None]
    cloud = smoothstep(1.1, 2.2, wave + 2.6 * cover - 0.2) * smoothstep(0.02, 0.2, up) * (0.4 + 0.45 * cover)
    white = torch.lerp(light.horizon, light.sun + light.ambient * 0.6, 0.45).clamp(max=1.0)
    stars = torch.sin(13 * azimuth + 27 * up) * torch.sin(41 * up - 11 * azimuth) * torch.sin(7 * azimuth + 19 * up + 1)
    shining = smoothstep(0.78, 0.95, stars) * smoothstep(0.9, 1.0, light.darkness)
    colour = colour + (shining * up * (1 - cover))[..., None]
    return torch.lerp(colour, white, cloud[..., None])


def _hills(rays: Rays, place: Tensor, light: Light, weather: Tensor, sky: Tensor) -> Tensor:
    """The sky with two ranges of hills in front of it (B, H, W, 3)."""
    azimuth = torch.atan2(rays.x, rays.z)
    veil = (weather[:, 3, None, None] * 2.2).clamp(0.25, 0.97)
    lamp = light.ambient * 0.9 + light.sun * 0.45
    for shift, share, colour, haze in ((1.7, 1.0, _rgb(place, 12), 0.62), (0.0, 0.55, _rgb(place, 9), 0.25)):
        top = _silhouette(azimuth + shift, place) * share
        body = colour * lamp
        share_of_peak = rays.y / place[:, 18, None, None].clamp(min=1e-3) / share
        snow = place[:, 22, None, None] * smoothstep(0.35, 0.6, share_of_peak)
        body = torch.lerp(body, (light.ambient + light.sun * 0.6).clamp(max=1).expand_as(body), (0.8 * snow)[..., None])
        mist = (0.8 * haze + (1 - haze) * veil * smoothstep(0.12, 0.0, rays.y) + veil * 0.3).clamp(0, 0.98)
        body = torch.lerp(body, light.horizon.expand_as(body), mist[..., None])
        edge = smoothstep(0.004, -0.004, rays.y - top)
        sky = torch.lerp(sky, body, edge[..., None])
    return sky


def _silhouette(azimuth: Tensor, place: Tensor) -> Tensor:
    """Height of the hills (sine of elevation) at an azimuth: rolling, or mixed with peaks and mesas."""
    tall, peaks, mesas = (place[:, 18 + i, None, None] for i in (0, 1, 2))
    rolling = sum(size * torch.sin(k * azimuth + at) for k, at, size in _HILL_HARMONICS)
    rolling = 0.5 + 0.36 * rolling
    ridge = sum(size * (1 - torch.sin(k * azimuth + at).abs()) for k, at, size in _HILL_HARMONICS) * 0.7
    table = smoothstep(0.38, 0.5, rolling) * 0.55 + smoothstep(0.66, 0.74, rolling) * 0.35 + 0.12
    shape = torch.lerp(torch.lerp(rolling, ridge, peaks), table, mesas)
    return tall * shape.clamp(min=0.05)


def _fogged(colour: Tensor, distance: Tensor, density: Tensor, haze: Tensor) -> Tensor:
    far = (distance / VIEW_DISTANCE).clamp(max=2.5)
    share = 1 - torch.exp(-density * distance.clamp(max=60) - 0.35 * far * far)
    return torch.lerp(colour, haze.expand_as(colour), share[..., None])


def _fallen(picture: Tensor, weather: Tensor, light: Light, phase: Tensor) -> Tensor:
    """Rain streaks and snow flakes in front of the picture; they fall by a quarter of their period a frame."""
    height, width = picture.shape[1:3]
    u = (torch.arange(width, device=picture.device) + 0.5)[None, None] / width * 20
    v = (torch.arange(height, device=picture.device) + 0.5)[None, :, None] / height * 12
    fall = phase[:, None, None] / PHASES
    streak = torch.sin(math.pi * 3 * (u + 0.12 * v)).clamp(min=0).pow(14)
    drop = torch.sin(2 * math.pi * (v / 2 - fall + 0.37 * torch.floor((u + 0.12 * v) * 1.5))).clamp(min=0).pow(2)
    rain = weather[:, 6, None, None] * streak * drop * 0.3
    flakes = torch.zeros_like(rain)
    for size, columns, offset in ((0.24, 0.5, 0.0), (0.16, 0.5, 0.5)):
        cell = torch.floor(u * columns + offset)
        across = (u * columns + offset - cell - 0.5 - 0.22 * torch.sin(2.4 * cell)) / columns
        turn = v / 2 - fall + 0.618 * cell
        down = (turn - torch.floor(turn) - 0.5) * 2
        flakes = flakes + smoothstep(size, size * 0.4, (across.square() + down.square()).sqrt())
    flakes = weather[:, 7, None, None] * flakes.clamp(max=1) * 0.6
    bright = (light.horizon * 0.5 + light.ambient * 0.6 + 0.15).clamp(max=1.0)
    return torch.lerp(picture, bright.expand_as(picture), (rain + flakes).clamp(0, 1)[..., None])


def _toned(colour: Tensor) -> Tensor:
    """[0, inf) to [0, 1): straight up to 0.6, then a shoulder, so that sunlit sand and snow keep their shape."""
    over = (colour - 0.6).clamp(min=0)
    return colour.clamp(min=0).minimum(colour.new_tensor(0.6)) + 0.4 * (1 - torch.exp(-over / 0.4))


def smoothstep(start: float, end: float, value: Tensor) -> Tensor:
    """0 at `start`, 1 at `end` (either may be the larger), smooth between."""
    t = ((value - start) / (end - start)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _rgb(row: Tensor, first: int) -> Tensor:
    return row[:, None, None, first : first + 3]


def _hex(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]


def _hexes(colours: list[str]) -> list[float]:
    return [channel for colour in colours for channel in _hex(colour)]


def _place_row(name: str) -> list[float]:
    place = PLACES[name]
    colours = [place.ground, place.ground_second, place.path, place.hills_near, place.hills_far, place.haze]
    hills = [place.hill_height, place.hill_peaks, place.hill_mesas, 0.0, place.hill_snow]
    ground = [place.path_strength, place.patches, place.ripples, place.tiles, place.cracks, place.water]
    return [*_hexes(colours), *hills, *ground, place.haze_strength]


def _hour_row(name: str) -> list[float]:
    hour = HOURS[name]
    azimuth, elevation = math.radians(hour.azimuth_degrees), math.radians(hour.elevation_degrees)
    level = math.cos(elevation)
    direction = [level * math.sin(azimuth), math.sin(elevation), level * math.cos(azimuth)]
    colours = _hexes([hour.zenith, hour.horizon, hour.sun, hour.ambient])
    return [*colours, *direction, hour.sun_strength, math.radians(hour.disc_degrees), hour.darkness]


def _solids_of_scene(place: str, override: int) -> list[list[list[float]]]:
    """Rows of three solids for each thing of the map in one place with one override (0 for none)."""
    rows = []
    for thing in layout():
        name = CLASSES[thing.size_class]
        species = PLACES[place].species[thing.size_class]
        if override and name in ("tall", "medium"):
            species = OVERRIDES[override - 1]
        height = height_of(species, name) * thing.size
        rows.append([_solid_row(part, height, thing.shade) for part in SPECIES[species]])
    return rows


def _solid_row(part: Part, height: float, shade_factor: float) -> list[float]:
    """p, q, s, low, high (see the module), widest radius, colour (3), glow, facets, mottle."""
    low, high = part.bottom * height, part.top * height
    radius, radius_top = part.radius * height, part.radius_top * height
    if part.round:
        centre, half = (low + high) / 2, (high - low) / 2
        ratio = (radius / half) ** 2
        p, q, s = radius**2 - ratio * centre**2, 2 * ratio * centre, -ratio
    else:
        slope = (radius_top - radius) / (high - low)
        start = radius - slope * low
        p, q, s = start * start, 2 * start * slope, slope * slope
    colour = [min(1.0, channel * shade_factor) for channel in _hex(part.colour)]
    widest = max(radius, radius_top)
    return [p, q, s, low, high, widest, *colour, part.glow, part.facets, part.mottle]


def _scaled(solids: Tensor, scale: Tensor) -> Tensor:
    """Solids (..., 12) made smaller by scale (...), feet on the ground: p*k^2, q*k, s, heights*k."""
    k = scale[..., None]
    size = torch.cat([k * k, k, torch.ones_like(k), k, k, k, torch.ones_like(k).expand(*k.shape[:-1], 6)], dim=-1)
    return solids * size
