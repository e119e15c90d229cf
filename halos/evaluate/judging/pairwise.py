"""A model that is asked which of two responses is better: alpaca_eval's annotators, with calls kept and counted."""

from __future__ import annotations

import math
import re
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from halos.errors import HalosError
from halos.evaluate.judging.alpaca import import_alpaca_eval
from halos.evaluate.judging.annotators import read_annotator
from halos.evaluate.judging.comparisons import Comparison, lowest
from halos.evaluate.judging.judgement import TIE, Asked, Decision, Question, Usage, agreed
from halos.evaluate.judging.settings import Annotator, Asking
from halos.evaluate.judging.verdicts import FIRST, SECOND, read_verdict
from halos.scoring.answers import Answer, Conversation
from halos.scoring.api import Api, Calls
from halos.scoring.client import Client
from halos.scoring.reading import without_thoughts

_CHARACTERS_PER_TOKEN = 4
"""In English text, says OpenAI's documentation: no tokenizer of its models comes without a download."""
_TOKENS_OF_TURN = 4
"""Tokens that a chat template puts around each turn."""


Said = tuple[Asked, str | None]
"""A question with its answer, and the problem of one that failed."""


class Pairwise(ABC):
    """A judge that asks a model which of two responses is better.

    Prompt and reading of answers are those of alpaca_eval's annotator, or a prompt of the config. The answers are
    gathered here, so that every one is kept, and a failure is no answer.

    Args:
        name: of the judge, for messages.
        settings: its `openai:` or `model:`.
        max_failures: largest fraction of the comparisons that may get no answer.
        both_orders: whether it is asked about each comparison in both orders, of which `agreed` makes one preference.
        ask_again: comparisons about which the first question is asked once more: those whose hashes are lowest.
    """

    def __init__(
        self, name: str, settings: Asking, max_failures: float, both_orders: bool = False, ask_again: int = 0
    ) -> None:
        self.name, self.max_failures = name, max_failures
        self.both_orders, self.ask_again = both_orders, ask_again
        prompt = settings.prompt
        annotator: dict[str, Any]
        if settings.annotator is None:
            annotator = {"prompt_template": prompt, "completions_kwargs": {}, **self._reading(settings)}
        else:
            annotator = read_annotator(settings.annotator) or {}
        self._annotator = _annotator({**annotator, "fn_completions": self._complete}, prompt)
        self._answers: list[Answer] = []
        self._latest: list[Answer] = []

    @property
    @abstractmethod
    def question(self) -> Question: ...

    @property
    def usage(self) -> Usage:
        """Usage of all answers, those of earlier runs included."""
        return self._usage(self._answers)

    @abstractmethod
    def _reply(self, prompts: list[Conversation], again: bool) -> list[Answer]:
        """An answer to each prompt, in their order.

        Args:
            again: whether they were answered before.
        """

    def _reading(self, settings: Asking) -> dict[str, Any]:
        """How answers to a prompt of the config are read, as settings of an annotator of alpaca_eval."""
        pattern = None if settings.pattern is None else re.compile(settings.pattern)
        return {"fn_completion_parser": partial(read_verdict, pattern=pattern)}

    def _dollars(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """What tokens cost; None where that is not known."""
        return None

    def decide(self, comparisons: list[Comparison]) -> list[Decision]:
        """One decision for each comparison, in their order. Two equal texts are a tie without a question.

        Raises:
            HalosError: no call can succeed, or too many comparisons got no answer. The answers so far are kept.
        """
        unequal = [c for c in comparisons if c.candidate != c.baseline]
        self._answers = []
        questions = [(c, c.candidate_first) for c in unequal]
        if self.both_orders:
            questions += [(c, not c.candidate_first) for c in unequal]
        asked = self._ask(questions)
        said = {id(c): asked[row :: len(unequal)] for row, c in enumerate(unequal)}
        self._check_failures([_decision(answers) for answers in said.values()], len(comparisons))
        repeated = lowest(unequal, self.ask_again)
        for c, answer in zip(repeated, self._ask([(c, c.candidate_first) for c in repeated], again=True), strict=True):
            said[id(c)].append(answer)
        return [_decision(said[id(c)]) if id(c) in said else Decision(preference=TIE) for c in comparisons]

    def _ask(self, questions: list[tuple[Comparison, bool]], again: bool = False) -> list[Said]:
        """What is said to each question.

        Args:
            questions: comparisons, each with whether the candidate's response is shown first.
            again: whether they were asked before.
        """
        if not questions:
            return []
        import pandas as pd

        self._again = again
        frame = pd.DataFrame([c.shown(first) for c, first in questions], columns=["output_1", "output_2"])
        self._latest = []
        annotations = self._annotator(frame.assign(instruction=[c.instruction for c, _ in questions]))
        preferences = annotations["preference"].to_dict()  # {row: preference} of those that did not fail
        self._answers += self._latest
        return [
            (
                Asked(
                    shown_first="candidate" if first else "baseline",
                    again=again,
                    preference=_of_candidate(preferences.get(row), first),
                    answer=answer.text,
                ),
                answer.problem,
            )
            for row, ((_, first), answer) in enumerate(zip(questions, self._latest, strict=True))
        ]

    def _check_failures(self, decisions: list[Decision], comparisons: int) -> None:
        """Refuse to judge by the rest where too many answers are missing."""
        problems = Counter(str(d.problem) for d in decisions if d.preference is None)
        failed = problems.total()
        if failed > self.max_failures * comparisons:
            reasons = ", ".join(f"{count} {problem}" for problem, count in problems.most_common())
            raise HalosError(
                f"{self.name} has no answer to {failed} of {comparisons} comparisons ({reasons}), more than its "
                f"max_failures {self.max_failures:g} allows; the others are kept: run again to ask for these anew, or "
                "raise max_failures"
            )

    def _complete(self, prompts: list[Conversation], **_: Any) -> dict[str, list[Any]]:
        """Replaces alpaca_eval's own calls: a completion for each prompt, None for one that failed."""
        self._latest = self._reply(prompts, self._again)
        return {self._annotator.completion_key: [self._completion(answer) for answer in self._latest]}

    def _completion(self, answer: Answer) -> Any:
        """An answer in the form that the annotator's parser reads."""
        if answer.text is None:
            return None
        if self._annotator.completion_key == "completions":
            return without_thoughts(answer.text)
        return {"text": answer.text, "logprobs": {"content": answer.logprobs}}

    def _understood(self, answer: Answer) -> bool:
        try:
            (preference,) = self._annotator.fn_completion_parser(self._completion(answer))
        except Exception:  # alpaca_eval's parsers raise all kinds of errors on what they cannot read
            return False
        return preference is not None and (preference == 0 or FIRST <= preference <= SECOND)

    def _usage(self, answers: list[Answer]) -> Usage:
        answers = list({id(answer): answer for answer in answers}.values())  # equal questions share one
        tokens = sum(a.prompt_tokens for a in answers), sum(a.completion_tokens for a in answers)
        return Usage(prompt_tokens=tokens[0], completion_tokens=tokens[1], dollars=self._dollars(*tokens))


class PairwiseAnnotator(Pairwise):
    """A judge that asks a model behind an OpenAI-compatible server.

    Args:
        name: of the judge, for messages.
        settings: its `openai:`.
        max_failures: largest fraction of the comparisons that may get no answer.
        calls: how the model is called.
        both_orders: as for `Pairwise`.
        ask_again: as for `Pairwise`.

    Raises:
        HalosError: there is no usable key, or the cache cannot be written.
    """

    def __init__(
        self,
        name: str,
        settings: Annotator,
        max_failures: float,
        calls: Calls,
        both_orders: bool = False,
        ask_again: int = 0,
    ) -> None:
        request = settings.request
        self.prices, self._calls = settings.prices, calls
        self.api = Api(
            model=settings.asked_model,
            server=settings,
            temperature=request.get("temperature", 0.0) if settings.temperature == "default" else settings.temperature,
            max_tokens=settings.longest_answer,
            top_logprobs=request.get("top_logprobs"),
            may_be_cut=settings.prompt is None,  # some annotators ask for a single token
        )
        self._entry = f"the `openai:` settings of {name}"
        self.client = self._first_client = Client(self.api, calls, self._entry)
        super().__init__(name, settings, max_failures, both_orders, ask_again)

    @property
    def question(self) -> Question:
        api = self.api
        return Question(model=api.model, server=api.address, temperature=api.temperature, max_tokens=api.max_tokens,
                        seed=api.server.seed, extra_body=api.extra_body, top_logprobs=api.top_logprobs,
                        prompt=self._annotator.template, both_orders=self.both_orders,
                        answered_by=next(iter(self._answered_by), None))  # fmt: skip

    @property
    def _answered_by(self) -> Counter[str]:
        """How many answers are of each model, by the names that the server gives."""
        return Counter(answer.model for answer in self._answers if answer.model is not None)

    def decide(self, comparisons: list[Comparison]) -> list[Decision]:
        """As that of `Pairwise`.

        Raises:
            HalosError: as there, or the answers are of several models.
        """
        decisions = super().decide(comparisons)
        if len(names := self._answered_by) > 1:
            counts = ", ".join(f"{number} of {name}" for name, number in names.items())
            raise HalosError(
                f"{self.name} asks for {self.api.model}, and the server's answers are of several models ({counts}): "
                f"delete {self._calls.cache} to ask one model everything, best by a name that stays (with a date)"
            )
        return decisions

    def _reply(self, prompts: list[Conversation], again: bool) -> list[Answer]:
        self.client = Client(replace(self.api, again=True), self._calls, self._entry) if again else self._first_client
        self._print_estimate(prompts)
        answers = self.client.ask(prompts, self._understood)
        self._print_spent(answers)
        return answers

    def _print_estimate(self, prompts: list[Conversation]) -> None:
        new = self.client.unanswered(prompts, self._understood)
        turns = [turn["content"] for prompt in new for turn in prompt]
        tokens = sum(map(len, turns)) // _CHARACTERS_PER_TOKEN + len(turns) * _TOKENS_OF_TURN
        most = len(new) * self.api.max_tokens
        least, dollars = self._dollars(tokens, len(new)), self._dollars(tokens, most)
        cost = "" if dollars is None else f", {least:.2f} to {dollars:.2f} dollars"
        how = " again" if self.client.api.again else ", in either order" if self.both_orders else ""
        print(
            f"{self.name} asks {self.api.model} about {len(prompts)} comparisons{how}, {len(prompts) - len(new)} of "
            f"them answered before; about {tokens} tokens in and at most {most} out{cost}",
            file=sys.stderr,
            flush=True,
        )

    def _print_spent(self, answers: list[Answer]) -> None:
        spent = self._usage([answer for answer in answers if not answer.cached])
        cost = "" if spent.dollars is None else f": {spent.dollars:.2f} dollars"
        print(f"{self.name} spent {spent.prompt_tokens} tokens in and {spent.completion_tokens} out{cost}",
              file=sys.stderr)  # fmt: skip

    def _dollars(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        if self.prices is None:
            return None
        return (prompt_tokens * self.prices.input + completion_tokens * self.prices.output) / 1e6


def _decision(said: list[Said]) -> Decision:
    """The decision on a comparison by all answers about it, of which those to questions asked again do not count."""
    counted = [(question, problem) for question, problem in said if not question.again]
    first = counted[0][0]
    return Decision(
        preference=agreed([question.preference for question, _ in counted]),
        problem=next((problem for _, problem in counted if problem is not None), None),
        shown_first=first.shown_first,
        answer=first.answer,
        asked=tuple(question for question, _ in said) if len(said) > 1 else (),
    )


def _of_candidate(preference: Any, candidate_first: bool) -> float | None:
    """A preference between the responses shown first and second, as one between the baseline and the candidate."""
    if preference is None:
        return None
    value = float(preference) or TIE  # alpaca_eval's parsers say 0 for a tie
    return FIRST + SECOND - value if candidate_first else value


def _annotator(settings: dict[str, Any], prompt: str | None) -> Any:
    """An annotator of alpaca_eval with these settings, and with `prompt`, where given, instead of a file of its own.

    It fills in all placeholders in one pass, after parsing the turns. alpaca_eval itself fills in one after the other
    and parses last, so that a response with `{output_2}` or `<|im_end|>` in it would change the prompt.
    """
    import_alpaca_eval()
    from alpaca_eval.annotators.pairwise_evaluator import SinglePairwiseAnnotator
    from alpaca_eval.utils import prompt_to_chatml

    class Annotator(SinglePairwiseAnnotator):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings | {"is_shuffle": False, "is_randomize_output_order": False})
            parser: Callable[[Any], list[float]] = vars(self)["fn_completion_parser"]
            self.fn_completion_parser = lambda text: [math.nan] if text is None else parser(text)
            text = self.prompt_template
            turns = text.lstrip().startswith("<|im_start|>")
            self.template = prompt_to_chatml(text) if turns else [{"role": "user", "content": text}]

        def _get_prompt_template(self, template: str) -> str:
            return str(super()._get_prompt_template(template)) if prompt is None else prompt

        def _make_prompts(self, df: Any, prompt_template: str | None = None) -> tuple[list[Conversation], Any]:
            return [_filled(self.template, row) for row in df.to_dict("records")], df.copy()

    return Annotator(**settings)


def _filled(template: Conversation, values: dict[str, str]) -> Conversation:
    place = re.compile("|".join(re.escape(f"{{{name}}}") for name in values))
    return [{**turn, "content": place.sub(lambda match: values[match[0][1:-1]], turn["content"])} for turn in template]
