"""Constraints on a response that a program decides: how each is asked for, when it is met, and how to meet it.

They are in the manner of IFEval (Zhou et al. 2023, arXiv 2311.07911), which also tells strict from loose decisions. All
words and phrases here are this project's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from statistics import fmean

ABBREVIATIONS = re.compile(r"\b(e\.g|i\.e|etc|vs|mr|mrs|ms|dr|st)\.", re.IGNORECASE)
BULLET = re.compile(r"^\s*[-*•]\s+\S", re.MULTILINE)
NUMBERED = re.compile(r"^\s*\d+[.)]\s+\S", re.MULTILINE)
TITLE = re.compile(r"<<[^<>\n]*\w[^<>\n]*>>")
POSTSCRIPT = re.compile(r"(?:^|\n)\W*P\.?\s?S\.?\W[^\n]*\w[^\n]*$", re.IGNORECASE)


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())


def sentences(text: str) -> list[str]:
    """The sentences of a text: each ends in `.`, `!` or `?` before white space, or with its line, and has a letter."""
    parts = re.split(r"(?<=[.!?])[\"'”’)*]*\s+|\n+", ABBREVIATIONS.sub(r"\1", text))
    return [part for part in parts if re.search(r"[^\W\d_]", part)]


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text: what empty lines divide."""
    return [part for part in re.split(r"\n\s*\n", text) if part.strip()]


def bare(text: str) -> str:
    """A text in lower case without the white space, quotation marks and asterisks around it."""
    return text.lower().strip(' \n\t"“”*')


@dataclass
class Draft:
    """A response that is being written to meet constraints.

    Attributes:
        sentences: what it may say, in this order.
        count: how many of them it says.
        parts: paragraphs that they make.
        mark: what stands before each in a list, {i} for its number; without one they are no list.
        before: text before them.
        after: text behind them.
        case: what is done to all letters.
        around: what stands around the whole.
    """

    sentences: list[str]
    count: int
    parts: int = 1
    mark: str = ""
    before: str = ""
    after: str = ""
    case: Callable[[str], str] = str
    around: str = ""

    @property
    def text(self) -> str:
        said = self.sentences[: self.count]
        if self.mark:
            body = "\n".join(self.mark.format(i=i) + sentence for i, sentence in enumerate(said, 1))
        else:
            first = self.parts - 1
            body = "\n\n".join([*said[:first], " ".join(said[first:])])
        return f"{self.around}{self.case(self.before + body + self.after)}{self.around}"


Met = Callable[[str, str, str], bool]
"""(response, value, request) -> whether the response meets a constraint of this value."""
Write = Callable[[Draft, str, str], None]
"""(draft, value, request): make the draft meet it."""


@dataclass(frozen=True)
class Kind:
    """A kind of constraint.

    Attributes:
        phrasings: ways to ask for it, a sentence each; {x} is its value.
        values: the values that it may have; one empty text where it has none.
        met: decides whether a response meets it.
        write: how a draft is made to meet it.
    """

    phrasings: tuple[str, ...]
    met: Met
    write: Write
    values: tuple[str, ...] = ("",)

    @cached_property
    def patterns(self) -> list[re.Pattern[str]]:
        """Patterns of a text that ends in this constraint: what precedes it, and its value if it has one."""
        value = f"({'|'.join(map(re.escape, self.values))})"
        ends = (re.escape(phrasing).replace(r"\{x\}", value) for phrasing in self.phrasings)
        return [re.compile(rf"(.*\S)\s+{end}\s*", re.DOTALL) for end in ends]


@dataclass(frozen=True)
class Constraint:
    """One constraint of a prompt.

    Attributes:
        name: of its kind.
        value: what {x} is in its sentence; empty where that has none.
    """

    name: str
    value: str = ""

    def met(self, response: str, request: str) -> bool:
        """Whether a response to a request meets it."""
        return KINDS[self.name].met(response, self.value, request)


def parse(prompt: str) -> tuple[str, list[Constraint]]:
    """The request that a prompt begins with, and the constraints that follow it, in their order."""
    found: list[Constraint] = []
    request = prompt.strip()
    while ended := next(_endings(request), None):
        request = ended[0]
        found.insert(0, ended[1])
    return request, found


def _endings(text: str) -> Iterator[tuple[str, Constraint]]:
    """What precedes the last constraint of a text, and that constraint; nothing where it ends in none."""
    for name, kind in KINDS.items():
        for pattern in kind.patterns:
            if match := pattern.fullmatch(text):
                yield match[1], Constraint(name, match[2] if match.re.groups > 1 else "")


def variants(response: str) -> list[str]:
    """The response as it is, and for a loose decision also without its first line, its last line, or both, and each of
    these without asterisks."""
    lines = response.strip().split("\n")
    kept = [lines, lines[1:], lines[:-1], lines[1:-1]]
    texts = ["\n".join(part).strip() for part in kept]
    return [response, *(text.replace("*", "") if plain else text for plain, text in product((False, True), texts))]


def decide(response: str, request: str, constraints: Sequence[Constraint]) -> dict[str, float]:
    """How well a response meets constraints, at least one.

    `prompt_strict` is 1 where it meets all of them, else 0, and `instruction_strict` is the share that it meets. For
    `prompt_loose` and `instruction_loose` a constraint is met, too, where one of `variants` meets it. A response
    without a word meets none.
    """
    told = [text for text in variants(response) if words(text)]
    strict = [bool(words(response)) and c.met(response, request) for c in constraints]
    loose = [s or any(c.met(text, request) for text in told) for s, c in zip(strict, constraints, strict=True)]
    return {
        "prompt_strict": float(all(strict)),
        "instruction_strict": fmean(strict),
        "prompt_loose": float(all(loose)),
        "instruction_loose": fmean(loose),
    }


# ---- how drafts are made to meet them -------------------------------------------------------------------------------


def _nothing(draft: Draft, x: str, request: str) -> None:
    """The number of sentences decides alone, and is searched for."""


def _set(**settings: object) -> Write:
    def write(draft: Draft, x: str, request: str) -> None:
        for name, value in settings.items():
            setattr(draft, name, value)

    return write


def _say(sentence: str) -> Write:
    def write(draft: Draft, x: str, request: str) -> None:
        draft.sentences.insert(0, sentence.format(x=x))

    return write


def _before(text: str) -> Write:
    def write(draft: Draft, x: str, request: str) -> None:
        draft.before = text.format(x=x, request=request) + draft.before

    return write


def _after(text: str) -> Write:
    def write(draft: Draft, x: str, request: str) -> None:
        draft.after += text.format(x=x)

    return write


def _avoid(draft: Draft, x: str, request: str) -> None:
    draft.sentences = [sentence for sentence in draft.sentences if x not in words(sentence)]


def _paragraphs(draft: Draft, x: str, request: str) -> None:
    draft.parts = int(x)


# ---- the kinds ------------------------------------------------------------------------------------------------------


def _quoted(response: str) -> bool:
    text = response.strip()
    return len(text) > 2 and text[0] in '"“' and text[-1] in '"”' and not set('"“”') & set(text[1:-1])


KINDS: dict[str, Kind] = {
    "sentences": Kind(
        (
            "Answer in exactly {x} sentences.",
            "Use {x} sentences, no more and no fewer.",
            "Your answer must be {x} sentences long.",
        ),
        lambda r, x, _: len(sentences(r)) == int(x),
        _nothing,
        ("2", "3", "4"),
    ),
    "at_most": Kind(
        ("Use at most {x} words.", "Keep it to {x} words or fewer.", "Do not write more than {x} words."),
        lambda r, x, _: len(words(r)) <= int(x),
        _nothing,
        ("15", "20", "25", "30", "35"),
    ),
    "at_least": Kind(
        ("Use at least {x} words.", "Make it {x} words or longer.", "Do not write fewer than {x} words."),
        lambda r, x, _: len(words(r)) >= int(x),
        _nothing,
        ("30", "35", "40", "45"),
    ),
    "lower_case": Kind(
        (
            "Use lower-case letters only.",
            "Write everything in small letters.",
            "There must be no capital letter in your answer.",
        ),
        lambda r, x, _: r == r.lower() and r != r.upper(),
        _set(case=str.lower),
    ),
    "upper_case": Kind(
        (
            "Use capital letters only.",
            "Write everything in upper case.",
            "There must be no small letter in your answer.",
        ),
        lambda r, x, _: r == r.upper() and r != r.lower(),
        _set(case=str.upper),
    ),
    "include": Kind(
        (
            "Use the word {x}.",
            "Your answer must contain the word {x}.",
            "Find a place for the word {x}.",
        ),
        lambda r, x, _: x in words(r),
        _say("It may begin with one {x}."),
        ("river", "lantern", "garden", "window", "summer", "bridge", "pocket", "paper", "table", "island"),
    ),
    "three_times": Kind(
        (
            "Use the word {x} at least three times.",
            "The word {x} must occur three times or more.",
            "Say the word {x} no fewer than three times.",
        ),
        lambda r, x, _: words(r).count(x) >= 3,
        _say("A {x} leads to a {x} and that to a {x}."),
        ("step", "friend", "habit", "plan", "reason", "smile", "question", "moment"),
    ),
    "avoid": Kind(
        (
            "Do not use the word {x}.",
            "Leave out the word {x}.",
            "The word {x} must not occur in your answer.",
        ),
        lambda r, x, _: x not in words(r),
        _avoid,
        ("and", "the", "you", "it", "is", "can", "for", "your"),
    ),
    "begin": Kind(
        (
            'Begin with the words "{x}".',
            'The first words of your answer must be "{x}".',
            'Open your answer with "{x}".',
        ),
        lambda r, x, _: bare(r).startswith(x.lower()),
        _before("{x}. "),
        ("Let me think", "Here we go", "In my view", "A short answer", "First of all", "Listen closely"),
    ),
    "end": Kind(
        (
            'End with the words "{x}".',
            'The last words of your answer must be "{x}".',
            'Close your answer with "{x}".',
        ),
        lambda r, x, _: bare(r).rstrip(".!").endswith(x.lower()),
        _after(" {x}."),
        ("That is all", "Enjoy your day", "Now you know", "See for yourself", "Good luck", "Take care"),
    ),
    "no_commas": Kind(
        ("Do not use any commas.", "Leave out all commas.", "There must be no comma in your answer."),
        lambda r, x, _: "," not in r,
        _nothing,
    ),
    "bullets": Kind(
        (
            "Make it a list of exactly {x} bullet points.",
            "Answer with {x} bullet points, each on a line of its own.",
            "Give exactly {x} points, each on a new line after a dash.",
        ),
        lambda r, x, _: len(BULLET.findall(r)) == int(x),
        _set(mark="- "),
        ("2", "3", "4"),
    ),
    "quotation": Kind(
        (
            "Put the whole answer in double quotation marks.",
            "Your answer must begin and end with a double quotation mark.",
            "Set all of your answer within double quotation marks.",
        ),
        lambda r, x, _: _quoted(r),
        _set(around='"'),
    ),
    "repeat": Kind(
        (
            "Before you answer, repeat my request word for word.",
            "First write down my request again exactly as it is, then answer it.",
            "Repeat my request without any change, and give your answer after it.",
        ),
        lambda r, x, request: bare(r).startswith(request.lower()) and len(bare(r)) > len(request) + 1,
        _before("{request} "),
    ),
    "paragraphs": Kind(
        (
            "Write exactly {x} paragraphs, with an empty line between them.",
            "Divide your answer into {x} paragraphs by empty lines.",
            "Your answer must have {x} paragraphs, each set apart by an empty line.",
        ),
        lambda r, x, _: len(paragraphs(r)) == int(x),
        _paragraphs,
        ("2", "3"),
    ),
    "title": Kind(
        (
            "Give your answer a title in double angle brackets, such as <<a title>>.",
            "Put a title of your own in double angle brackets, as in <<title>>.",
            "Your answer must have a title, written between << and >>.",
        ),
        lambda r, x, _: TITLE.search(r) is not None,
        _before("<<A few words>>\n"),
    ),
    "postscript": Kind(
        (
            "Add a postscript at the end that begins with P.S.",
            "Close with a postscript, on a new line after P.S.",
            "Your last line must be a postscript that starts with P.S.",
        ),
        lambda r, x, _: POSTSCRIPT.search(r.strip()) is not None,
        _after("\nP.S. There is more to say."),
    ),
    "question": Kind(
        (
            "End with a question.",
            "Your last sentence must be a question.",
            "Close by asking me a question.",
        ),
        lambda r, x, _: bare(r).endswith("?"),
        _after(" Would this suit you?"),
    ),
    "numbered": Kind(
        (
            "Make it a numbered list of exactly {x} steps.",
            "Answer with {x} numbered lines.",
            "Give exactly {x} points, numbered from 1.",
        ),
        lambda r, x, _: len(NUMBERED.findall(r)) == int(x),
        _set(mark="{i}. "),
        ("2", "3", "4"),
    ),
    "one_line": Kind(
        (
            "Write it all on a single line.",
            "Do not start a new line anywhere.",
            "There must be no line break in your answer.",
        ),
        lambda r, x, _: "\n" not in r.strip(),
        _nothing,
    ),
}
"""Name -> kind."""
UNSEEN = ("numbered", "one_line")
"""Kinds that the source `requests` keeps apart, so that what was learned of the others can be tested on them."""


@cache
def names(unseen: bool) -> tuple[str, ...]:
    """The kinds that are kept apart, or all others."""
    return tuple(name for name in KINDS if (name in UNSEEN) == unseen)


def written(request: str, constraints: Sequence[Constraint], said: Sequence[str]) -> str | None:
    """A response that meets constraints, made of the first few sentences that do; None where none does, as for two that
    exclude each other.

    Args:
        request: what is asked.
        constraints: on the response.
        said: sentences to choose from.
    """
    for count in range(1, len(said) + 1):
        draft = Draft(list(said), count)
        for constraint in constraints:
            KINDS[constraint.name].write(draft, constraint.value, request)
        if decide(draft.text, request, constraints)["prompt_strict"]:
            return draft.text
    return None
