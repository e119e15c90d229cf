"""`judges:` of config.yaml: who decides which response is better, against which baseline, and the worth of a tie."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from halos.errors import HalosError
from halos.evaluate.judging.annotators import annotator_template, read_annotator
from halos.evaluate.judging.judgement import ASKED, Ties
from halos.scoring.settings import Pattern, Scorer, Server
from halos.settings import INCIDENTAL, Fraction, Positive, Slice, Strict, numbers


class Prices(Strict):
    """Dollars for a million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)


MAX_TOKENS = 512
"""The longest answer where neither the settings nor an annotator says."""
PLACES = ("{instruction}", "{output_1}", "{output_2}")
"""Placeholders in a judge's prompt: the conversation, and the two responses in the order in which they are shown."""


def _temperature(value: Any) -> Any:
    """Refuses a mistake in one sentence, where pydantic would give one for each member of the union."""
    value = numbers(value)
    if value not in ("default", None) and (isinstance(value, bool | str) or not value >= 0):
        raise ValueError(f"{value!r} is none of default, null and a number from 0 on")
    return value


class Asking(Strict):
    """A question which of two responses is better: either a prompt in the config, which asks for a last line
    `Verdict: A`, `Verdict: B` or `Verdict: tie`, or that of one of alpaca_eval's annotators."""

    prompt: str | None = Field(
        None, description="the question, with {instruction}, {output_1} and {output_2}: one turn, or several in ChatML"
    )
    annotator: str | None = Field(
        None,
        description="an annotator of alpaca_eval, for its prompt, model and reading of answers: "
        "weighted_alpaca_eval_gpt4_turbo",
    )
    pattern: Pattern = Field(
        None,
        description="with a prompt: a regular expression whose one group holds A, B or tie, in its last match; by "
        "default `Verdict: A` and its like are understood. Thoughts, as in <think>, are left out first",
    )
    max_tokens: Positive | None = Field(
        None,
        description="longest answer, in tokens, thoughts included; by default the annotator's own, or 512",
    )

    @model_validator(mode="after")
    def one_question(self) -> Self:
        if (self.prompt is None) == (self.annotator is None):
            raise ValueError("give exactly one of prompt and annotator")
        if self.annotator is not None and self.pattern is not None:
            raise ValueError("an annotator reads answers itself: take out pattern, or give a prompt")
        if self.annotator is not None:
            try:
                read_annotator(self.annotator)
            except HalosError as error:
                raise ValueError(str(error)) from None
        if missing := [place for place in PLACES if place not in (self.prompt or "".join(PLACES))]:
            raise ValueError(f"the prompt has no {' and no '.join(missing)}: add where each goes")
        return self

    @property
    def longest_answer(self) -> int:
        """In tokens."""
        return self.max_tokens or int(self.request.get("max_tokens", MAX_TOKENS))

    @property
    def question(self) -> str:
        """The prompt, or the annotator's."""
        if self.prompt is not None:
            return self.prompt
        annotator = read_annotator(str(self.annotator))
        return "" if annotator is None else annotator_template(annotator)

    @property
    def request(self) -> dict[str, Any]:
        """What alpaca_eval's annotator sends with a question; nothing for a prompt."""
        annotator = None if self.annotator is None else read_annotator(self.annotator)
        return {} if annotator is None else dict(annotator["completions_kwargs"])


class Annotator(Server, Asking):
    """A model behind a server that is asked which of two responses is better."""

    model: str | None = Field(None, description="its name on the server; with an annotator, by default its own")
    temperature: Annotated[Literal["default"] | Annotated[float, Field(ge=0)] | None, BeforeValidator(_temperature)] = (
        Field("default", description="of sampling; by default the annotator's own, or 0; null sends none")
    )
    prices: Prices | None = Field(None, description="to print what judging costs, before and after")

    @model_validator(mode="after")
    def one_model(self) -> Annotator:
        if self.prompt is not None and self.model is None:
            raise ValueError("a prompt is asked of a model: give `model:`")
        return self

    @property
    def asked_model(self) -> str:
        """The name of the model that is asked."""
        return self.model or str(self.request["model_name"])


class LocalAnnotator(Asking):
    """A model of the catalogue that is asked which of two responses is better, in a job: it answers greedily, so the
    same question always gets the same answer."""

    model: str = Field(description="id of an entry of models")
    choices: tuple[str, ...] = Field(
        (),
        description="with a prompt that asks for one of them and nothing else: the answers for the first response, the "
        "second and, if it may say so, neither, as in [A, B, tie]. The verdict is then weighed by the model's "
        "probabilities of these, and no text is generated",
    )

    @model_validator(mode="after")
    def known_choices(self) -> LocalAnnotator:
        if not self.choices:
            return self
        if self.annotator is not None or self.pattern is not None or self.max_tokens is not None:
            raise ValueError("choices are in place of a text to read: take out annotator, pattern and max_tokens")
        if len(self.choices) not in (2, 3) or len({*self.choices}) != len(self.choices) or "" in self.choices:
            raise ValueError("choices are two or three different answers: for the first, the second and neither")
        return self


NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
"""The name of someone who votes: that of a file."""


class People(Strict):
    """People who vote on comparisons, on the page that `python -m halos annotate` opens."""

    annotators: tuple[Annotated[str, Field(pattern=f"^{NAME}$")], ...] = Field(
        (), description="who votes, by names of letters, digits, _, . and -; by default whoever does"
    )
    votes: Positive | None = Field(
        None,
        description="how many of them see each comparison, drawn by a hash; by default all. Where nobody is named: the "
        "votes that each comparison needs, by default one",
    )
    limit: Positive | None = Field(
        None,
        description="prompts of each judgement that are voted on, drawn by a hash, the same for all methods; by "
        "default all of the prompt set",
    )
    folder: str = Field("annotations", description="where the votes are kept, in JUDGE/ANNOTATOR.jsonl")

    @model_validator(mode="after")
    def enough(self) -> People:
        if twice := sorted({name for name in self.annotators if self.annotators.count(name) > 1}):
            raise ValueError(f"annotators: {twice[0]} is named twice: take one out")
        if self.annotators and (self.votes or 0) > len(self.annotators):
            raise ValueError(f"votes: {self.votes} are more than the {len(self.annotators)} annotators: lower it, or "
                             "name more")  # fmt: skip
        return self

    def file(self, judge: str, annotator: str) -> Path:
        """The file of the votes of one annotator."""
        return Path(self.folder) / judge / f"{annotator}.jsonl"

    def files(self, judge: str) -> list[Path]:
        """The files of votes that there are, in the order of the annotators."""
        if self.annotators:
            return [file for name in self.annotators if (file := self.file(judge, name)).is_file()]
        return sorted((Path(self.folder) / judge).glob("*.jsonl"))


class FromFile(Strict):
    """A file of outputs in AlpacaEval's form: a JSON list, or JSON lines, of {instruction, output}."""

    file: str


class FromCell(Strict):
    """The samples of another cell of the same dataset and model, to the same prompts."""

    method: str = Field(description="of the other cell")
    seed: Literal["same"] | Annotated[int, Field(ge=0)] = Field("same", description="of the other cell")


def _baseline(value: Any) -> Any:
    """Refuses a mistake in one sentence, where pydantic would give one for each member of the union."""
    known = value == "target" or isinstance(value, FromFile | FromCell)
    if not known and not (isinstance(value, dict) and set(value) in ({"file"}, {"method"}, {"method", "seed"})):
        raise ValueError(f"{value!r} is none of target, {{file: PATH}} and {{method: METHOD, seed: same}}")
    return value


MethodPairs = tuple[tuple[str, str], ...]
"""Pairs of methods, whose first is judged against its second."""


def _compare(value: Any) -> Any:
    """Refuses a mistake in one sentence, where pydantic would give one for each member of the union."""
    if value in ("all", None):
        return value
    named = isinstance(value, list | tuple) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value)
    if not named or not all(isinstance(method, str) for pair in value for method in pair):
        raise ValueError(f"{value!r} is neither all nor a list of pairs of methods, as in [[sft-dpo, sft-kto]]")
    seen: set[frozenset[str]] = set()
    for pair in map(frozenset, value):
        if len(pair) == 1 or pair in seen:
            what = "is one method twice: name two" if len(pair) == 1 else "is named twice: take one out"
            raise ValueError(f"the pair of {' and '.join(sorted(pair))} {what}")
        seen.add(pair)
    return value


Compare = Annotated[Literal["all"] | MethodPairs | None, BeforeValidator(_compare)]


def pairs_of(compare: Compare, methods: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of a grid's methods that are judged, each in one direction: the first against the second.

    Args:
        compare: `all` for every pair, in the grid's order; pairs with a method that the grid lacks are left out.
        methods: of the grid.
    """
    if compare == "all":
        return list(combinations(methods, 2))
    return [pair for pair in compare or () if set(pair) <= set(methods)]


class Judge(Scorer):
    """A judge, which decides whether a cell's response or the baseline's is better."""

    noun: ClassVar[str] = "judge"

    kind: Literal["verifier", "reward_model", "openai", "model", "human"]
    openai: Annotator | None = Field(None, description="for kind openai: the model that is asked, and how")
    model: LocalAnnotator | None = Field(
        None, description="for kind model: the model of the catalogue that is asked, without a server, and how"
    )
    human: People | None = Field(None, description="for kind human: who votes, and on how much")
    prompts: str = Field(description="id of the prompt set whose samples are judged")
    baseline: Annotated[Literal["target"] | FromFile | FromCell, BeforeValidator(_baseline)] = Field(
        "target", description="the dataset's target for the same prompt, a file of outputs, or another cell's samples"
    )
    ties: Ties = Field("half", description="a tie is half a win; or a win for neither, and so worth nothing")
    tie_margin: float = Field(0.0, ge=0, description="verifier and reward_model: scores this close together are a tie")
    whole_sentences: bool = Field(False, description="both responses are cut after their last full sentence")
    length_control: Literal["length_only", "alpaca_eval"] = Field(
        "length_only",
        description="a logistic model of the difference in length; or alpaca_eval's own, which knows how difficult "
        "each of its 805 instructions is: it needs AlpacaEval's reference outputs as baseline",
    )
    difficulties: str | None = Field(
        None,
        description="length_control alpaca_eval: AlpacaEval's df_gamed.csv; by default the one in the hub's cache",
    )
    compare: Annotated[Compare, INCIDENTAL] = Field(
        None,
        description="the grid's methods against each other, beside the baseline: all, or a list of pairs, [[sft-dpo, "
        "sft-kto]]. A verifier or reward_model has scored each response already: by default all, for nothing; another "
        "judge is asked anew: by default none",
    )
    prompts_per_pair: Annotated[Positive | None, INCIDENTAL] = Field(
        None,
        description="openai, model, human: prompts on which two methods are compared, drawn by a hash, the same for "
        "all pairs; by default all of the prompt set",
    )
    both_orders: bool = Field(
        False,
        description="openai, model: asks about each comparison twice, with the responses in both orders; a side wins "
        "if it does in both, else it is a tie. By default once, in an order that a hash draws",
    )
    ask_again: int = Field(
        0,
        ge=0,
        description="openai: comparisons of each cell about which the same question is asked once more, to see how "
        "often the verdict is the same; they change no result",
    )
    max_failures: Fraction = Field(
        0.05, description="openai, model: largest fraction of the comparisons that may get no answer"
    )
    concurrency: Annotated[Positive, INCIDENTAL] = Field(16, description="openai: calls at one time; reruns nothing")
    requests_per_minute: Annotated[Positive | None, INCIDENTAL] = Field(
        None, description="openai: limit on requests, retries included; reruns nothing"
    )

    @property
    def files(self) -> list[str | Path | None]:
        baseline = self.baseline.file if isinstance(self.baseline, FromFile) else None
        return [*super().files, baseline, self.difficulties]

    def _of_other_kinds(self) -> set[str]:
        own = super()._of_other_kinds() | ({"model", "human"} - {self.kind})
        own |= {"tie_margin"} if self.is_asked else {"prompts_per_pair"}
        own |= set() if self.kind in ("openai", "model") else {"max_failures", "both_orders"}
        return own | (set() if self.kind == "openai" else {"concurrency", "requests_per_minute", "ask_again"})

    @property
    def named(self) -> str | None:
        return super().named if self.model is None else self.model.model

    @property
    def is_asked(self) -> bool:
        """Whether it is asked about each comparison; else it scores each response."""
        return self.kind in ASKED

    @property
    def is_batched(self) -> bool:
        """Whether one process judges many cells; else each cell has a job of its own."""
        return self.kind not in ("openai", "human")

    @property
    def compares(self) -> Compare:
        """The pairs of methods that it compares: `compare`, with its default of the kind of judge."""
        return "all" if self.compare is None and not self.is_asked else self.compare

    @model_validator(mode="before")
    @classmethod
    def people(cls, content: Any) -> Any:
        """A judge of kind human needs no settings."""
        return {"human": {}} | content if isinstance(content, dict) and content.get("kind") == "human" else content

    @model_validator(mode="after")
    def no_contradiction(self) -> Judge:
        if self.length_control == "alpaca_eval" and not isinstance(self.baseline, FromFile):
            raise ValueError("length_control: alpaca_eval needs AlpacaEval's reference outputs: name them as baseline")
        if self.difficulties is not None and self.length_control != "alpaca_eval":
            raise ValueError("difficulties are read with length_control: alpaca_eval: take them out, or say so")
        return self


class JudgeSlice(Judge, Slice):
    """config.yaml of a judge's folder; or of its comparisons with one method, `against/{method}`, which then is the
    baseline.

    Attributes:
        judge: the judge's id.
    """

    judge: str

    @property
    def most_prompts(self) -> int | None:
        """Prompts that are judged, drawn by a hash; None for all."""
        limit = None if self.human is None else self.human.limit
        return self.prompts_per_pair or limit


class ToJudge(Strict):
    """A judgement of a batch: the files that it is made from.

    Attributes:
        judged: where it goes in the end.
        config: the judge's config.yaml.
        samples: of the cell.
        feedback: records that the prompts come from.
        reward_model: folder of the reward model that judges, or of the model that is asked, and, where it has one, its
            manifest; empty for others.
        baseline: file of the baseline's outputs or samples; empty where the dataset's targets are the baseline.
        difficulties: AlpacaEval's df_gamed.csv; empty for none.
    """

    judged: str
    config: str
    samples: str
    feedback: str
    reward_model: tuple[str, ...] = ()
    baseline: tuple[str, ...] = ()
    difficulties: tuple[str, ...] = ()

    @property
    def files(self) -> list[str]:
        """All files and folders that it is made from."""
        return [self.config, self.samples, self.feedback, *self.reward_model, *self.baseline, *self.difficulties]


class JudgingSlice(Slice):
    """config.yaml of a batch of judgements, which one process makes."""

    judgements: list[ToJudge]
