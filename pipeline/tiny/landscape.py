"""What the tiny world is made of: where its objects stand, what each place looks like, what hours and weathers do.

Plain tables. The world is one periodic map; every place shares its positions, paths and hills' azimuths,
and differs in species, ground, colours and silhouettes. Lengths are world units (the eye is 0.62 above the
ground), angles radians unless a name says degrees, colours sRGB hex.
"""

import math
import random
from typing import NamedTuple

PERIOD = 10.0
EYE_HEIGHT = 0.62
HORIZONTAL_FIELD_DEGREES = 75.0
CLASSES = ("tall", "medium", "low", "landmark")


class Part(NamedTuple):
    """One closed solid of revolution: a frustum, or an ellipsoid when `round` is set.

    Radii and heights are fractions of the object's own height; `glow` is how much of the colour it gives off by
    itself in the dark (0 to 1), `facets` flattens its sides into so many, `mottle` is the depth of its pattern.
    """

    colour: str
    bottom: float
    top: float
    radius: float
    radius_top: float = 0.0
    round: bool = False
    glow: float = 0.0
    facets: int = 0
    mottle: float = 0.0


class Place(NamedTuple):
    """One place: colours, the species of each size class, and weights of the ground's patterns (0 to 1)."""

    ground: str
    ground_second: str
    path: str
    hills_near: str
    hills_far: str
    haze: str
    species: tuple[str, str, str, str]
    hill_height: float
    hill_peaks: float = 0.0
    hill_mesas: float = 0.0
    hill_snow: float = 0.0
    path_strength: float = 0.6
    patches: float = 0.0
    ripples: float = 0.0
    tiles: float = 0.0
    cracks: float = 0.0
    water: float = 0.0
    haze_strength: float = 0.2


class Hour(NamedTuple):
    """One time of day. Colours of the sky, the sun (or moon) and the ambient light; the sun's direction."""

    zenith: str
    horizon: str
    sun: str
    ambient: str
    azimuth_degrees: float
    elevation_degrees: float
    sun_strength: float
    disc_degrees: float
    darkness: float


class Weather(NamedTuple):
    """One weather: cloud cover, how grey the sky is, what is left of the sun, fog, wetness and fallen snow."""

    cloud: float
    grey: float
    sun: float
    fog_density: float
    wet: float = 0.0
    snow: float = 0.0
    rainfall: float = 0.0
    snowfall: float = 0.0


SPECIES: dict[str, tuple[Part, ...]] = {
    "tree": (
        Part("6b4a30", 0, 0.5, 0.065, 0.045),
        Part("4d8a3a", 0.36, 1.0, 0.31, round=True, mottle=0.5),
        Part("5f9c44", 0.30, 0.66, 0.24, round=True, mottle=0.5),
    ),
    "pine": (
        Part("5a4130", 0, 0.25, 0.05, 0.045),
        Part("2f6b52", 0.14, 0.68, 0.25, 0.02),
        Part("3a7a5c", 0.45, 1.0, 0.185, 0.0),
    ),
    "column": (
        Part("d9c7a3", 0, 0.94, 0.088, 0.07, mottle=0.15),
        Part("e5d6b6", 0.9, 1.0, 0.08, 0.125),
        Part("cbb88f", 0, 0.07, 0.13, 0.1),
    ),
    "cactus": (
        Part("4f8c58", 0, 0.82, 0.095, 0.095, mottle=0.3),
        Part("589963", 0.7, 1.0, 0.096, round=True),
        Part("e07aa8", 0.955, 1.04, 0.05, round=True),
    ),
    "crystal": (
        Part("63d6ea", 0, 0.3, 0.13, 0.17, glow=0.75, facets=6),
        Part("8ff0f5", 0.3, 1.0, 0.17, 0.0, glow=0.75, facets=6),
        Part("4ea2c8", 0, 0.12, 0.24, round=True, glow=0.3),
    ),
    "mushroom": (
        Part("efe3cf", 0, 0.75, 0.085, 0.06),
        Part("d8413c", 0.58, 1.0, 0.34, round=True, mottle=0.25, glow=0.12),
        Part("f3d9b8", 0.56, 0.72, 0.28, round=True, glow=0.25),
    ),
    "lantern": (
        Part("3a3640", 0, 0.72, 0.035, 0.025),
        Part("ffdf8a", 0.68, 1.0, 0.135, round=True, glow=1.0),
        Part("4a4450", 0, 0.06, 0.1, 0.07),
    ),
    "rock": (
        Part("8b8580", -0.5, 1.0, 0.62, round=True, mottle=0.35),
        Part("9a948c", -0.3, 0.7, 0.78, round=True, mottle=0.35),
        Part("7c7672", 0, 0.2, 0.75, 0.6),
    ),
    "bush": (
        Part("6a9e48", -0.3, 1.0, 0.62, round=True, mottle=0.5),
        Part("7fb055", -0.3, 0.75, 0.82, round=True, mottle=0.5),
        Part("e9c7d4", 0.86, 1.02, 0.17, round=True),
    ),
    "spire": (
        Part("b5583a", 0, 0.55, 0.24, 0.17, mottle=0.6),
        Part("c8704a", 0.55, 0.86, 0.17, 0.15, mottle=0.6),
        Part("d98a5e", 0.84, 1.0, 0.19, 0.15, mottle=0.4),
    ),
    "palm": (
        Part("9a7650", 0, 0.86, 0.045, 0.03),
        Part("3f9a5a", 0.78, 0.98, 0.36, round=True, mottle=0.6),
        Part("57b26a", 0.84, 1.02, 0.2, round=True, mottle=0.4),
    ),
    "basalt": (
        Part("3a3338", 0, 0.6, 0.2, 0.15, facets=6),
        Part("4a4046", 0.6, 1.0, 0.15, 0.03, facets=6),
        Part("e8622a", 0, 0.05, 0.27, 0.2, glow=0.9),
    ),
    "house": (
        Part("e8d8bd", 0, 0.5, 0.27, 0.27),
        Part("b5533c", 0.46, 1.0, 0.38, 0.0),
        Part("ffcf73", 0.16, 0.36, 0.275, 0.275, glow=0.8),
    ),
    "obelisk": (
        Part("e4cf9f", 0, 0.86, 0.12, 0.08, facets=4),
        Part("f6dc92", 0.86, 1.0, 0.08, 0.0, facets=4, glow=0.2),
        Part("c9b07f", 0, 0.1, 0.24, 0.2, facets=4),
    ),
    "pyramid": (
        Part("dcb878", 0, 1.0, 0.95, 0.0, facets=4),
        Part("f2dfae", 0.84, 1.02, 0.16, 0.0, facets=4, glow=0.3),
        Part("c9a566", 0, 0.06, 1.0, 0.96, facets=4),
    ),
    "pagoda": (
        Part("8a3b36", 0, 1.0, 0.1, 0.08),
        Part("3d4a5c", 0.34, 0.56, 0.3, 0.06),
        Part("46566c", 0.72, 1.02, 0.24, 0.0),
    ),
    "lighthouse": (
        Part("f0ece2", 0, 0.8, 0.13, 0.09),
        Part("d2473f", 0.86, 1.0, 0.12, 0.0),
        Part("ffe9a0", 0.78, 0.88, 0.075, 0.075, glow=1.0),
    ),
}
"""Species by name; every one has three parts. The first eight may be asked for by a prompt."""

PLACES: dict[str, Place] = {
    "meadow": Place(
        "6fa84a", "8fbf58", "c9a878", "6f9a6a", "9fb8c4", "bcd4e6",
        ("tree", "bush", "rock", "house"),
        hill_height=0.14, path_strength=0.85, patches=1.0,
    ),
    "desert": Place(
        "dba765", "eec284", "f3d7a4", "c48f62", "d8b08c", "f0cf9f",
        ("column", "cactus", "rock", "pyramid"),
        hill_height=0.10, hill_mesas=0.7, path_strength=0.2, ripples=1.0, haze_strength=0.35,
    ),
    "forest": Place(
        "dfe8f0", "c6d6e6", "b9c4d2", "7d95ad", "aec2d6", "d5e2ee",
        ("pine", "pine", "rock", "house"),
        hill_height=0.27, hill_peaks=1.0, hill_snow=0.85, path_strength=0.75, patches=0.7, haze_strength=0.25,
    ),
    "canyon": Place(
        "b8643f", "cf8458", "e0aa7c", "a4553c", "c58468", "e8b08a",
        ("spire", "rock", "cactus", "obelisk"),
        hill_height=0.22, hill_mesas=1.0, path_strength=0.5, patches=0.6, cracks=0.25, haze_strength=0.3,
    ),
    "glade": Place(
        "2f6a62", "3f8a70", "9fd8b0", "2c5a6e", "5a7ea2", "8fb8d8",
        ("mushroom", "crystal", "bush", "crystal"),
        hill_height=0.14, hill_peaks=0.5, path_strength=0.7, patches=0.9, haze_strength=0.45,
    ),
    "garden": Place(
        "6e7a72", "87938a", "c7bfae", "4a6472", "7c93a6", "b8c4d6",
        ("lantern", "bush", "rock", "pagoda"),
        hill_height=0.13, hill_peaks=0.3, path_strength=1.0, tiles=0.9, haze_strength=0.25,
    ),
    "shore": Place(
        "eed9a8", "e0c48c", "f6e8c4", "4f9a8c", "86bcc8", "c4e6ee",
        ("palm", "bush", "rock", "lighthouse"),
        hill_height=0.06, path_strength=0.25, ripples=0.35, water=1.0,
    ),
    "lava": Place(
        "38302f", "4c3f3c", "6a5650", "4a3434", "7a5650", "b06a4a",
        ("basalt", "basalt", "rock", "obelisk"),
        hill_height=0.26, hill_peaks=0.9, path_strength=0.5, cracks=1.0, haze_strength=0.5,
    ),
}  # fmt: skip

HOURS: dict[str, Hour] = {
    "dawn": Hour("6f8ec4", "f6c7b4", "ffd0a0", "8a93b4", 62.0, 11.0, 0.85, 3.0, 0.35),
    "day": Hour("3f7fd2", "bcdcf2", "fff4dc", "9fb2cc", 38.0, 46.0, 1.0, 3.2, 0.0),
    "dusk": Hour("4a4a8c", "f58f58", "ff9a52", "8a7090", -28.0, 8.0, 0.95, 4.2, 0.45),
    "night": Hour("0b1434", "2a3d70", "b8ccff", "3a4a78", 20.0, 22.0, 0.42, 3.0, 1.0),
}

WEATHERS: dict[str, Weather] = {
    "clear": Weather(cloud=0.28, grey=0.0, sun=1.0, fog_density=0.055),
    "clouds": Weather(cloud=0.85, grey=0.35, sun=0.62, fog_density=0.07),
    "fog": Weather(cloud=0.3, grey=0.6, sun=0.35, fog_density=0.42),
    "rain": Weather(cloud=0.7, grey=0.8, sun=0.22, fog_density=0.16, wet=1.0, rainfall=1.0),
    "snow": Weather(cloud=0.5, grey=0.65, sun=0.4, fog_density=0.15, snow=0.85, snowfall=1.0),
}

OVERRIDES = tuple(SPECIES)[:8]
"""Species that a prompt may ask for in place of the place's own tall and medium ones."""

TYPICAL_HEIGHTS = {"tall": 2.1, "medium": 0.95, "low": 0.34, "landmark": 2.6}
_SPECIES_HEIGHT = {
    "rock": {"tall": 0.62, "medium": 0.5, "landmark": 1.0},
    "bush": {"medium": 0.42, "low": 0.3},
    "mushroom": {"tall": 1.45, "medium": 0.8},
    "lantern": {"tall": 1.35, "medium": 0.85},
    "crystal": {"tall": 1.9, "medium": 0.9, "landmark": 2.9},
    "cactus": {"tall": 1.6, "low": 0.5},
    "house": {"landmark": 1.6},
    "pyramid": {"landmark": 1.25},
}


class Thing(NamedTuple):
    """One object of the map: x and z in [0, PERIOD), index into CLASSES, relative size, relative brightness."""

    x: float
    z: float
    size_class: int
    size: float
    shade: float


def height_of(species: str, size_class: str) -> float:
    """Height in world units of a species in one size class."""
    return _SPECIES_HEIGHT.get(species, {}).get(size_class, TYPICAL_HEIGHTS[size_class])


def widest(size_class: str) -> float:
    """Radius in world units within which any species of that size class stands."""
    index = CLASSES.index(size_class)
    species = {place.species[index] for place in PLACES.values()} | (set(OVERRIDES) if index < 2 else set())
    return max(height_of(name, size_class) * max(p.radius, p.radius_top) for name in species for p in SPECIES[name])


def path_offset(z: float) -> float:
    """x of the path that runs along z, through the origin."""
    return 0.55 * math.sin(2 * math.pi * z / PERIOD) + 0.2 * math.sin(4 * math.pi * z / PERIOD)


def cross_path_offset(x: float) -> float:
    """z of the path that runs along x and crosses the other."""
    return 5.0 + 0.5 * math.sin(2 * math.pi * x / PERIOD) + 0.3 * math.cos(4 * math.pi * x / PERIOD)


def layout(seed: int = 7) -> tuple[Thing, ...]:
    """The map's objects, the same for every place: landmarks, then tall, medium and low ones between the paths."""
    draw = random.Random(seed)
    spots = [(2.35, 3.0), (7.55, 2.5), (2.6, 7.7), (7.3, 7.5)]
    things = [Thing(x, z, 3, 1.0, 1.0) for x, z in spots]
    for size_class, count, room in ((0, 11, 0.95), (1, 12, 0.7), (2, 9, 0.5)):
        placed = 0
        while placed < count:
            x, z = draw.uniform(0, PERIOD), draw.uniform(0, PERIOD)
            if _free(x, z, room, things):
                things.append(Thing(x, z, size_class, draw.uniform(0.82, 1.2), draw.uniform(0.9, 1.1)))
                placed += 1
    return tuple(things)


def _free(x: float, z: float, room: float, things: list[Thing]) -> bool:
    on_path = min(_wrapped(x - path_offset(z)), _wrapped(z - cross_path_offset(x))) < 0.42 + 0.2 * room
    in_first_view = _wrapped(x) < 0.85 and z < 4.0
    near = any(math.hypot(_wrapped(x - t.x), _wrapped(z - t.z)) < (1.35 if t.size_class == 3 else room) for t in things)
    return not on_path and not in_first_view and not near


def _wrapped(distance: float) -> float:
    return abs((distance + PERIOD / 2) % PERIOD - PERIOD / 2)
