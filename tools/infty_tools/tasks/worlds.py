"""Worlds in which people move about and hand things on, for stories of the first five bAbI kinds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

ACTORS = ("Mary", "John", "Daniel", "Sandra", "Fred", "Bill", "Jeff", "Julie")
OBJECTS = ("apple", "football", "milk")
PLACES = tuple(
    "bathroom bedroom garden hallway kitchen office attic cellar library parlour nursery pantry studio "
    "stable barn chapel porch balcony terrace courtyard workshop laundry gallery armoury bakery brewery "
    "dairy forge mill orchard vineyard greenhouse boathouse lighthouse tavern inn market school church "
    "museum theatre station harbour bridge tower castle palace prison hospital bank courthouse "
    "warehouse factory quarry mine shipyard smithy temple tomb well".split()
)
ROOMS = PLACES[:6]
"""Where people are; the other places are only on maps."""
GO = ("moved to", "went to", "journeyed to", "travelled to", "went back to")
TAKE = ("picked up", "got", "grabbed", "took")
DROP = ("dropped", "discarded", "left", "put down")
GIVE = ("gave", "handed", "passed")
OPPOSITE = {"north": "south", "south": "north", "east": "west", "west": "east"}
STEPS = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}


@dataclass(frozen=True)
class Question:
    """What can be asked of a story."""

    text: str
    answer: str
    needs: tuple[int, ...]
    """Indices of the statements that tell it."""


@dataclass
class Story:
    """Statements, and all that may be asked once they are told."""

    statements: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)

    def tell(self, text: str) -> int:
        """Append a statement; returns its index."""
        self.statements.append(text)
        return len(self.statements) - 1


@dataclass(frozen=True)
class Visit:
    """A place an object came to."""

    place: str
    needs: tuple[int, ...]
    """Statements that tell that it was there, the newest that suffice."""


class World:
    """Who is where and who has what, as far as the story tells it."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        self.story = Story()
        self.place: dict[str, tuple[str, int]] = {}
        """Where each actor is, and the statement that says so."""
        self.holder: dict[str, tuple[str, int]] = {}
        """Who has each object, and the statement that says so."""
        self.dropped: dict[str, tuple[str, tuple[int, ...]]] = {}
        """Where objects lie, and the statements that say so."""
        self.trails: dict[str, list[Visit]] = {name: [] for name in OBJECTS}
        self.gifts: list[tuple[str, str, str, int]] = []
        """Giver, object, receiver and statement."""

    def one(self, options: Iterable[str]) -> str:
        """One of them."""
        options = list(options)
        return options[int(self.random.integers(len(options)))]

    def go(self) -> None:
        """Somebody goes to another room."""
        actor = self.one(ACTORS)
        here = self.place.get(actor, ("", 0))[0]
        room = self.one(r for r in ROOMS if r != here)
        at = self.story.tell(f"{actor} {self.one(GO)} the {room}.")
        self.place[actor] = (room, at)
        for thing, (holder, taken) in self.holder.items():
            if holder == actor:
                self._arrives(thing, room, (taken, at))

    def take(self) -> None:
        """Somebody takes an object that is where they are; goes if nobody can."""
        able = [
            (actor, thing)
            for actor, (room, _) in self.place.items()
            for thing in OBJECTS
            if thing not in self.holder and self.dropped.get(thing, (room,))[0] == room
        ]
        if not able:
            self.go()
            return
        actor, thing = able[int(self.random.integers(len(able)))]
        at = self.story.tell(f"{actor} {self.one(TAKE)} the {thing} there.")
        self.holder[thing] = (actor, at)
        self.dropped.pop(thing, None)
        room, moved = self.place[actor]
        self._arrives(thing, room, (moved, at))

    def drop(self) -> None:
        """Somebody drops an object; goes if nobody has any."""
        if not self.holder:
            self.go()
            return
        thing = self.one(self.holder)
        actor, _ = self.holder.pop(thing)
        at = self.story.tell(f"{actor} {self.one(DROP)} the {thing} there.")
        room, moved = self.place[actor]
        self.dropped[thing] = (room, (moved, at))
        self._arrives(thing, room, (moved, at))

    def give(self) -> None:
        """Somebody hands an object to another; takes one if nobody has any."""
        if not self.holder:
            self.take()
            return
        thing = self.one(self.holder)
        giver, _ = self.holder[thing]
        receiver = self.one(actor for actor in ACTORS if actor != giver)
        at = self.story.tell(f"{giver} {self.one(GIVE)} the {thing} to {receiver}.")
        self.gifts.append((giver, thing, receiver, at))
        self.holder[thing] = (receiver, at)
        # Whoever is given something is where the giver is; but no sentence says so in these words.
        self.place.setdefault(receiver, self.place[giver])

    def _arrives(self, thing: str, room: str, needs: tuple[int, ...]) -> None:
        trail = self.trails[thing]
        if not trail or trail[-1].place != room:
            trail.append(Visit(room, needs))
        elif min(needs) > min(trail[-1].needs):  # told once more: the newer words suffice
            trail[-1] = Visit(room, needs)


def _simulate(random: np.random.Generator, statements: int, acts: dict[str, float]) -> World:
    """A world after as many statements, by acts of these shares."""
    world = World(random)
    names, shares = list(acts), list(acts.values())
    while len(world.story.statements) < statements:
        getattr(world, names[int(random.choice(len(names), p=shares))])()
    return world


def one_fact(random: np.random.Generator, statements: int) -> Story:
    """Where is Mary?"""
    world = _simulate(random, statements, {"go": 1.0})
    for actor, (room, at) in world.place.items():
        world.story.questions.append(Question(f"Where is {actor}?", room, (at,)))
    return world.story


def two_facts(random: np.random.Generator, statements: int) -> Story:
    """Where is the milk?"""
    world = _simulate(random, statements, {"go": 0.5, "take": 0.3, "drop": 0.2})
    for thing in OBJECTS:
        if thing in world.holder:
            holder, taken = world.holder[thing]
            room, moved = world.place[holder]
            found = Question(f"Where is the {thing}?", room, (taken, moved))
        elif thing in world.dropped:
            room, needs = world.dropped[thing]
            found = Question(f"Where is the {thing}?", room, needs)
        else:
            continue
        world.story.questions.append(found)
    return world.story


def three_facts(random: np.random.Generator, statements: int) -> Story:
    """Where was the milk before the kitchen? (Before the last time it came there.)"""
    world = _simulate(random, statements, {"go": 0.6, "take": 0.3, "drop": 0.1})
    for thing, trail in world.trails.items():
        last = {visit.place: i for i, visit in enumerate(trail)}
        for place, i in last.items():
            if i > 0:
                before = trail[i - 1]
                needs = (*before.needs, *trail[i].needs)
                text = f"Where was the {thing} before the {place}?"
                world.story.questions.append(Question(text, before.place, needs))
    return world.story


def two_arguments(random: np.random.Generator, statements: int) -> Story:
    """What is north of the kitchen? What is the kitchen north of?"""
    names = random.permutation(PLACES)[: statements + 1].tolist()
    cells = {(0, 0): names[0]}
    story = Story()
    for name in names[1:]:
        while True:  # a free cell beside a place on the map
            x, y = list(cells)[int(random.integers(len(cells)))]
            way = list(STEPS)[int(random.integers(4))]
            cell = (x + STEPS[way][0], y + STEPS[way][1])
            if cell not in cells:
                break
        near = cells[x, y]
        cells[cell] = name
        one, way, other = (
            (name, way, near) if random.random() < 0.5 else (near, OPPOSITE[way], name)
        )
        at = story.tell(f"The {one} is {way} of the {other}.")
        story.questions.append(Question(f"What is {way} of the {other}?", one, (at,)))
        story.questions.append(Question(f"What is the {one} {way} of?", other, (at,)))
    return story


def three_arguments(random: np.random.Generator, statements: int) -> Story:
    """What did Fred give to Jeff? Who gave the milk to Jeff? Whom did Fred give the milk to?"""
    world = _simulate(random, statements, {"go": 0.3, "take": 0.2, "give": 0.5})
    asked: dict[str, Question] = {}
    for giver, thing, receiver, at in world.gifts:  # a later gift is the one that is meant
        for text, answer in (
            (f"What did {giver} give to {receiver}?", thing),
            (f"Who gave the {thing} to {receiver}?", giver),
            (f"Who did {giver} give the {thing} to?", receiver),
            (f"Who received the {thing}?", receiver),
            (f"Who gave the {thing}?", giver),
        ):
            asked[text] = Question(text, answer, (at,))
    world.story.questions = list(asked.values())
    return world.story


KINDS: dict[str, Callable[[np.random.Generator, int], Story]] = {
    "one-fact": one_fact,
    "two-facts": two_facts,
    "three-facts": three_facts,
    "two-arguments": two_arguments,
    "three-arguments": three_arguments,
}


def words() -> list[str]:
    """Every word and mark that a story or a question has."""
    phrases = (*ACTORS, *OBJECTS, *PLACES, *GO, *TAKE, *DROP, *GIVE, *OPPOSITE)
    more = (
        "The the there is of to . ? : Question Answer Where was before What did give Who received"
    )
    return list(dict.fromkeys(re.findall(r"\w+|[^\w\s]", " ".join((*phrases, more)))))
