"""The offline toy dataset: short questions about plain facts, answers of different quality, and a verifier.

A question is one (family, phrasing, opening, subject), for example ("capital", "What is the capital of {x}?",
"Hello! ", "France"). Every family is a row of FAMILIES; questions, answers and judgement all follow from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from random import Random

from halos.data.feedback import Feedback, Turn
from halos.data.paths import SPLITS
from halos.errors import HalosError
from halos.registry import SOURCES, VERIFIERS

CRITERIA = ("correct", "concise", "polite")
Quality = tuple[bool, bool, bool]
"""Which of the criteria a response meets."""
OPENINGS = ("", "Hello! ", "Please help me. ", "Good morning. ", "Hi there. ", "I have a question. ")
SYSTEM = ("You are a helpful assistant.", "Answer in one short sentence.", "Be polite and brief.")
GREETINGS = {"good morning": "Good morning!", "hello": "Hello!", "hi": "Hi!"}
"""What a question can begin with, and the greeting that returns it."""
COURTESY_BEFORE = ("Happy to help.", "Good question!")
COURTESY_AFTER = ("I hope that helps.", "Thank you for asking.")
RUDE_BEFORE = ("What a silly question.",)
RUDE_AFTER = ("Leave me alone now.",)
RAMBLE = (
    "There is so much more to say about this.",
    "People have talked about it for many years.",
    "My friends and I often speak about it.",
)
COURTEOUS = (
    r"happy to help|glad to help|good question|great question|of course|sure|certainly|my pleasure|let me know|"
    r"hope (?:that|this|it) helps|thanks|thank you|(?:you are|you're) welcome|have a (?:nice|good|great) day"
)
RUDE = r"silly|stupid|dumb|idiot|everyone knows|wast(?:e|ing)|leave me alone|shut up|obviously|go away|boring"
CONCISE_WORDS = 11
"""An answer with more words than this is not concise."""
LONG_WORDS = 150
"""An over-long row has more words than this in its earlier turns, or in one response."""


def _table(text: str) -> dict[str, str]:
    """`a b, c d e` -> {"a": "b", "c d": "e"}."""
    return dict(entry.strip().rsplit(" ", 1) for entry in text.split(","))


def _sentence(text: str) -> str:
    """The text with `a` or `an` to fit the next word, and a capital first."""
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return text[:1].upper() + text[1:]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text.lower())


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
WORDS = ("apple", "bird", "door", "garden", "house", "river", "stone", "tree")
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Henry", "Julia", "Leo")


@dataclass(frozen=True)
class Family:
    """A kind of question.

    Attributes:
        facts: subject -> the right answer; the answers together are the family's candidates.
        statement: the sentence that answers; {x} is the subject, {y} the answer.
        asks: phrasings of the question; {x} is the subject.
        told: (user, assistant) turns of an earlier exchange that names the subject; then `asks` lack {x}.
    """

    facts: dict[str, str]
    statement: str
    asks: tuple[str, ...]
    told: tuple[tuple[str, str], ...] = ()

    @cached_property
    def candidates(self) -> list[str]:
        return sorted(set(self.facts.values()))

    @cached_property
    def patterns(self) -> tuple[list[re.Pattern[str]], list[re.Pattern[str]]]:
        """Patterns of the question, and of the earlier turn that it refers to."""
        return [_pattern(ask) for ask in self.asks], [_pattern(user) for user, _ in self.told]

    def subject(self, prompt: list[Turn]) -> str | None:
        """The subject that the last turn of a prompt asks about; None when it is no question of this family."""
        asks, told = self.patterns
        users = [turn["content"].strip() for turn in prompt if turn["role"] == "user"]
        patterns, turns = (told, users[:-1]) if self.told else (asks, users[-1:])
        if not any(pattern.fullmatch(users[-1]) for pattern in asks):
            return None
        subjects = (match[1] for turn in reversed(turns) for p in patterns if (match := p.fullmatch(turn)))
        return next((x for x in subjects if x in self.facts), None)

    def others(self, x: str) -> list[str]:
        """The wrong answers about subject `x`. A candidate that only echoes a word of the question is not one."""
        right, echo = self.facts[x], set(_words(x))
        return [y for y in self.candidates if y != right and (y.lower() not in echo or right.lower() in echo)]


def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template).replace(r"a\ \{x\}", r"an?\ \{x\}").replace(r"\{x\}", "(.+)")
    openings = "|".join(map(re.escape, OPENINGS))
    return re.compile(f"(?:{openings}){text}", re.IGNORECASE)


def _asks(topic: str, *more: str) -> tuple[str, ...]:
    """The phrasings that fit any topic, and `more` that fit this one."""
    shared = ("What is {}?", "Tell me {}.", "Name {}.", "Do you know {}?", "I need {}.")
    return (*(ask.format(topic) for ask in shared), *more)


FAMILIES: dict[str, Family] = {
    "opposite": Family(
        _table(
            "hot cold, cold hot, big small, small big, fast slow, slow fast, full empty, empty full, wet dry, dry wet"
        ),
        "The opposite is {y}.",
        _asks("the opposite of {x}", "Which word is the opposite of {x}?"),
    ),
    "colour": Family(
        _table(
            "grass green, snow white, coal black, blood red, chocolate brown, a banana yellow, a flamingo pink, "
            "a clear sky blue"
        ),
        "The colour is {y}.",
        _asks("the colour of {x}", "What colour is {x}?"),
    ),
    "sound": Family(
        _table("cow moo, dog bark, cat meow, duck quack, lion roar, snake hiss, bee buzz, owl hoot"),
        "The sound is a {y}.",
        _asks("the sound of a {x}", "What sound does a {x} make?"),
    ),
    "young": Family(
        _table("cow calf, cat kitten, dog puppy, sheep lamb, horse foal, bear cub, frog tadpole, hen chick"),
        "It is called a {y}.",
        _asks("the word for a young {x}", "What do you call a young {x}?"),
    ),
    "plural": Family(
        _table("mouse mice, child children, foot feet, tooth teeth, man men, leaf leaves, box boxes, book books"),
        "The plural is {y}.",
        _asks("the plural of {x}", "Which word is the plural of {x}?"),
    ),
    "capital": Family(
        _table(
            "France Paris, Italy Rome, Spain Madrid, Japan Tokyo, Egypt Cairo, Greece Athens, Norway Oslo, Peru Lima"
        ),
        "The capital is {y}.",
        _asks("the capital of {x}", "Which city is the capital of {x}?"),
    ),
    "sum": Family(
        {f"{NUMBERS[i]} plus {NUMBERS[j]}": NUMBERS[i + j] for i, j in product(range(1, 4), repeat=2)},
        "The sum is {y}.",
        ("What is {x}?", "Tell me what {x} is.", "How much is {x}?", "Work out {x}.", "Do you know what {x} is?"),
    ),
    "repeat": Family(
        {x: x for x in WORDS},
        "The word is {y}.",
        (
            "Repeat the word {x}.",
            "Say the word {x}.",
            "Repeat this word: {x}.",
            "Can you say the word {x}?",
            "I want to hear the word {x}.",
        ),
    ),
    "name": Family(
        {x: x for x in NAMES},
        "Your name is {y}.",
        ("What is my name?", "Tell me my name.", "Do you remember my name?", "Do you know my name?"),
        (("My name is {x}.", "Hello, {x}."), ("Please call me {x}.", "Hello, {x}."), ("I am {x}.", "Hello, {x}.")),
    ),
}


@dataclass(frozen=True)
class Question:
    """A question as turns, with its family and subject."""

    family: str
    subject: str
    prompt: list[Turn]


def questions(name: str, split: str) -> list[Question]:
    """All questions of a family that belong to a split.

    For each subject another seventh of the wordings is held out for the test split, and another for validation. So the
    train split has the subject and the wording of every held-out question, but never together.
    """
    family = FAMILIES[name]
    wordings = list(product(family.told or (None,), family.asks, OPENINGS))
    share = len(wordings) // 7
    held_out = {0: "test", 1: "validation"}
    return [
        _question(name, x, wording)
        for i, x in enumerate(family.facts)
        for j, wording in enumerate(wordings)
        if held_out.get((j - 7 * i) % len(wordings) // share, "train") == split
    ]


Wording = tuple[tuple[str, str] | None, str, str]
"""The exchange that tells the subject, if there is one, the phrasing and the opening."""


def _question(name: str, x: str, wording: Wording) -> Question:
    told, ask, opening = wording
    texts = [*(told or ()), opening + ask]
    return Question(
        name, x, [_turn(("user", "assistant")[k % 2], _sentence(t.format(x=x))) for k, t in enumerate(texts)]
    )


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def answer(question: Question, quality: Quality, rng: Random, long: bool = False) -> str:
    """A response of a quality (correct, concise, polite); a `long` one has more than LONG_WORDS words."""
    correct, concise, polite = quality
    family = FAMILIES[question.family]
    x = question.subject
    others = family.others(x)
    y = family.facts[x] if correct else rng.choice(others)
    parts = [_sentence(family.statement.format(x=x, y=y))]
    if not concise:
        parts.append(rng.choice(RAMBLE))
    while long and len(_words(" ".join(parts))) <= LONG_WORDS:
        aside = FAMILIES[rng.choice([name for name in FAMILIES if name != question.family and name != "name"])]
        about = rng.choice(list(aside.facts))
        text = _sentence(aside.statement.format(x=about, y=aside.facts[about]))
        if not set(_words(text)) & {c.lower() for c in family.candidates}:
            parts.append(text)
    fault = None if polite else rng.choice(("rude", "curt", "greeting"))
    if fault != "curt":
        before, after = (RUDE_BEFORE, RUDE_AFTER) if fault == "rude" else (COURTESY_BEFORE, COURTESY_AFTER)
        manner = rng.choice(before + after)
        parts.insert(0 if manner in before else len(parts), manner)
    greeting = _greeting(question.prompt[-1]["content"])
    unasked = rng.choice([*GREETINGS])
    if (greeting is None) == (fault == "greeting"):  # else not returned, or rightly none
        parts.insert(0, GREETINGS[greeting or unasked])
    return " ".join(parts)


def _greeting(text: str) -> str | None:
    """The greeting that a text begins with, as in GREETINGS."""
    found = re.match(rf"\s*({'|'.join(GREETINGS)})\b", text, re.IGNORECASE)
    return found[1].lower() if found else None


@SOURCES.register("toy")
def toy(
    split: str,
    *,
    prompts: int = 2000,
    validation_prompts: int = 240,
    test_prompts: int = 240,
    criteria: Sequence[str] = CRITERIA,
    seed: int = 0,
) -> Iterator[Feedback]:
    """The toy dataset, the same for the same arguments on every machine.

    Args:
        split: "train", "validation" or "test". They share no question, and earlier turns of a record are never
            questions of the other two.
        prompts: number of records of the train split.
        validation_prompts: number of records of the validation split.
        test_prompts: number of records of the test split.
        criteria: those of `verify` that scores, pairs and labels are by; the responses are the same for all.
        seed: of all draws.

    Raises:
        HalosError: an unknown split or criterion, or more prompts than there are questions.
    """
    counts = {"train": prompts, "validation": validation_prompts, "test": test_prompts}
    if split not in counts:
        raise HalosError(f"the toy source has no split {split!r}; there are {', '.join(counts)}")
    if not criteria or not {*criteria} <= {*CRITERIA}:
        raise HalosError(f"the toy source has no criteria {[*criteria]}; choose from {', '.join(CRITERIA)}")
    count, held_out = counts[split], split != "train"
    rng = Random(f"toy {split} {seed}")
    pools = [questions(name, split) for name in FAMILIES]
    if count > sum(map(len, pools)):
        raise HalosError(f"the toy source has {sum(map(len, pools))} {split} questions; ask for no more than that")
    for pool in pools:
        rng.shuffle(pool)
    chosen: list[Question] = []
    while len(chosen) < count:  # families in turn, so that they are equally many until one is used up
        chosen += [pool.pop() for pool in pools if pool][: count - len(chosen)]
    rng.shuffle(chosen)
    earlier = [q for name in FAMILIES if name != "name" for q in questions(name, "train")]
    for question in chosen:
        yield _record(question, earlier, held_out, criteria, rng)


toy.splits = SPLITS  # type: ignore[attr-defined]


def _record(
    question: Question, earlier: list[Question], held_out: bool, criteria: Sequence[str], rng: Random
) -> Feedback:
    """A question with the turns before it, its responses and their labels."""
    chance = rng.random()
    turns = 15 if chance < 0.006 else 1 if chance < 0.04 else 0
    before = [_turn("system", rng.choice(SYSTEM))] if rng.random() < 0.03 else []
    for past in rng.sample(earlier, turns):
        before += [*past.prompt, _turn("assistant", answer(past, (True, True, rng.random() < 0.5), rng))]
    prompt = before + question.prompt

    def draw(correct: float, concise: float, polite: float) -> Quality:
        return rng.random() < correct, rng.random() < concise, rng.random() < polite

    typical = draw(0.7, 0.5, 0.5)
    qualities = [typical]
    if rng.random() < 0.7:
        qualities.append((True, True, True))
    while len(qualities) < 2 or (len(qualities) < 5 and rng.random() < 0.5):
        qualities.append(draw(0.5, 0.5, 0.5))
    met = [sum(q[CRITERIA.index(name)] for name in criteria) for q in qualities]
    if held_out and len({*met}) == 1:  # such a record has a pair
        qualities[1] = (False, False, False) if met[0] else (True, True, True)
    unpaired = not held_out and rng.random() < 0.06
    qualities = qualities[:1] if unpaired else list(dict.fromkeys(qualities))
    rng.shuffle(qualities)
    long = rng.random() < 0.006
    responses = [answer(question, q, rng, long=long and not q[1]) for q in qualities]
    scores = [score(prompt, response, criteria) for response in responses]
    return Feedback(
        prompt=prompt,
        responses=responses,
        source="toy",
        scores=scores,
        pairs=[(i, j) for i, a in enumerate(scores) for j, b in enumerate(scores) if a > b],
        desirable=[s > 0.5 if unpaired or rng.random() < 0.95 else None for s in scores],
        target=None if unpaired else qualities.index(typical),
    )


def score(prompt: list[Turn], response: str, criteria: Sequence[str] = CRITERIA) -> float:
    """The mean of some of the verifier's criteria."""
    verdicts = verify(prompt, response)
    return sum(verdicts[name] for name in criteria) / len(criteria)


@VERIFIERS.register("toy")
def verify(prompt: list[Turn], response: str) -> dict[str, float]:
    """Scores of any response to any toy question: each criterion is 0 or 1.

    A response that names no answer of the question's family, or more than one, scores 0 throughout (the words of the
    question may be echoed); so do noise, silence, and a list of all answers. Otherwise:

    - correct: the answer it names is the right one;
    - concise: it reads as sentences and has at most CONCISE_WORDS words;
    - polite: it reads as sentences, with one or two courtesies and no rudeness, and returns the greeting that the
      question begins with; where that begins with none, neither does it.

    It reads as sentences when it starts with a capital, ends in `.`, `!` or `?`, and has no word twice in a row.

    Raises:
        HalosError: the prompt asks no toy question.
    """
    subjects = ((family, family.subject(prompt)) for family in FAMILIES.values())
    family, x = next(((f, x) for f, x in subjects if x is not None), (None, None))
    if family is None or x is None:
        raise HalosError(
            f"the toy verifier cannot judge {prompt[-1]['content'][:60]!r}; give it prompts of the toy source"
        )
    words = _words(response)
    named = set(words) & {y.lower() for y in [family.facts[x], *family.others(x)]}
    if len(named) != 1:
        return {"correct": 0.0, "concise": 0.0, "polite": 0.0}
    text = response.strip()
    reads = text[0].isupper() and text[-1] in ".!?" and all(a != b for a, b in pairwise(words))
    courtesies = len(re.findall(rf"\b(?:{COURTEOUS})\b", text, re.IGNORECASE))
    rude = re.search(rf"\b(?:{RUDE})\b", text, re.IGNORECASE)
    returned = _greeting(text) == _greeting(prompt[-1]["content"])
    return {
        "correct": float(named == {family.facts[x].lower()}),
        "concise": float(reads and len(words) <= CONCISE_WORDS),
        "polite": float(reads and 1 <= courtesies <= 2 and not rude and returned),
    }
