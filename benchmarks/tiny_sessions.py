"""Sessions of the tiny world with keys and prompts: do they obey, follow, and look like the renderer?"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import tiny_measures as measures
from benchmarks.tiny_measures import share
from benchmarks.tiny_probes import ATTRIBUTES, by_class
from benchmarks.tiny_rows import (
    CHUNKS_A_SECOND,
    FADING,
    SESSIONS,
    Bench,
    agreement,
    compared,
    drawing,
    elsewhere,
    obeyed,
    scenes_of,
    spread,
    usable,
)
from benchmarks.tiny_walks import Record, Walk, changed, first_prompt, poses, random_keys, random_scene
from pipeline.chunk import SessionSpec
from pipeline.tiny import scene
from pipeline.tiny.landscape import HOURS, PLACES, WEATHERS

EVERY = 8
"""Of a session's chunks, every so many keep a whole picture."""
SEEN_BY = 2
"""A new prompt must show 8 frames after its first chunk."""


def plan_sessions(count: int, seconds: float) -> list[Walk]:
    """Random keys, a random prompt, another one halfway."""
    return [_session(SESSIONS + number, round(seconds * CHUNKS_A_SECOND)) for number in range(count)]


def _session(seed: int, chunks: int) -> Walk:
    draw, half = drawing(seed), chunks // 2
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


def obeys(records: Sequence[Record], bench: Bench) -> dict[str, Any]:
    """Turning and walking as held, chunk by chunk."""
    found = [obeyed(record, range(record.chunks), bench) for record in records if record.chunks > 1]
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
    wanted = torch.stack([scenes_of(s.record.walk, [s.chunk])[0] for s in sights])
    stands = torch.stack([poses(s.record.walk)[s.chunk + 1] for s in sights])
    guessed = bench.probes.scenes(torch.stack([s.record.small[s.chunk] for s in sights]))
    best = bench.probes.scenes(bench.truth.small(stands, wanted))
    result: dict[str, Any] = {"goal": ">= 0.90 for place, hour, weather; changed too, 8 frames after the first chunk"}
    for kind in ("start", "change", "after"):
        rows = torch.tensor([s.kind == kind for s in sights])
        if rows.any():
            result[kind] = agreement(guessed[rows], best[rows], wanted[rows])
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


def _changed_only(sights: Sequence[Sight], guessed: Tensor, best: Tensor, wanted: Tensor) -> dict[str, Any]:
    """Of what a new prompt changes, how much shows in its due time."""
    at = [i for i, s in enumerate(sights) if s.kind == "change"]
    before = torch.stack([scenes_of(sights[i].record.walk, [0])[0] for i in at])
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
    scenes = torch.stack([scenes_of(record.walk, [chunk])[0] for record, chunk in kept])
    truth = bench.truth.full(stands, scenes)
    ratios, likeness, sharp = compared(made, truth)
    early = torch.tensor([chunk < record.chunks // 4 for record, chunk in kept])
    late = torch.tensor([chunk >= record.chunks * 3 // 4 for record, chunk in kept])
    return {
        "psnr": spread(ratios),
        "psnr_early": spread(ratios[early]) if early.any() else None,
        "psnr_late": spread(ratios[late]) if late.any() else None,
        "ssim": spread(likeness),
        "sharpness_ratio": spread(sharp),
        "psnr_renderer_elsewhere": spread(compared(bench.truth.full(elsewhere(stands), scenes), truth)[0]),
        "psnr_by_place": _by_kind(ratios, scenes[:, 0], list(PLACES)),
        "psnr_by_hour": _by_kind(ratios, scenes[:, 2], list(HOURS)),
        "psnr_by_weather": _by_kind(ratios, scenes[:, 3], list(WEATHERS)),
        **_frechet(records, bench),
        "pictures": len(kept),
    }


def _by_kind(values: Tensor, kinds: Tensor, names: Sequence[str]) -> dict[str, float]:
    return {name: round(float(values[kinds == i].median()), 2) for i, name in enumerate(names) if (kinds == i).any()}


def _frechet(records: Sequence[Record], bench: Bench) -> dict[str, Any]:
    """Of the model's pictures from the renderer's at the same poses, and of those from others of the same scenes."""
    kept = [(record, chunk) for record in records for chunk in range(3, record.chunks, 4)]
    kept = [(r, c) for r, c in kept if c in r.small and usable(r.walk, [c])[0]]
    made = torch.stack([record.small[chunk] for record, chunk in kept])
    stands = torch.stack([poses(record.walk)[chunk + 1] for record, chunk in kept])
    scenes = torch.stack([scenes_of(record.walk, [chunk])[0] for record, chunk in kept])
    drawn = (bench.truth.small(where, scenes) for where in (stands, elsewhere(stands)))
    model, same, other = (bench.probes.features(pictures) for pictures in (made, *drawn))
    return {
        "frechet_model": round(measures.frechet_distance(model, same), 4),
        "frechet_model_elsewhere": round(measures.frechet_distance(model, other), 4),
        "frechet_renderer_elsewhere": round(measures.frechet_distance(same, other), 4),
        "frechet_pictures": len(kept),
    }
