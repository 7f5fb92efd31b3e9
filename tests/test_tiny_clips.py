import torch

from pipeline.camera import Pose, step
from pipeline.tiny.clips import PITCH_LIMIT, ClipMaker, walk_many
from pipeline.tiny.text import KINDS

HELD = {"w": (1, 0, 0, 0), "as": (-1, -1, 0, 0), "dl": (0, 1, 1, 0), "jk": (0, 0, -1, -1), "wi": (1, 0, 0, 1)}


def test_many_walkers_walk_as_the_camera_does():
    start = torch.tensor([[1.0, 2.0, 0.3, 0.1]], dtype=torch.float64)
    held = torch.tensor([list(HELD.values())])
    path = walk_many(start, held)
    pose = Pose(*start[0].tolist())
    for index, keys in enumerate(HELD):
        torch.testing.assert_close(path[0, index, 0], torch.tensor(pose, dtype=torch.float64))
        for frame in range(1, 5):
            pose = step(pose, frozenset(keys), PITCH_LIMIT)
            torch.testing.assert_close(path[0, index, frame], torch.tensor(pose, dtype=torch.float64))


def test_clips_have_the_shapes_and_ranges_they_say():
    clips = ClipMaker(3, "cpu", coarseness=16).make(2, 3)
    assert clips.pictures.shape == (2, 3, 3, 4, 192, 320)
    assert clips.pose.shape == (2, 3, 2, 4)
    assert clips.pictures.min() >= -1 and clips.pictures.max() <= 1
    assert (clips.scenes < torch.tensor(KINDS)).all() and (clips.scenes >= 0).all()
    assert clips.pose[..., 3].abs().max() <= PITCH_LIMIT + 1e-9


def test_each_latent_frame_begins_where_the_one_before_ended():
    pose = ClipMaker(3, "cpu", coarseness=16).make(2, 3).pose
    assert torch.equal(pose[:, 1:, 0], pose[:, :-1, 1])


def test_the_same_seed_gives_the_same_clips():
    first, second = (ClipMaker(5, "cpu", coarseness=16).make(1, 2) for _ in range(2))
    assert torch.equal(first.pictures, second.pictures) and torch.equal(first.pose, second.pose)


def test_half_of_the_clips_change_their_prompt_where_there_is_room():
    scenes = ClipMaker(8, "cpu", coarseness=16).make(4, 6).scenes
    constant = (scenes == scenes[:, :1]).flatten(1).all(1)
    assert constant[2:].all() and not constant[:2].all()


def test_stills_are_single_pictures_of_many_scenes_the_same_for_a_seed():
    (first, scenes), (second, same) = (ClipMaker(5, "cpu", coarseness=16).stills(12) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(scenes, same)
    assert first.shape == (12, 3, 192, 320) and first.min() >= -1 and first.max() <= 1
    assert len(scenes.unique(dim=0)) > 6 and (scenes < torch.tensor(KINDS)).all()
