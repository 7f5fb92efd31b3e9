"""The rows of the tiny world's table: from walks and what the engine made of them to figures.

A row has a plan (which walks) and a measure (what they show), beside it what the renderer's own pictures at the same
poses give by the same probe, which is the most that can be asked for. Shares are from 0 to 1, pictures uint8 until they
are measured.
"""

import io
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from benchmarks import tiny_measures as measures
from benchmarks.tiny_measures import as_floats, share
from benchmarks.tiny_probes import ATTRIBUTES, Probes, by_class
from benchmarks.tiny_truth import Truth, motion
from benchmarks.tiny_walks import (
    PITCH_LIMIT,
    PRESET,
    Record,
    Walk,
    changed,
    closed_path,
    first_prompt,
    poses,
    random_keys,
    random_scene,
    scene_at,
)
from pipeline import camera
from pipeline.camera import FRAMES_PER_LATENT
from pipeline.chunk import SessionSpec
from pipeline.steering import starting_pose
from pipeline.tiny import scene
from pipeline.tiny.clips import HEIGHT, WIDTH
from pipeline.tiny.landscape import HOURS, PLACES, WEATHERS
from pipeline.tiny.train import decode_clip, encode_clip

EVALUATION_SEED = 3 * 10**6
"""The first of the seeds that only this benchmark uses."""
SESSIONS, RETURNS, IMAGES, PHOTOS, LONG, CLIPS = (EVALUATION_SEED + 10**5 * n for n in range(6))
"""Where each row's seeds begin."""
CHUNKS_A_SECOND = PRESET.fps // FRAMES_PER_LATENT
EVERY = 8
"""Of a session's chunks, every so many keep a whole picture."""
FADING = 3
"""Chunks after a new prompt in which neither scene is judged, nor obedience."""
SEEN_BY = 2
"""A new prompt must show 8 frames after its first chunk."""
EDGE_FRAMES = 1000
"""Frames at both ends of a long walk between which obedience must not differ."""
POINTS = 100
"""Of a series, at most."""
COLOUR_POINTS = 5
"""Points of a series whose colours are counted together."""
STILL = 0.2
"""A picture is frozen that changes by less than this share of the least that the renderer's changes."""
NO_PROMPT = "this place"
"""Names no place, hour or weather: a session must bring some prompt."""
LEAD_IN = 16
"""Chunks before a pose is noted, two windows."""
PSNR_GOAL = 22.0


class Bench(NamedTuple):
    """What every measure needs."""

    probes: Probes
    truth: Truth


def _draw(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _spread(values: Tensor) -> dict[str, float]:
    values = values.float().cpu()
    return {
        "median": round(float(values.quantile(0.5)), 2),
        "percentile_5": round(float(values.quantile(0.05)), 2),
        "mean": round(float(values.mean()), 2),
    }


def _rounded(values: Iterable[float], digits: int = 4) -> list[float]:
    return [round(float(value), digits) for value in values]


# Sessions: obedience, prompts, fidelity


def plan_sessions(count: int, seconds: float) -> list[Walk]:
    """Random keys, a random prompt, another one halfway."""
    return [_session(SESSIONS + number, round(seconds * CHUNKS_A_SECOND)) for number in range(count)]


def _session(seed: int, chunks: int) -> Walk:
    draw, half = _draw(seed), chunks // 2
    first = random_scene(draw)
    prompt = first_prompt(draw, first)
    second, new = changed(draw, first)
    whole = frozenset(c for c in range(EVERY // 2, chunks, EVERY) if not half <= c < half + FADING)
    return Walk(
        SessionSpec(f"session-{seed}", prompt, seed),
        random_keys(draw, chunks),
        {0: first, half: second},
        {half: new},
        frozenset(range(chunks)),
        whole,
    )


def _scenes(walk: Walk, chunks: Iterable[int]) -> Tensor:
    return torch.tensor([scene_at(walk, chunk) for chunk in chunks])


def _usable(walk: Walk, chunks: Sequence[int]) -> Tensor:
    """Not while one prompt's picture fades into the next one's."""
    return torch.tensor([all(not at <= chunk < at + FADING for at in walk.prompts) for chunk in chunks])


def _obeyed(record: Record, chunks: Sequence[int], bench: Bench) -> dict[str, Any]:
    """Flags of tiny_measures.obedience, and the renderer's, for neighbouring `chunks`, all but the first judged."""
    walk = record.walk
    stands = poses(walk)[1:][list(chunks)]
    drawn = bench.truth.small(stands, _scenes(walk, chunks))
    made = torch.stack([record.small[chunk] for chunk in chunks])
    true = motion(stands[:-1], stands[1:])
    seen, expected = (bench.probes.motion(pictures[:-1], pictures[1:]) for pictures in (made, drawn))
    usable = _usable(walk, chunks[1:])
    return {
        "model": measures.obedience(true, seen, expected, usable),
        "renderer": measures.obedience(true, expected, expected, usable),
        "renderer_changes": as_floats(drawn).diff(dim=0).abs().mean((1, 2, 3)).cpu(),
        "moving": (measures.directions(true)[:, :3] != 0).any(1) & usable,
    }


def obeys(records: Sequence[Record], bench: Bench) -> dict[str, Any]:
    """Turning and walking as held, chunk by chunk."""
    found = [_obeyed(record, range(record.chunks), bench) for record in records if record.chunks > 1]
    return {
        "model": measures.pooled([each["model"] for each in found]),
        "renderer": measures.pooled([each["renderer"] for each in found]),
        "goal": "obeyed: turn >= 0.95, walk >= 0.90 within 2 chunks; near >= 0.80",
    }


class Sight(NamedTuple):
    """A chunk of a record whose picture is looked at, and what for."""

    record: Record
    chunk: int
    kind: str


def follows(records: Sequence[Record], bench: Bench) -> dict[str, Any]:
    """Place, hour and weather of a session's pictures, 2 s and more after its prompt and soon after another one."""
    sights = [sight for record in records for sight in _sights(record)]
    wanted = torch.stack([_scenes(s.record.walk, [s.chunk])[0] for s in sights])
    stands = torch.stack([poses(s.record.walk)[s.chunk + 1] for s in sights])
    guessed = bench.probes.scenes(torch.stack([s.record.small[s.chunk] for s in sights]))
    best = bench.probes.scenes(bench.truth.small(stands, wanted))
    result: dict[str, Any] = {"goal": ">= 0.90 for place, hour, weather; changed too, 8 frames after the first chunk"}
    for kind in ("start", "change", "after"):
        rows = torch.tensor([s.kind == kind for s in sights])
        if rows.any():
            result[kind] = _agreement(guessed[rows], best[rows], wanted[rows])
    if any(s.kind == "change" for s in sights):
        result["changed"] = _changed_only(sights, guessed, best, wanted)
    rows = torch.tensor([s.kind != "change" for s in sights])
    result["by_class"] = {
        "model": by_class(guessed[rows], wanted[rows]),
        "renderer": by_class(best[rows], wanted[rows]),
    }
    return result | {"prompts_understood": _understood(records)}


def _sights(record: Record) -> list[Sight]:
    """Every 2 s from 2 s after the beginning and after the change; and the end of the change's due time."""
    every, changes = 2 * CHUNKS_A_SECOND, sorted(record.walk.prompts)
    change = changes[0] if changes else record.chunks
    found = [Sight(record, c, "start") for c in range(every - 1, change, every)]
    found += [Sight(record, change + SEEN_BY, "change")]
    found += [Sight(record, c, "after") for c in range(change + every, record.chunks, every)]
    return [sight for sight in found if sight.chunk < record.chunks]


def _agreement(guessed: Tensor, best: Tensor, wanted: Tensor) -> dict[str, Any]:
    """ "told": of what the probe tells rightly in the renderer's picture, how much it tells so in the model's."""
    model, renderer = guessed == wanted, best == wanted

    def shares(right: Tensor, rows: Tensor | None = None) -> dict[str, float | None]:
        parts = (right[:, i] if rows is None else right[:, i][rows[:, i]] for i in range(len(ATTRIBUTES)))
        return dict(zip(ATTRIBUTES, map(share, parts), strict=True))

    return {
        "model": shares(model),
        "renderer": shares(renderer),
        "told": shares(model, renderer),
        "pictures": len(wanted),
    }


def _changed_only(sights: Sequence[Sight], guessed: Tensor, best: Tensor, wanted: Tensor) -> dict[str, Any]:
    """Of what a new prompt changes, how much shows in its due time."""
    at = [i for i, s in enumerate(sights) if s.kind == "change"]
    before = torch.stack([_scenes(sights[i].record.walk, [0])[0] for i in at])
    differs = before != wanted[at]
    result: dict[str, Any] = {"model": {}, "renderer": {}}
    for who, seen in (("model", guessed), ("renderer", best)):
        for i, name in enumerate(ATTRIBUTES):
            if differs[:, i].any():
                result[who][name] = share((seen[at][:, i] == wanted[at][:, i])[differs[:, i]])
    return result


def _understood(records: Sequence[Record]) -> float | None:
    """How many prompts the text table took as they were meant."""
    pairs = [(said, record.walk.scenes[c]) for record in records for c, said in record.understood.items()]
    return share(torch.tensor([said == scene.sentence(meant) for said, meant in pairs]))


def faithful(records: Sequence[Record], bench: Bench) -> dict[str, Any]:
    """Whole pictures against the renderer's at the same pose and scene, and the feature space's distances."""
    kept = [(record, chunk) for record in records for chunk in sorted(record.full)]
    made = torch.stack([record.full[chunk] for record, chunk in kept])
    stands = torch.stack([poses(record.walk)[chunk + 1] for record, chunk in kept])
    scenes = torch.stack([_scenes(record.walk, [chunk])[0] for record, chunk in kept])
    truth = bench.truth.full(stands, scenes)
    ratios, likeness, sharp = _compared(made, truth)
    early = torch.tensor([chunk < record.chunks // 4 for record, chunk in kept])
    late = torch.tensor([chunk >= record.chunks * 3 // 4 for record, chunk in kept])
    return {
        "psnr": _spread(ratios),
        "psnr_early": _spread(ratios[early]) if early.any() else None,
        "psnr_late": _spread(ratios[late]) if late.any() else None,
        "ssim": _spread(likeness),
        "sharpness_ratio": _spread(sharp),
        "psnr_renderer_elsewhere": _spread(_compared(bench.truth.full(_elsewhere(stands), scenes), truth)[0]),
        "psnr_by_place": _by_kind(ratios, scenes[:, 0], list(PLACES)),
        "psnr_by_hour": _by_kind(ratios, scenes[:, 2], list(HOURS)),
        "psnr_by_weather": _by_kind(ratios, scenes[:, 3], list(WEATHERS)),
        **_frechet(records, bench),
        "pictures": len(kept),
    }


def _compared(made: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """PSNR, SSIM and the ratio of sharpness of each pair of uint8 pictures, in parts that fit."""
    rows = [
        (measures.psnr(a, b), measures.ssim(a, b), measures.sharpness(a) / measures.sharpness(b))
        for a, b in ((as_floats(made[i : i + 64]), as_floats(truth[i : i + 64])) for i in range(0, len(made), 64))
    ]
    psnr, ssim, sharp = (torch.cat(part).cpu() for part in zip(*rows, strict=True))
    return psnr, ssim, sharp


def _by_kind(values: Tensor, kinds: Tensor, names: Sequence[str]) -> dict[str, float]:
    return {name: round(float(values[kinds == i].median()), 2) for i, name in enumerate(names) if (kinds == i).any()}


def _elsewhere(stands: Tensor) -> Tensor:
    """The same poses in another order, each far from its own in the list."""
    return stands.roll(len(stands) // 2, 0)


def _frechet(records: Sequence[Record], bench: Bench) -> dict[str, Any]:
    """Of the model's pictures from the renderer's at the same poses, and of those from others of the same scenes."""
    kept = [(record, chunk) for record in records for chunk in range(3, record.chunks, 4)]
    kept = [(r, c) for r, c in kept if c in r.small and _usable(r.walk, [c])[0]]
    made = torch.stack([record.small[chunk] for record, chunk in kept])
    stands = torch.stack([poses(record.walk)[chunk + 1] for record, chunk in kept])
    scenes = torch.stack([_scenes(record.walk, [chunk])[0] for record, chunk in kept])
    drawn = (bench.truth.small(where, scenes) for where in (stands, _elsewhere(stands)))
    model, same, other = (bench.probes.features(pictures) for pictures in (made, *drawn))
    return {
        "frechet_model": round(measures.frechet_distance(model, same), 4),
        "frechet_model_elsewhere": round(measures.frechet_distance(model, other), 4),
        "frechet_renderer_elsewhere": round(measures.frechet_distance(same, other), 4),
        "frechet_pictures": len(kept),
    }


# Long walks: staying well


def plan_long(count: int, frames: int) -> list[Walk]:
    """One prompt each, keys at random for `frames` video frames."""
    return [_long(LONG + number, frames // FRAMES_PER_LATENT) for number in range(count)]


def _long(seed: int, chunks: int) -> Walk:
    draw, sampled = _draw(seed), frozenset(range(_stride(chunks) - 1, chunks, _stride(chunks)))
    wanted = random_scene(draw)
    first, last = edges(chunks)
    return Walk(
        SessionSpec(f"long-{seed}", scene.sentence(wanted), seed),
        random_keys(draw, chunks),
        {0: wanted},
        {},
        frozenset({*first, *last}),
        sampled,
    )


def _stride(chunks: int) -> int:
    return max(1, chunks // POINTS)


def edges(chunks: int) -> tuple[range, range]:
    """The chunks of the first and of the last EDGE_FRAMES."""
    count = min(EDGE_FRAMES // FRAMES_PER_LATENT, chunks)
    return range(count), range(chunks - count, chunks)


def stays_well(records: Sequence[Record], bench: Bench) -> dict[str, Any]:
    """Sharpness, colours, movement and obedience from the first frame to the last."""
    chunks = min(record.chunks for record in records)
    series = _series(records, bench, chunks)
    found: dict[str, Any] = {
        "frames": chunks * FRAMES_PER_LATENT,
        "seeds": len(records),
        "ended": [record.ended for record in records if record.ended],
        "goal": "sharpness_ratio 0.8 to 1.2; colour_ratio < 1.5; frozen 0; obedience last as first",
    }
    found |= _edges(records, bench)
    colours, between = series["colour_distance"], series["colour_distance_seeds"]
    found |= {
        "sharpness_ratio": [min(series["sharpness_ratio"]), max(series["sharpness_ratio"])],
        "colour_ratio": round(max(a / max(b, 1e-6) for a, b in zip(colours, between, strict=True)), 3),
    }
    return found | {"series": series}


def _series(records: Sequence[Record], bench: Bench, chunks: int) -> dict[str, list[float]]:
    """By sampled chunk, over all seeds."""
    sampled = [chunk for chunk in sorted(records[0].walk.full) if chunk < chunks]
    made = torch.stack([torch.stack([record.full[chunk] for record in records]) for chunk in sampled])
    stands = torch.stack([poses(record.walk)[1:][sampled] for record in records], dim=1)
    scenes = torch.stack([_scenes(record.walk, sampled) for record in records], dim=1)
    flat = (stands.flatten(0, 1), scenes.flatten(0, 1))
    truth = bench.truth.full(*flat)
    elsewhere = bench.truth.full(stands.roll(1, dims=1).flatten(0, 1), flat[1])
    shape = (len(sampled), len(records))
    psnr, _, sharp = (each.unflatten(0, shape) for each in _compared(made.flatten(0, 1), truth))
    own, other = _colour_distances(made, truth.unflatten(0, shape), elsewhere.unflatten(0, shape))
    frames = [(chunk + 1) * FRAMES_PER_LATENT for chunk in sampled]
    return {
        "frame": frames,
        "sharpness_ratio": _rounded(sharp.log().mean(1).exp()),
        "psnr_median": _rounded(psnr.median(1).values, 2),
        "psnr_least": _rounded(psnr.amin(1), 2),
        "colour_frame": frames[COLOUR_POINTS - 1 :: COLOUR_POINTS] or frames[-1:],
        "colour_distance": own,
        "colour_distance_seeds": other,
    }


def _colour_distances(made: Tensor, truth: Tensor, elsewhere: Tensor) -> tuple[list[float], list[float]]:
    """Model from renderer, and renderer from the same scene along another seed's walk; (points, seeds, 3, H, W)."""
    own, other = [], []
    starts = range(0, max(1, len(made) - COLOUR_POINTS + 1), COLOUR_POINTS)
    for first in starts:
        part = slice(first, first + COLOUR_POINTS)
        distances = []
        for seed in range(made.shape[1]):
            kinds = [measures.histogram(as_floats(each[part, seed])) for each in (made, truth, elsewhere)]
            distances.append([measures.histogram_distance(kinds[i], kinds[1]) for i in (0, 2)])
        means = np.mean(distances, axis=0)
        own.append(round(float(means[0]), 4))
        other.append(round(float(means[1]), 4))
    return own, other


def _edges(records: Sequence[Record], bench: Bench) -> dict[str, Any]:
    """Obedience in the first and the last frames, and how often a picture stood still while a key was held."""
    first, last, still = [], [], []
    for record in records:
        found = [_obeyed(record, part, bench) for part in edges(record.chunks) if all(c in record.small for c in part)]
        first += [each["model"] for each in found[:1]]
        last += [each["model"] for each in found[1:]]
        if found:
            still.append(_frozen(record, found))
    frozen = torch.cat(still) if still else torch.zeros(0)
    return {
        "obedience_first": measures.pooled(first) if first else None,
        "obedience_last": measures.pooled(last) if last else None,
        "frozen": share(frozen),
        "chunks_with_a_key": len(frozen),
    }


def _frozen(record: Record, found: Sequence[dict[str, Tensor]]) -> Tensor:
    """Of each chunk that moves, whether its picture does so less than STILL of the least that the renderer's does."""
    least = min(float(each["renderer_changes"][each["moving"]].amin()) for each in found if each["moving"].any())
    stands = poses(record.walk)[1 : record.chunks + 1]
    moving = (measures.directions(motion(stands[:-1], stands[1:]))[:, :3] != 0).any(1)
    return (torch.stack(record.changes).cpu() < STILL * least)[moving]


# Returns: remembering


def plan_returns(count: int, seconds: float) -> list[Walk]:
    """Some walking, a pose noted, `seconds` away on a path that closes, the pose again."""
    return [_return(RETURNS + number, round(seconds * CHUNKS_A_SECOND)) for number in range(count)]


def _return(seed: int, away: int) -> Walk:
    draw = _draw(seed)
    wanted = random_scene(draw)
    lead = [keys for keys in random_keys(draw, LEAD_IN) for _ in range(FRAMES_PER_LATENT)]
    stand = [frozenset()] * FRAMES_PER_LATENT
    script = (*lead, *stand, *closed_path(draw, away), *stand)
    chunks = len(script) // FRAMES_PER_LATENT
    noted = frozenset({LEAD_IN, chunks - 1})
    spec = SessionSpec(f"return-{seed}", scene.sentence(wanted), seed, script=script)
    return Walk(spec, (frozenset(),) * chunks, {0: wanted}, {}, frozenset(), noted)


def remembers(records: Sequence[Record], bench: Bench, vae: Any) -> dict[str, Any]:
    """The picture after coming back against the one before, and beside it what other pairs of pictures give."""
    done = [record for record in records if record.chunks == len(record.walk.keys)]
    before = torch.stack([record.full[LEAD_IN] for record in done])
    after = torch.stack([record.full[record.chunks - 1] for record in done])
    stands = torch.stack([poses(record.walk)[[LEAD_IN + 1, record.chunks]] for record in done])
    scenes = torch.stack([_scenes(record.walk, [0])[0] for record in done])
    truth = bench.truth.full(stands[:, 0], scenes)
    elsewhere = bench.truth.full(_elsewhere(stands[:, 0]), scenes)
    pairs = {
        "again": (after, before),
        "truth": (after, truth),
        "renderer_elsewhere": (elsewhere, truth),
        "vae": (_through_vae(stands[:, 0], scenes, bench, vae), truth),
    }
    found = {name: _compared(*pair) for name, pair in pairs.items()}
    figures = {name: {"psnr": _spread(psnr), "ssim": _spread(ssim)} for name, (psnr, ssim, _) in found.items()}
    return {
        **figures,
        "at_least_22_db": share(found["again"][0] >= PSNR_GOAL),
        "returns": len(done),
        "pose_error": float((stands[:, 1] - stands[:, 0])[:, :2].abs().max()),
        "goal": "again: PSNR >= 22 dB",
    }


def _still_clips(stands: Tensor, scenes: Tensor, truth: Truth) -> Tensor:
    """Four pictures of each standing viewer, (N, 3, 4, H, W) in [-1, 1]."""
    phases = torch.arange(FRAMES_PER_LATENT).repeat(len(stands))
    rows = (each.repeat_interleave(FRAMES_PER_LATENT, 0) for each in (stands, scenes))
    pictures = truth.full(*rows, phases).unflatten(0, (-1, FRAMES_PER_LATENT)).movedim(1, 2)
    return as_floats(pictures) * 2 - 1


@torch.inference_mode()
def _through_vae(stands: Tensor, scenes: Tensor, bench: Bench, vae: Any) -> Tensor:
    """The last of each latent frame's four pictures, encoded and decoded by itself, uint8 (N, 3, H, W)."""
    clips = _still_clips(stands, scenes, bench.truth)
    made = torch.stack([decode_clip(vae, encode_clip(vae, clip[None]))[0, :, -1] for clip in clips])
    return made.add(1).mul(127.5).round().clamp(0, 255).byte()


# The VAE alone


@torch.inference_mode()
def picture_quality(count: int, bench: Bench, vae: Any) -> dict[str, Any]:
    """Held-out clips of two latent frames through the VAE, as a stream."""
    clips = _walking_clips(count, bench.truth)
    errors = [(decode_clip(vae, encode_clip(vae, clip)) - clip).square().mean() / 4 for clip in clips]
    return {"vae_psnr": _spread(measures.decibels(torch.stack(errors))), "clips": count, "goal": "vae_psnr mean >= 30"}


def _walking_clips(count: int, truth: Truth) -> Tensor:
    """(clips, 2, 3, 4, H, W) in [-1, 1]."""
    stands, scenes = [], []
    for number in range(count):
        draw = _draw(CLIPS + number)
        pose = starting_pose(PRESET, CLIPS + number)
        scenes.append(random_scene(draw))
        for keys in random_keys(draw, 2):
            for _ in range(FRAMES_PER_LATENT):
                pose = camera.step(pose, keys, PITCH_LIMIT)
                stands.append(pose)
    phases = torch.arange(FRAMES_PER_LATENT).repeat(2 * count)
    what = torch.tensor(scenes).repeat_interleave(2 * FRAMES_PER_LATENT, 0)
    pictures = truth.full(torch.tensor(stands), what, phases)
    return as_floats(pictures.unflatten(0, (count, 2, FRAMES_PER_LATENT)).movedim(2, 3)) * 2 - 1


# A picture first


def plan_images(count: int, bench: Bench) -> list[Walk]:
    """Begun with a renderer's picture of any scene from any pose, and no word of it."""
    draw = _draw(IMAGES)
    scenes = [random_scene(draw) for _ in range(count)]
    stands = torch.tensor([starting_pose(PRESET, IMAGES + 10**4 + number) for number in range(count)])
    pictures = bench.truth.full(stands, torch.tensor(scenes))
    return [_image(IMAGES + n, png(picture), scenes[n]) for n, picture in enumerate(pictures)]


def _image(seed: int, picture: bytes, shown: scene.Scene) -> Walk:
    chunks = 3 * CHUNKS_A_SECOND
    keys = random_keys(_draw(seed), chunks)
    every = frozenset(range(chunks))
    return Walk(SessionSpec(f"image-{seed}", NO_PROMPT, seed, picture), keys, {0: shown}, {}, every, every)


def continues(records: Sequence[Record], bench: Bench) -> dict[str, Any]:
    """What the pictures 2 s after an uploaded one show, against what that one showed."""
    done = [record for record in records if record.chunks > 2 * CHUNKS_A_SECOND]
    at = 2 * CHUNKS_A_SECOND
    wanted = torch.stack([_scenes(record.walk, [at])[0] for record in done])
    stands = torch.stack([poses(record.walk)[at + 1] for record in done])
    guessed = bench.probes.scenes(torch.stack([record.small[at] for record in done]))
    best = bench.probes.scenes(bench.truth.small(stands, wanted))
    return _agreement(guessed, best, wanted) | {"goal": ">= 0.90 for place, hour, weather"}


def plan_photos(count: int) -> list[Walk]:
    """Begun with pictures that no renderer of ours made."""
    return [_image(PHOTOS + n, png(photo), scene.DEFAULT) for n, photo in enumerate(photos(count))]


def photos(count: int) -> list[Tensor]:
    """Made in code: gradients, noise, and soft skies over textured ground with round and square things in it."""
    kinds = (_gradient, _noise, _scenery)
    return [kinds[number % len(kinds)](_draw(PHOTOS + number)) for number in range(count)]


def _gradient(draw: np.random.Generator) -> Tensor:
    corners = torch.from_numpy(draw.uniform(0, 255, (1, 3, 2, 2))).float()
    return torch.nn.functional.interpolate(corners, (HEIGHT, WIDTH), mode="bilinear", align_corners=True)[0].byte()


def _noise(draw: np.random.Generator) -> Tensor:
    return torch.from_numpy(draw.integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8))


def _scenery(draw: np.random.Generator) -> Tensor:
    colours = [tuple(int(c) for c in draw.integers(0, 256, 3)) for _ in range(8)]
    picture = Image.new("RGB", (WIDTH, HEIGHT), colours[0])
    pen, horizon = ImageDraw.Draw(picture), int(HEIGHT * draw.uniform(0.35, 0.65))
    pen.rectangle((0, horizon, WIDTH, HEIGHT), fill=colours[1])
    for colour in colours[2:]:
        x, y, size = draw.uniform(0, WIDTH), draw.uniform(horizon - 40, HEIGHT), draw.uniform(10, 70)
        shape = pen.ellipse if draw.random() < 0.5 else pen.rectangle
        shape((x - size / 2, y - size, x + size / 2, y), fill=colour)
    grain = draw.normal(0, 12, (HEIGHT, WIDTH, 1))
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.5)), np.float64) + grain
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)).movedim(-1, 0)


def takes_photos(records: Sequence[Record]) -> dict[str, Any]:
    """Whether the stream stays well after any photo, and whose colours its first 2 s have."""
    begun = [_read(record.walk.spec.image) for record in records]
    own, other, sharp = [], [], []
    for number, record in enumerate(records):
        made = as_floats(torch.stack([record.full[c] for c in sorted(record.full) if c < 2 * CHUNKS_A_SECOND])).cpu()
        colours = measures.histogram(made)
        own.append(measures.histogram_distance(colours, measures.histogram(begun[number])))
        other.append(measures.histogram_distance(colours, measures.histogram(begun[number - 1])))
        sharp.append(measures.sharpness(made).mean())
    return {
        "ended": [record.ended for record in records if record.ended],
        "colour_distance": round(float(np.mean(own)), 4),
        "colour_distance_of_another": round(float(np.mean(other)), 4),
        "nearer_to_its_own": share(torch.tensor(own) < torch.tensor(other)),
        "sharpness": _rounded((min(sharp), max(sharp)), 5),
        "photos": len(records),
        "goal": "none ended; colours nearer to its own photo than to another",
    }


def png(picture: Tensor) -> bytes:
    """An encoded picture of uint8 (3, H, W)."""
    data = io.BytesIO()
    Image.fromarray(picture.movedim(0, -1).cpu().numpy()).save(data, "PNG")
    return data.getvalue()


def _read(data: bytes) -> Tensor:
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return as_floats(torch.from_numpy(pixels.copy()).movedim(-1, 0)[None])
