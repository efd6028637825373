"""What the right answers are, worked out from a document's tokens or text alone."""

from __future__ import annotations

import re

NUMBER = r"(\d+)"
PASSKEY = re.compile(rf"The pass key is {NUMBER}\. Remember it")
NEEDLE = re.compile(rf"One of the special magic numbers for (\w+ \w+) is: {NUMBER}\.")
ASKED = re.compile(r"special magic numbers? for ([\w ,]+?) mentioned")

PEOPLE = "Mary|John|Daniel|Sandra|Fred|Bill|Jeff|Julie"
EVENT = re.compile(
    rf"({PEOPLE}) (?:(?:moved|went|journeyed|travelled|went back) to the (\w+)"
    r"|(?:picked up|got|grabbed|took) the (\w+) there"
    r"|(?:dropped|discarded|left|put down) the (\w+) there"
    r"|(?:gave|handed|passed) the (\w+) to (\w+))\."
)
RELATION = re.compile(r"The (\w+) is (north|south|east|west) of the (\w+)\.")


def facts(ids: list[int], keys: int, values: int) -> dict[int, tuple[int, int, int]]:
    """Of each question's answer, by its place: its token, where it was first told, and last."""
    known: dict[int, tuple[int, int, int]] = {}
    answers = {}
    for place in range(1, len(ids)):
        key, value = ids[place - 1], ids[place]
        if key >= keys:
            continue
        assert keys <= value < keys + values
        if key in known:
            told, first, last = known[key]
            answers[place] = (told, first, last)
            known[key] = (told, first, place)
        else:
            known[key] = (value, place, place)
    return answers


def copied(ids: list[int], start: int, cue: int, length: int) -> list[int]:
    """What comes after the first occurrence of the `cue` tokens before `start`."""
    wanted = ids[start - cue : start]
    first = next(i for i in range(len(ids)) if ids[i : i + cue] == wanted)
    return ids[first + cue : first + cue + length]


def needles(text: str) -> list[str]:
    """The numbers that a needle document asks for, in the order of the answer."""
    haystack, question = text.rsplit("\nWhat", 1)
    if "pass key" in question:
        return PASSKEY.findall(haystack)
    asked = re.split(r", and |, ", ASKED.search(question)[1])
    told = NEEDLE.findall(haystack)
    return [number for name in asked for key, number in told if key == name]


def story(text: str) -> list[str | None]:
    """The answers to all questions of a story; None: it does not say."""
    text = re.sub(r"\s+([.?:])", r"\1", text)
    told, *asked = re.split(r"\s*Question:\s*", text)
    return [_answer(told, question.split("?")[0] + "?") for question in asked]


def _answer(told: str, question: str) -> str | None:
    events = EVENT.findall(told)
    for pattern, solve in (
        (rf"Where is ({PEOPLE})\?", _whereabouts),
        (r"Where is the (\w+)\?", lambda events, thing: (_trail(events, thing) or [None])[-1]),
        (r"Where was the (\w+) before the (\w+)\?", _before),
        (r"What did (\w+) give to (\w+)\?", lambda e, a, b: _gift(e, 1, giver=a, receiver=b)),
        (r"Who gave the (\w+) to (\w+)\?", lambda e, x, b: _gift(e, 0, thing=x, receiver=b)),
        (r"Who did (\w+) give the (\w+) to\?", lambda e, a, x: _gift(e, 2, giver=a, thing=x)),
        (r"Who received the (\w+)\?", lambda e, x: _gift(e, 2, thing=x)),
        (r"Who gave the (\w+)\?", lambda e, x: _gift(e, 0, thing=x)),
    ):
        match = re.fullmatch(pattern, question)
        if match:
            return solve(events, *match.groups())
    relations = RELATION.findall(told)
    match = re.fullmatch(r"What is (north|south|east|west) of the (\w+)\?", question)
    if match:
        return _only([a for a, way, b in relations if (way, b) == match.groups()])
    match = re.fullmatch(r"What is the (\w+) (north|south|east|west) of\?", question)
    return _only([b for a, way, b in relations if (a, way) == match.groups()])


def _only(found: list[str]) -> str | None:
    assert len(found) <= 1
    return found[0] if found else None


def _whereabouts(events: list[tuple], person: str) -> str | None:
    rooms = [room for who, room, *_ in events if who == person and room]
    return rooms[-1] if rooms else None


def _trail(events: list[tuple], thing: str) -> list[str]:
    """The places of a thing that the story tells, one after another."""
    rooms: dict[str, str] = {}
    carrier = None
    trail: list[str] = []
    for who, room, taken, dropped, *_ in events:
        if room:
            rooms[who] = room
        if taken == thing:
            carrier = who
        here = rooms.get(who) if carrier == who or dropped == thing else None
        if here is not None and trail[-1:] != [here]:
            trail.append(here)
        if dropped == thing:
            carrier = None
    return trail


def _before(events: list[tuple], thing: str, place: str) -> str | None:
    trail = _trail(events, thing)
    if place not in trail:
        return None
    last = len(trail) - 1 - trail[::-1].index(place)
    return trail[last - 1] if last else None


def _gift(events: list[tuple], part: int, **wanted: str) -> str | None:
    gifts = [(giver, thing, receiver) for giver, _, _, _, thing, receiver in events if thing]
    names = ("giver", "thing", "receiver")
    fitting = [g for g in gifts if all(g[names.index(k)] == v for k, v in wanted.items())]
    return fitting[-1][part] if fitting else None
