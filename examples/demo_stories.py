"""Short stories in six languages, made from a seed: the training text of the demo checkpoint.

The words, sentences and plots stand in `demo_lexicon.json`; this module chooses and inflects them. A story has a hero
`a`, friends `b` and `c`, places `p`, `q` and `s`, objects `o`, `x` and `y`, an animal `z`, and a refrain `r` that
comes back word for word, so a reader (or a model) must look back to go on correctly. Templates are written so:

- `[one|two]` is a choice; `~` is a no-break space; a newline ends a paragraph;
- `{a}` is a name, `{a:of}` a name after French "de"; `{n}`, `{day}`, `{month}` are a number word and a date;
- `{o:the}` is a noun after the determiner `the` of its gender, `{o:the+}` the same with its adjective, `{o:The}` with a
  capital; `n` stands for no determiner; German has the accusative `the4` and the dative `the3`;
- `{ab?ils/elles}` is the second word if a and b are all feminine, else the first (German: m/f/n).

It knows no grammar beyond that: agreement across a sentence is in the templates.
"""

import json
import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypedDict

LANGUAGES = ("en", "fr", "de", "it", "pt", "es")
HELD_OUT_SHARE = 8  # one (hero, object, place) in so many is never shown in training

Kind = Literal["person", "place", "object"]


@dataclass(frozen=True)
class Span:
    """A mention in a story: `text[start:end]` is the bare name or noun."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class Story:
    """A story, its mentions in order, and the sentence in it that repeats."""

    language: str
    text: str
    spans: tuple[Span, ...]
    refrain: str


class Plot(TypedDict):
    """The refrains to choose from, and the sentences in order."""

    refrains: list[str]
    sentences: list[str]


class Lexicon(TypedDict):
    """One language of `demo_lexicon.json`."""

    people: dict[str, str]
    places: list[str]
    objects: list[str]
    animals: list[str]
    adjectives: list[str]
    determiners: dict[str, dict[str, str]]
    endings: dict[str, dict[str, str]]
    numbers: str
    months: str
    openings: list[str]
    closings: list[str]
    plots: dict[str, Plot]


@dataclass(frozen=True)
class Entity:
    """Someone or something in a story; `kind` is None for what no span marks."""

    word: str
    gender: str
    kind: Kind | None
    adjective: str = ""


CHOICE = re.compile(r"\[([^\[\]]*)\]")
SLOT = re.compile(r"\{(\w+)(?:\?([^}]*)|:(\w+\+?))?\}")
APOSTROPHE = "\u2019"
VOWELS = "aeiouàâéèêíîóôúAEIOUÀÂÉÈÊÍÎÓÔÚ"


@cache
def lexicons() -> dict[str, Lexicon]:
    """Read `demo_lexicon.json`: a lexicon a language code."""
    return json.loads((Path(__file__).parent / "demo_lexicon.json").read_text(encoding="utf-8"))


def stories(language: str, count: int, *, seed: int, held_out: bool = False) -> Iterator[Story]:
    """Yield `count` stories; a held-out story has a hero, object and place that never meet in a training story.

    Raises `ValueError` for a language that is not one of `LANGUAGES`.
    """
    if language not in LANGUAGES:
        raise ValueError(f"unknown language {language!r}: choose one of {', '.join(LANGUAGES)}")
    rng = random.Random(f"{language} {seed} {held_out}")
    for _ in range(count):
        yield make_story(language, rng, held_out=held_out)


def make_story(language: str, rng: random.Random, *, held_out: bool) -> Story:
    """Make one story with the next draws of `rng`."""
    lexicon = lexicons()[language]
    entities = cast_of(lexicon, rng)
    while is_held_out(language, entities) != held_out:
        entities = cast_of(lexicon, rng)
    plot = lexicon["plots"][rng.choice(sorted(lexicon["plots"]))]
    refrain = rng.choice(plot["refrains"])
    sentences = [rng.choice(lexicon["openings"]), *plot["sentences"], rng.choice(lexicon["closings"])]
    template = re.sub(r"\s*\n\s*", "\n", " ".join(sentences)).strip()
    template = CHOICE.sub(lambda match: rng.choice(match[1].split("|")), template).replace("{r}", refrain)
    words = {
        "n": rng.choice(lexicon["numbers"].split()),
        "day": str(rng.randint(2, 28)),
        "month": rng.choice(lexicon["months"].split()),
    }
    text, spans = render(language, template, entities, words)
    return Story(language, text, spans, render(language, refrain, entities, words)[0])


def cast_of(lexicon: Lexicon, rng: random.Random) -> dict[str, Entity]:
    """Draw the people, places, objects and the animal of a story, by their letter."""
    people = [(word, gender) for gender, words in lexicon["people"].items() for word in words.split()]
    entities = {key: Entity(*person, "person") for key, person in zip("abc", rng.sample(people, 3), strict=True)}
    for key, place in zip("pqs", rng.sample(lexicon["places"], 3), strict=True):
        gender, word = place.split(" ")
        entities[key] = Entity(word, gender, "place")
    adjectives = rng.sample(lexicon["adjectives"], 3)
    for key, thing, adjective in zip("oxy", rng.sample(lexicon["objects"], 3), adjectives, strict=True):
        gender, word = thing.split(" ")
        entities[key] = Entity(word, gender, "object", adjective)
    gender, word = rng.choice(lexicon["animals"]).split(" ")
    entities["z"] = Entity(word, gender, None)
    return entities


def is_held_out(language: str, entities: dict[str, Entity]) -> bool:
    """Say whether this hero, object and place are kept from training."""
    triple = " ".join([language, *(entities[key].word for key in "aop")])
    return zlib.crc32(triple.encode()) % HELD_OUT_SHARE == 0


def render(
    language: str, template: str, entities: dict[str, Entity], words: dict[str, str]
) -> tuple[str, tuple[Span, ...]]:
    """Fill the slots of a template and mark the mentions."""
    text, spans, done = "", [], 0
    for slot in SLOT.finditer(template):
        text += template[done : slot.start()].replace("~", "\u00a0")
        done = slot.end()
        keys, choices, form = slot.groups()
        if keys in words:
            text += words[keys]
        elif choices is not None:
            text += agree([entities[key] for key in keys], choices.split("/"))
        else:
            entity = entities[keys]
            before, after = surround(language, entity, form or "n")
            if language == "it" and not before and text.lower().endswith((" a ", " e ")):
                text = text[:-1] + ("d " if entity.word[0].lower() == text[-2] else " ")
            start = len(text) + len(before)
            text += before + entity.word + after
            if entity.kind is not None:
                spans.append(Span(start, start + len(entity.word), entity.kind))
    return text + template[done:].replace("~", "\u00a0"), tuple(spans)


def agree(entities: list[Entity], choices: list[str]) -> str:
    """Choose the masculine, feminine or (German) neuter word; a group with one masculine is masculine."""
    genders = {entity.gender for entity in entities}
    if genders == {"n"}:
        return choices[-1]
    return choices[1] if genders == {"f"} else choices[0]


def surround(language: str, entity: Entity, form: str) -> tuple[str, str]:
    """Return what stands before and after the noun: determiner and adjective, in the language's order."""
    name = form.rstrip("+").lower()
    if entity.kind == "person":  # the only inflected names are French ones after "de"
        return {"n": "", "of": f"d{APOSTROPHE}" if entity.word[0] in VOWELS else "de "}[name], ""
    before, after = "", ""
    if form.endswith("+"):
        if language == "en":
            before = entity.adjective + " "
        elif language == "de":
            before = entity.adjective + lexicons()["de"]["endings"][entity.gender][name] + " "
        else:
            masculine, feminine = entity.adjective.split("/")
            after = " " + (feminine if entity.gender == "f" else masculine)
    if name != "n":
        sound = sound_class(language, entity.gender, before + entity.word)
        determiner = lexicons()[language]["determiners"][sound][name]
        before = determiner + ("" if determiner.endswith(APOSTROPHE) else " ") + before
    return (before[0].upper() + before[1:] if form[0].isupper() else before), after


def sound_class(language: str, gender: str, following: str) -> str:
    """Return the row of determiners: the gender, with `'` before a vowel, or `s` for Italian "lo"."""
    silent = VOWELS + "h" if language == "fr" else VOWELS
    if language in ("en", "fr", "it") and following[0] in silent:
        return gender + "'"
    if language == "it" and gender == "m" and re.match(r"z|gn|ps|s[^aeiou]", following):
        return "s"
    return gender
