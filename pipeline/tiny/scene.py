"""Words to a scene of the small world, and back to one sentence that says how they were understood. No torch.

A scene has four attributes: place, things, hour and weather. A prompt names some of them in its own words; the rest
has a default, or stays what it was where a prompt follows another.
"""

import re
from typing import NamedTuple

from pipeline.tiny.landscape import HOURS, OVERRIDES, PLACES, WEATHERS

LONGEST_PHRASE = 3
"""Words in the longest phrase of the vocabulary."""


class Scene(NamedTuple):
    """Indexes into PLACES, OVERRIDES (1 is the first, 0 the place's own things), HOURS and WEATHERS."""

    place: int
    thing: int
    hour: int
    weather: int


class Understood(NamedTuple):
    """A prompt as a complete scene, and its words that mean nothing here, each once, in their order."""

    scene: Scene
    unknown: tuple[str, ...]


DEFAULT = Scene(
    place=list(PLACES).index("meadow"), thing=0, hour=list(HOURS).index("day"), weather=list(WEATHERS).index("clear")
)

_PLACES = {
    "meadow": "meadow grass grassland field green valley pasture prairie lawn park countryside hill farmland spring "
    "summer village farm house cottage plain hobbit shire|green meadow|green forest|summer forest|green field|"
    "green hill|green valley|flower field|grassy field",
    "desert": "desert sand dune sahara egypt egyptian pyramid oasis ruin temple ancient arabia arabian pharaoh "
    "greek greece roman antique|desert ruin|sand dune|sandy desert",
    "forest": "forest wood woodland taiga winter arctic alpine alps mountain tundra siberia norway finland christmas "
    "cabin lapland north|snowy forest|snow forest|winter forest|pine forest|snowy pine forest|snowy mountain|"
    "snow mountain|fir forest|snowy wood|winter wood|snowy landscape|winter landscape|frozen forest",
    "canyon": "canyon gorge ravine mesa arizona utah badlands cliff mars martian redrock sandstone western colorado|"
    "red canyon|red rock|rock canyon|rocky canyon|grand canyon|monument valley|red planet|wild west",
    "glade": "glade fairy fairyland magic magical enchanted fantasy wonderland elf elven cave mystical surreal "
    "dreamland alien moss swamp jungle|mushroom glade|mushroom forest|crystal glade|crystal forest|crystal cave|"
    "enchanted forest|magic forest|magical forest|fairy forest|alien planet|fairy tale",
    "garden": "garden japan japanese zen city town street plaza square courtyard kyoto tokyo asian oriental pagoda "
    "festival urban china chinese|lantern garden|japanese garden|zen garden|night city|stone garden|lantern festival",
    "shore": "shore beach sea ocean coast seaside island lagoon bay tropics tropical water lake hawaii caribbean "
    "lighthouse seashore coastline paradise palm river pond|sandy shore|sandy beach|palm beach|tropical island|"
    "palm tree|by the sea",
    "lava": "lava volcano volcanic magma hell inferno mordor basalt eruption fire fiery apocalypse infernal underworld "
    "hellscape ash|lava field|volcanic field|lava river|black rock",
}
_THINGS = {
    "tree": "tree oak apple broadleaf beech maple birch willow orchard treetop linden chestnut",
    "pine": "pine fir spruce conifer evergreen|pine tree|fir tree|christmas tree",
    "column": "column pillar colonnade marble doric|stone column|stone pillar",
    "cactus": "cactus cacti saguaro cactuses succulent",
    "crystal": "crystal gem diamond quartz amethyst sapphire jewel gemstone prism ice icicle|ice crystal",
    "mushroom": "mushroom toadstool fungus fungi shroom amanita|giant mushroom|red mushroom",
    "lantern": "lantern lamp streetlamp streetlight lamppost torch lampion|street lamp|street light|paper lantern",
    "rock": "rock boulder stone cobble pebble megalith",
}
_HOURS = {
    "dawn": "dawn sunrise morning daybreak sunup early aurora|first light|early morning",
    "day": "day noon midday daytime daylight afternoon sunlight sunlit bright|by day|in the daytime|broad daylight",
    "dusk": "dusk sunset evening twilight sundown golden gloaming|golden hour|setting sun|late afternoon|evening sun",
    "night": "night midnight nighttime nocturnal moon moonlight moonlit dark darkness star starry starlit starlight "
    "nightfall|at night|full moon|starry night|starry sky|dark night",
}
_WEATHERS = {
    "clear": "clear sunny cloudless sun sunshine fair fine dry|clear sky|blue sky|good weather|bright sun",
    "clouds": "cloud cloudy overcast clouded|grey sky|gray sky|cloudy sky",
    "fog": "fog foggy mist misty haze hazy smog smoke smoky steam|thick fog|dense fog|morning mist",
    "rain": "rain rainy raining storm stormy drizzle shower rainfall wet thunder thunderstorm downpour monsoon pouring "
    "rainstorm|heavy rain",
    "snow": "snow snowy snowing snowfall blizzard snowstorm flurry snowflake frost frosty frozen icy cold sleet "
    "hail|falling snow|heavy snow|deep snow",
}
_FILLERS = (
    "a an the of in on at by with and or to from into through over under near around between some many few lot lots "
    "very full is are there it its this that these those my our your i we you me us want see show go walk walking "
    "let lets please make take be as but for up down all everywhere everything place world landscape scene view "
    "scenery picture video image big small tall giant huge little tiny large old beautiful pretty lovely nice calm "
    "quiet peaceful wide open endless long deep high low soft gentle warm cool red blue white black yellow orange "
    "purple pink brown grey gray dark bright glowing weather time sky light ground path road now then more less no not "
    "without during under lit falling late hour middle front one two three like style"
)
_IGNORED = frozenset(_FILLERS.split())
_SENTENCE_PLACES = {
    "meadow": "a green meadow",
    "desert": "a desert",
    "forest": "a snowy forest",
    "canyon": "a red canyon",
    "glade": "a mushroom glade",
    "garden": "a lantern garden",
    "shore": "a sandy shore",
    "lava": "a lava field",
}
_SENTENCE_THINGS = ("trees", "pines", "columns", "cacti", "crystals", "mushrooms", "lanterns", "boulders")
_SENTENCE_HOURS = {"dawn": "at dawn", "day": "by day", "dusk": "at dusk", "night": "at night"}
_SENTENCE_WEATHERS = {"clear": "clear sky", "clouds": "clouds", "fog": "fog", "rain": "rain", "snow": "snowfall"}


def understand(prompt: str) -> Understood:
    """The scene of a prompt on its own; of two words for one attribute the later one counts."""
    named, unknown = _read(prompt)
    return Understood(_completed(named, DEFAULT), unknown)


def merge(previous: str, prompt: str) -> str:
    """The sentence of `prompt` said after `previous`: what the new one does not name stays."""
    named, _ = _read(prompt)
    return sentence(_completed(named, understand(previous).scene))


def sentence(scene: Scene) -> str:
    """What `scene` shows, such as "a snowy forest with crystals at night, fog"; understanding it gives `scene` again.

    Raises IndexError for an index outside the tables.
    """
    place, thing, hour, weather = scene
    things = f" with {_SENTENCE_THINGS[thing - 1]}" if thing else ""
    where, when = _SENTENCE_PLACES[list(PLACES)[place]], _SENTENCE_HOURS[list(HOURS)[hour]]
    return f"{where}{things} {when}, {_SENTENCE_WEATHERS[list(WEATHERS)[weather]]}"


def vocabulary() -> dict[tuple[str, ...], tuple[str, int]]:
    """Every word and phrase (a tuple of words in the singular): which attribute it names and the index there."""
    return dict(_VOCABULARY)


def _completed(named: dict[str, int], rest: Scene) -> Scene:
    return rest._replace(**named)


def _read(prompt: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """The attributes a prompt names and the words that name nothing; the longest phrase wins."""
    words = re.findall(r"[^\W\d_]+", prompt.lower())
    named: dict[str, int] = {}
    unknown: dict[str, None] = {}
    at = 0
    while at < len(words):
        length, meaning = _longest(words[at : at + LONGEST_PHRASE])
        if meaning is not None:
            named[meaning[0]] = meaning[1]
        elif words[at] not in _IGNORED and len(words[at]) > 1:
            unknown[words[at]] = None
        at += length
    return named, tuple(unknown)


def _longest(words: list[str]) -> tuple[int, tuple[str, int] | None]:
    """How many of the first `words` are one phrase (1 where none is), and its meaning or None."""
    for length in range(len(words), 0, -1):
        for phrase in (tuple(words[:length]), tuple(map(_singular, words[:length]))):
            if phrase in _VOCABULARY:
                return length, _VOCABULARY[phrase]
    return 1, None


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("shes", "ches", "xes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


def _phrases(attribute: str, table: dict[str, str], order: list[str], first: int) -> dict:
    """Singles stand between spaces before the first bar, phrases between the bars after it."""
    found = {}
    for index, name in enumerate(order, first):
        singles, *phrases = table[name].split("|")
        for phrase in (*((single,) for single in singles.split()), *(tuple(p.split()) for p in phrases)):
            found[phrase] = (attribute, index)
    return found


_VOCABULARY: dict[tuple[str, ...], tuple[str, int]] = {
    **_phrases("place", _PLACES, list(PLACES), 0),
    **_phrases("thing", _THINGS, list(OVERRIDES), 1),
    **_phrases("hour", _HOURS, list(HOURS), 0),
    **_phrases("weather", _WEATHERS, list(WEATHERS), 0),
}
