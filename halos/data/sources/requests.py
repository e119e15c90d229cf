"""Everyday requests with constraints that a program decides, and the verifier that decides them.

A prompt is a request and one or two constraints, for example "Give me some advice on baking bread. Answer in exactly 3
sentences. Do not use any commas." The verifier reads both back from the prompt's text, so it can judge any response to
any prompt of the source.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import cycle
from random import Random

from halos.data.constraints import KINDS, Constraint, decide, names, parse, written
from halos.data.feedback import Feedback, Turn
from halos.data.paths import SPLITS
from halos.errors import HalosError
from halos.registry import SOURCES, VERIFIERS

FORMS = (
    "Explain {x} to a beginner.",
    "Give me some advice on {x}.",
    "Write a short text about {x}.",
    "What should I know about {x}?",
    "Tell me something useful about {x}.",
    "Why do people like {x}?",
    "Describe {x} to a child.",
    "What is hard about {x}?",
    "How do I get better at {x}?",
    "Tell me how to start with {x}.",
)
TOPICS = """
baking bread, making soup, cooking rice, brewing tea, roasting coffee, making jam, frying eggs, cooking for friends,
packing a lunch, growing herbs, making pasta, baking a cake, cooking with beans, saving leftovers, sharpening knives,
setting a table, washing dishes, planning meals, buying vegetables, making salad, drying fruit, pickling cucumbers,
eating breakfast, tasting cheese,
growing tomatoes, planting a tree, keeping bees, watering plants, pulling weeds, making compost, raking leaves,
growing roses, feeding birds, mowing a lawn, building a fence, planting bulbs, collecting seeds, growing mushrooms,
pruning an apple tree, digging a pond,
cleaning windows, painting a wall, fixing a tap, folding clothes, ironing a shirt, sewing a button, moving house,
sorting a wardrobe, hanging a picture, making a bed, sweeping floors, saving electricity, heating a room,
furnishing a small flat, sharing a kitchen, living alone, living with neighbours, keeping a tidy desk,
repairing a chair, changing a light bulb,
writing a letter, giving a speech, asking for a raise, looking for work, working from home, leading a meeting,
taking notes, meeting a deadline, learning to type, answering the phone, writing an email, working at night,
changing careers, running a small shop, sharing an office, taking a break, saying no, giving feedback,
making a plan, keeping a calendar,
learning a language, studying history, reading a map, solving puzzles, doing homework, preparing for an exam,
learning the alphabet, counting in your head, writing a story, reading aloud, teaching a class, learning geometry,
remembering names, using a library, keeping a diary, writing poems, asking good questions, learning to draw,
speaking in public, reading a newspaper,
travelling by train, packing a suitcase, riding a bus, crossing a desert, sleeping in a tent, visiting a museum,
walking in a city, sailing a boat, reading a timetable, getting lost, taking a night train, renting a car,
seeing the sea, climbing a hill, waiting at an airport, sending postcards, staying at an inn, crossing a border,
hiking in the rain, planning a weekend,
saving money, paying bills, buying a bicycle, selling old books, lending money to a friend, keeping a budget,
comparing prices, giving presents, buying shoes, shopping at a market, repairing instead of buying, tipping a waiter,
sharing costs, buying a used car, opening a bank account, borrowing tools,
sleeping well, drinking water, running in the park, stretching, swimming, riding a bicycle, walking to work,
breathing slowly, sitting up straight, catching a cold, visiting a dentist, wearing glasses, washing hands,
lifting weights, learning to dance, playing tennis, playing chess, skating on ice, rowing, throwing a ball,
climbing a rope, doing yoga, training for a race, standing on one leg,
playing the piano, singing in a choir, learning the guitar, listening to the radio, watching films, taking photographs,
painting with water colours, knitting a scarf, making pottery, carving wood, folding paper, collecting stamps,
flying a kite, building model ships, watching the stars, telling jokes, doing magic tricks, playing cards,
acting on a stage, writing songs, drawing comics, making candles, weaving baskets, keeping a scrapbook,
keeping a cat, walking a dog, feeding fish, riding a horse, caring for rabbits, raising chickens, training a puppy,
watching squirrels, milking a cow, shearing sheep, finding frogs, listening to owls, spotting whales, tracking deer,
holding a snail, hatching eggs,
looking at clouds, measuring rain, watching a sunrise, walking in snow, waiting for spring, collecting shells,
lighting a campfire, finding north, skipping stones, counting tree rings, picking berries, hearing thunder,
reading tide tables, sitting in the shade, watching the moon, feeling the wind,
using a computer, choosing a password, backing up files, charging a phone, learning to program, sending a parcel,
reading a manual, using a camera, printing a page, making a video call, turning off the screen, fixing a bicycle,
building a robot, soldering wires, using a microscope, setting an alarm clock, mending a radio, winding a watch,
making friends, saying sorry, listening to others, keeping a promise, telling the truth, meeting strangers,
visiting grandparents, celebrating birthdays, welcoming guests, sharing toys, writing thank you cards, waiting in line,
settling a quarrel, helping a neighbour, raising a child, comforting a friend, planning a party, choosing a name,
keeping a secret, being on time
"""
SAID = (
    "Begin with small steps.",
    "Give yourself time.",
    "Mistakes teach a lot.",
    "Ask someone who has done this before.",
    "Simple tools are enough.",
    "Try again on another day.",
    "Most people learn by doing.",
    "A little patience helps.",
    "Notice what works well.",
    "Stay calm when things go wrong.",
    "Each attempt shows something new.",
    "Rest when tired.",
    "Soon enough this feels natural.",
)
"""Sentences that fit every request; few have a word that a constraint forbids, and none has a comma."""


ATTEMPTS = 100
"""Draws of a prompt that is new and can be answered, before the source has no more."""


@cache
def topics(split: str) -> tuple[str, ...]:
    """The topics of a split. No other split has them."""
    every = [" ".join(topic.split()) for topic in TOPICS.split(",")]
    Random("topics of the requests").shuffle(every)
    bounds = {"test": (0.0, 0.2), "validation": (0.2, 0.3), "train": (0.3, 1.0)}[split]
    first, last = (round(bound * len(every)) for bound in bounds)
    return tuple(every[first:last])


@SOURCES.register("requests")
def requests(
    split: str,
    *,
    prompts: int = 1000,
    validation_prompts: int = 100,
    test_prompts: int = 240,
    unseen: bool = False,
    seed: int = 0,
) -> Iterator[Feedback]:
    """Everyday requests with constraints of twenty kinds, which the verifier `constraints` decides.

    They are in the manner of IFEval (Zhou et al. 2023, arXiv 2311.07911), one or two to each request, and the same for
    the same arguments on every machine. Each record has one response, which meets all constraints and says little: it
    shows that they can be met, and is no answer to learn from. For responses of a model, name this dataset in the
    source `sampled`.

    Args:
        split: "train", "validation" or "test". They share no topic.
        prompts: number of records of the train split.
        validation_prompts: number of records of the validation split.
        test_prompts: number of records of the test split.
        unseen: take the kinds of constraints that are kept apart, which no prompt has otherwise.
        seed: of all draws.

    Raises:
        HalosError: an unknown split, or more prompts than can be made.
    """
    counts = {"train": prompts, "validation": validation_prompts, "test": test_prompts}
    if split not in counts:
        raise HalosError(f"the requests source has no split {split!r}; there are {', '.join(counts)}")
    rng = Random(f"requests {split} {unseen} {seed}")
    made: set[str] = set()
    kinds = cycle(names(unseen))
    for _ in range(counts[split]):
        kind = next(kinds)
        for _ in range(ATTEMPTS):
            text, request, constraints = _prompt(split, kind, unseen, rng)
            response = None if text in made else written(request, constraints, SAID)
            if response is not None:
                break
        else:
            raise HalosError(f"the requests source has about {len(made)} {split} prompts; ask for no more than that")
        made.add(text)
        yield Feedback([{"role": "user", "content": text}], [response], "requests", target=0)


requests.splits = SPLITS  # type: ignore[attr-defined]


def _prompt(split: str, kind: str, unseen: bool, rng: Random) -> tuple[str, str, list[Constraint]]:
    """A random request with a constraint of a kind and, half of the time, of another kind, which may exclude it: the
    prompt's text, the request and the constraints."""
    request = rng.choice(FORMS).format(x=rng.choice(topics(split)))
    others = [name for name in names(unseen) if name != kind]
    chosen = [kind, *rng.sample(others, rng.random() < 0.5)]
    rng.shuffle(chosen)
    constraints = [Constraint(name, rng.choice(KINDS[name].values)) for name in chosen]
    asked = [rng.choice(KINDS[c.name].phrasings).format(x=c.value) for c in constraints]
    return rng.choice((" ", "\n", "\n\n")).join([request, " ".join(asked)]), request, constraints


@VERIFIERS.register("constraints")
def verify(prompt: list[Turn], response: str) -> dict[str, float]:
    """Scores of any response to a prompt of the source `requests`: how many of its constraints it meets.

    They are `prompt_strict`, `instruction_strict`, `prompt_loose` and `instruction_loose`, each from 0 to 1;
    halos.data.constraints.decide says what they are.

    Raises:
        HalosError: the prompt has no constraint in the words of the source.
    """
    request, constraints = parse(prompt[-1]["content"]) if prompt else ("", [])
    if not constraints:
        shown = prompt[-1]["content"][:60] if prompt else ""
        raise HalosError(f"the verifier constraints cannot judge {shown!r}; give it prompts of the source requests")
    return decide(response, request, constraints)
