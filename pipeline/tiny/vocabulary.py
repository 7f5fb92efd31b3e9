"""The words of the small world: those that someone listed, and those that were learnt from a sentence encoder.

Listed words and phrases are below, words.txt holds the learnt ones (`python -m pipeline.tiny.words` makes it).
"""

import functools
import re
from pathlib import Path

from pipeline.tiny.landscape import HOURS, OVERRIDES, PLACES, WEATHERS

LONGEST_PHRASE = 3
"""Words in the longest phrase of the vocabulary."""

LEARNT_FILE = Path(__file__).with_name("words.txt")

Meaning = tuple[str, int]
"""An attribute of scene.Scene and the index that it has there."""

VALUES = {"place": tuple(PLACES), "thing": ("", *OVERRIDES), "hour": tuple(HOURS), "weather": tuple(WEATHERS)}
"""The names of an attribute's indexes; a thing's 0 has none, it is the place's own things."""

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
    "without during under lit falling late hour middle front one two three like style any longer anymore "
    "never neither nor"
)
FILLERS = frozenset(_FILLERS.split())
NEGATIONS = frozenset(("no", "not", "without", "never", "neither", "nor"))


@functools.cache
def learnt() -> dict[str, Meaning]:
    """The shipped table: a word, in the singular if it is a noun, and its meaning. Read once, in milliseconds."""
    return read_learnt(LEARNT_FILE.read_text(encoding="utf-8"))


def read_learnt(text: str) -> dict[str, Meaning]:
    """The meanings in a table of learnt words: a line has the word, attribute, value and confidence; # begins a remark.

    Raises ValueError that names the line which is none of these.
    """
    lines = (parse_line(line) for line in text.splitlines() if line and not line.startswith("#"))
    return {word: meaning for word, meaning, _ in lines}


def parse_line(line: str) -> tuple[str, Meaning, float]:
    """Word, meaning and confidence in (0, 1] of a line such as "clover place meadow 0.93"; ValueError for another."""
    match = re.fullmatch(r"([a-z]{3,}) (\w+) (\w+) (0\.\d+|1\.0+)", line)
    if match is None or match[3] not in VALUES.get(match[2], ()):
        raise ValueError(f"{line!r} is no line of a table of words; one looks like 'clover place meadow 0.93'")
    return match[1], (match[2], VALUES[match[2]].index(match[3])), float(match[4])


def singular(word: str) -> str:
    """An English noun's singular by its ending alone; a word that is none loses its s all the same."""
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("shes", "ches", "xes", "oes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word


def _phrases(attribute: str, table: dict[str, str]) -> dict[tuple[str, ...], Meaning]:
    """Singles stand between spaces before the first bar, phrases between the bars after it."""
    found = {}
    for name, line in table.items():
        index = VALUES[attribute].index(name)
        singles, *phrases = line.split("|")
        for phrase in (*((single,) for single in singles.split()), *(tuple(p.split()) for p in phrases)):
            found[phrase] = (attribute, index)
    return found


LISTED: dict[tuple[str, ...], Meaning] = {
    **_phrases("place", _PLACES),
    **_phrases("thing", _THINGS),
    **_phrases("hour", _HOURS),
    **_phrases("weather", _WEATHERS),
}
