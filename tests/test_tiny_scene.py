import itertools

import pytest

from pipeline.tiny.landscape import HOURS, OVERRIDES, PLACES, WEATHERS
from pipeline.tiny.scene import DEFAULT, Scene, Understood, sentence, understand, vocabulary
from pipeline.tiny.vocabulary import LONGEST_PHRASE


def named(place="meadow", thing=None, hour="day", weather="clear") -> Scene:
    thing_index = OVERRIDES.index(thing) + 1 if thing else 0
    return Scene(list(PLACES).index(place), thing_index, list(HOURS).index(hour), list(WEATHERS).index(weather))


@pytest.mark.parametrize(
    ("prompt", "scene"),
    [
        ("a snowy forest at night", named("forest", hour="night")),
        ("A beach in the RAIN", named("shore", weather="rain")),
        ("sunset over the sahara, pillars", named("desert", "column", "dusk")),
        ("mushroom glade", named("glade")),
        ("mushrooms", named(thing="mushroom")),
        ("foggy volcano at daybreak with cacti", named("lava", "cactus", "dawn", "fog")),
        ("lantern garden, starry night", named("garden", hour="night")),
        ("snowing in the desert", named("desert", weather="snow")),
        ("palm trees by the sea", named("shore")),
    ],
)
def test_everyday_prompts_mean_what_they_say(prompt, scene):
    assert understand(prompt) == Understood(scene, unknown=())


def test_what_is_not_named_has_a_default():
    assert understand("please").scene == DEFAULT


def test_unknown_words_are_listed_once_and_do_no_harm():
    understood = understand("a Zeppelin over the desert, a zeppelin of brokkoli")
    assert understood.scene == named("desert")
    assert understood.unknown == ("zeppelin", "brokkoli")


def test_every_scene_survives_its_own_sentence():
    sizes = (len(PLACES), 1 + len(OVERRIDES), len(HOURS), len(WEATHERS))
    for indexes in itertools.product(*map(range, sizes)):
        scene = Scene(*indexes)
        assert understand(sentence(scene)) == Understood(scene, unknown=())


def test_what_the_new_prompt_does_not_name_stays():
    before = understand("a canyon with crystals at dusk, fog").scene
    assert understand("now at night", before).scene == named("canyon", "crystal", "night", "fog")


def test_a_new_place_keeps_hour_and_weather():
    before = understand("beach at dawn in the rain").scene
    assert understand("a desert", before).scene == named("desert", hour="dawn", weather="rain")


def test_no_phrase_is_longer_than_the_reader_looks():
    assert max(map(len, vocabulary())) == LONGEST_PHRASE


def test_the_vocabulary_has_some_hundred_words():
    assert len(vocabulary()) > 250
