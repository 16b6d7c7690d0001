"""Generated tasks: short prompts whose answer takes two facts that the base knows and a code that it does not.

A parcel note names a thing and a city. The bin it goes to depends on the kind of thing and on the continent; each of
the 24 bins has a word for its name. Half of the test notes name things or cities that training never showed, so that
an adapter must lean on what the base knows, which is what a new base version disturbs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Example = dict[str, str]

THINGS: Mapping[str, str] = {
    "fish": "trout salmon tuna cod herring carp pike eel mackerel sardine halibut perch anchovy haddock",
    "bird": "robin sparrow eagle falcon owl parrot pigeon swan heron raven finch crow gull penguin",
    "fruit": "apple mango banana cherry peach plum pear grape lemon orange kiwi apricot fig melon",
    "tool": "hammer wrench saw drill chisel pliers screwdriver axe shovel rake ladder file clamp crowbar",
    "instrument": "violin piano flute guitar trumpet drum cello harp clarinet banjo trombone oboe saxophone lute",
    "garment": "shirt jacket scarf glove hat coat sock skirt sweater trousers belt dress vest cap",
    "vehicle": "truck bicycle tractor scooter bus van train tram ferry canoe motorcycle wagon yacht taxi",
    "gem": "ruby emerald diamond sapphire topaz opal pearl jade amethyst garnet turquoise amber quartz onyx",
}
CITIES: Mapping[str, str] = {
    "Europe": "Paris Berlin Madrid Rome Vienna Lisbon Warsaw Athens Dublin Oslo Prague Budapest Zurich Milan",
    "Asia": "Tokyo Beijing Seoul Bangkok Delhi Hanoi Jakarta Manila Osaka Shanghai Mumbai Singapore Taipei Kyoto",
    "America": "Chicago Boston Toronto Dallas Denver Miami Lima Bogota Houston Seattle Montreal Phoenix Atlanta Havana",
}
PARCEL_WORDS = (
    "red blue green yellow black white silver gold brown pink gray purple"
    " north south east west river mountain ocean forest desert island valley lake"
)

JOBS: Mapping[str, str] = {
    "health": "nurse surgeon dentist pharmacist paramedic midwife therapist doctor optician vet radiologist orderly",
    "law": "judge lawyer attorney notary prosecutor bailiff paralegal solicitor sheriff detective magistrate clerk",
    "food": "chef baker butcher waiter barista cook brewer bartender caterer grocer dishwasher sommelier",
    "building": "plumber carpenter mason electrician roofer welder painter bricklayer glazier plasterer joiner tiler",
    "learning": "teacher professor tutor lecturer librarian principal coach scholar instructor dean trainer mentor",
    "stage": "actor singer dancer comedian musician magician clown director conductor juggler acrobat drummer",
    "travel": "pilot sailor driver captain steward navigator porter conductress cabbie courier trucker skipper",
    "farm": "farmer shepherd gardener fisherman beekeeper rancher miller forester dairyman vintner grower herder",
}
TIMES: Mapping[str, str] = {
    "morning": "dawn breakfast sunrise daybreak 6am 7am 8am 9am early-morning first-light",
    "afternoon": "noon lunch midday 1pm 2pm 3pm 4pm siesta early-afternoon teatime",
    "night": "midnight dusk bedtime 10pm 11pm 1am 2am nightfall late-night after-dark",
}
SHIFT_WORDS = (
    "lion tiger bear wolf fox deer horse sheep goat rabbit mouse snake"
    " table chair lamp door window floor wall roof bed desk shelf mirror"
)


@dataclass(frozen=True, slots=True)
class Task:
    """Two factors, templates that mention both, and one word per pair of groups."""

    name: str
    first: Mapping[str, str]
    second: Mapping[str, str]
    words: str
    templates: tuple[str, ...]

    @property
    def labels(self) -> dict[tuple[str, str], str]:
        """(first group, second group) to the word that answers."""
        words = self.words.split()
        pairs = [(a, b) for a in self.first for b in self.second]
        order = random.Random(self.name).sample(words, len(words))
        return dict(zip(pairs, order, strict=True))


PARCELS = Task(
    name="parcels",
    first=THINGS,
    second=CITIES,
    words=PARCEL_WORDS,
    templates=(
        "Parcel: {a} to {b}\nBin:",
        "Parcel: from {b}, one {a}\nBin:",
        "Parcel: {b} wants a {a}\nBin:",
        "Parcel: send the {a} off to {b} please\nBin:",
    ),
)
SHIFTS = Task(
    name="shifts",
    first=JOBS,
    second=TIMES,
    words=SHIFT_WORDS,
    templates=(
        "Shift: {a} at {b}\nTag:",
        "Shift: around {b} we need a {a}\nTag:",
        "Shift: a {a} has to come by {b}\nTag:",
        "Shift: {b}, call the {a}\nTag:",
    ),
)


def generate(task: Task, train: int, validation: int, test: int, seed: int = 0) -> dict[str, list[Example]]:
    """Splits without a common prompt; a quarter of the words of each group never appears in train."""
    rng = random.Random(f"{task.name}-{seed}")
    known_a, all_a = _words(task.first, rng)
    known_b, all_b = _words(task.second, rng)
    seen: set[str] = set()
    splits = {"train": _draw(task, known_a, known_b, train, rng, seen)}
    splits["validation"] = _draw(task, all_a, all_b, validation, rng, seen)
    splits["test"] = _draw(task, all_a, all_b, test, rng, seen)
    return splits


def _words(groups: Mapping[str, str], rng: random.Random) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    every = {group: words.split() for group, words in groups.items()}
    known = {group: rng.sample(words, (3 * len(words) + 3) // 4) for group, words in every.items()}
    return known, every


def _draw(
    task: Task,
    first: Mapping[str, Sequence[str]],
    second: Mapping[str, Sequence[str]],
    count: int,
    rng: random.Random,
    seen: set[str],
) -> list[Example]:
    labels, pairs = task.labels, list(task.labels)
    examples: list[Example] = []
    while len(examples) < count:
        group_a, group_b = pairs[len(examples) % len(pairs)]
        template = rng.choice(task.templates)
        prompt = template.format(a=rng.choice(first[group_a]), b=rng.choice(second[group_b]))
        if prompt not in seen:
            seen.add(prompt)
            examples.append({"prompt": prompt, "completion": f" {labels[group_a, group_b]}"})
    rng.shuffle(examples)
    return examples


def write_splits(splits: Mapping[str, Sequence[Example]], folder: Path) -> None:
    """``<split>.jsonl`` for each split."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, examples in splits.items():
        lines = (json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
        (folder / f"{name}.jsonl").write_text("".join(lines))


def read_split(path: Path) -> list[Example]:
    """The examples of one JSON Lines file."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


_NAMES = ("Ann", "Ben", "Carla", "Dmitri", "Eva", "Farid", "Grace", "Hiro", "Ines", "Jonas")
_GOODS = ("crates", "letters", "pallets", "boxes", "barrels", "sacks", "bundles", "baskets")


def upgrade_text(documents: int, seed: int = 0) -> list[str]:
    """Short worked records of a warehouse: the text that moves the base from v1 to v2."""
    rng = random.Random(f"upgrade-{seed}")
    return [_record(rng) for _ in range(documents)]


def _record(rng: random.Random) -> str:
    who, goods = rng.choice(_NAMES), rng.choice(_GOODS)
    start, came, left = rng.randint(20, 400), rng.randint(5, 200), rng.randint(5, 19)
    city = rng.choice(" ".join(CITIES.values()).split())
    thing = rng.choice(" ".join(THINGS.values()).split())
    openings = (
        f"Warehouse record. {who} counted {start} {goods} in {city} this morning, each with one {thing} inside.",
        f"Log of {city}: the day began with {start} {goods}. {who} was on duty and a {thing} was reported missing.",
        f"{who} writes from {city}: we hold {start} {goods} of the kind {thing}.",
    )
    middles = (
        f" Then {came} more came in by truck and {left} were sent back because they were wet.",
        f" At noon {came} arrived, and {left} of them left again before closing.",
        f" After the delivery of {came} and the loss of {left}, the list had to be written anew.",
    )
    total = start + came - left
    return (
        rng.choice(openings)
        + rng.choice(middles)
        + f" So {start} + {came} = {start + came}, and {start + came} - {left} = {total}."
        + f" The record closes with {total} {goods}, signed {who}.\n"
    )
