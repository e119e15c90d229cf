"""Asking a model which of two responses is better: alpaca_eval's annotators, with calls that are kept and counted."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halos.errors import HalosError
from halos.evaluate.judging.alpaca import import_alpaca_eval
from halos.evaluate.judging.annotators import FIRST, SECOND, read_annotator, read_verdict
from halos.evaluate.judging.comparisons import Comparison
from halos.evaluate.judging.judgement import TIE
from halos.scoring.answers import Answer, Conversation
from halos.scoring.client import Api, Client

_CHARACTERS_PER_TOKEN = 4
"""Of English text, as OpenAI's documentation has it: no tokenizer of its models comes without a download."""
_TOKENS_OF_TURN = 4
"""That a chat template puts around each turn."""
_MAX_TOKENS = 512


@dataclass(frozen=True)
class Opinion:
    """What a model said of one comparison.

    Attributes:
        preference: 1 the baseline's response is better, 2 the candidate's, 1.5 neither, or between for a judge that
            weighs its answer; None when it failed.
        answer: None where nothing was asked, as both responses are the same text.
    """

    preference: float | None
    answer: Answer | None


class Asker:
    """A model behind an OpenAI-compatible server that is asked about comparisons.

    The prompt, the model and the reading of its answers are those of alpaca_eval's annotator; the calls are ours, so
    that every answer is kept, and a call that fails is no answer.

    Args:
        name: the judge, for messages.
        settings: its `openai` entry.
        cache: file of the answers so far, which are not asked for again.
        concurrency: calls at one time.
        requests_per_minute: or None for as fast as they are answered.
    """

    def __init__(
        self, name: str, settings: dict[str, Any], cache: Path, concurrency: int, requests_per_minute: int | None
    ) -> None:
        self.name, self.prices = name, settings["prices"]
        prompt = settings["prompt"]
        annotator = {"prompt_template": prompt, "fn_completion_parser": read_verdict, "completions_kwargs": {}}
        if prompt is None:
            annotator = read_annotator(settings["annotator"]) or {}
        own = annotator["completions_kwargs"]
        given = {key: settings[key] for key in ("base_url", "key_variable", "seed", "timeout", "attempts")}
        self.api = Api(
            model=settings["model"] or own["model_name"],
            temperature=own.get("temperature", 0.0) if settings["temperature"] is None else settings["temperature"],
            max_tokens=settings["max_tokens"] or own.get("max_tokens", _MAX_TOKENS),
            top_logprobs=own.get("top_logprobs"),
            may_be_cut=prompt is None,  # some annotators want no more than one token
            concurrency=concurrency,
            requests_per_minute=requests_per_minute,
            **given,
        )
        self.client = Client(self.api, cache)
        self._annotator = _annotator({**annotator, "fn_completions": self._complete}, prompt)
        self._answers: list[Answer] = []

    @property
    def question(self) -> dict[str, Any]:
        """What was asked of whom, for the record."""
        names = ("model", "server", "temperature", "max_tokens", "seed", "top_logprobs")
        return {**{name: getattr(self.api, name) for name in names}, "prompt": self._annotator.template}

    def judge(self, comparisons: list[Comparison]) -> list[Opinion]:
        """What the model says of each, in their order. Of two equal texts it is not asked: they are a tie.

        Raises:
            HalosError: no call can succeed. What was answered until then is kept.
        """
        import pandas as pd

        asked = [c for c in comparisons if c.candidate != c.baseline]
        texts = [(c.candidate, c.baseline) if c.candidate_first else (c.baseline, c.candidate) for c in asked]
        frame = pd.DataFrame(texts, columns=["output_1", "output_2"]).assign(instruction=[c.instruction for c in asked])
        self._answers = []
        shown = self._annotator(frame)["preference"].to_dict()  # of the rows that did not fail
        opinions = [
            Opinion(_turned(shown.get(row), c.candidate_first), answer)
            for row, (c, answer) in enumerate(zip(asked, self._answers, strict=True))
        ]
        rest = iter(opinions)
        return [next(rest) if c.candidate != c.baseline else Opinion(TIE, None) for c in comparisons]

    def _complete(self, prompts: list[Conversation], **_: Any) -> dict[str, list[Any]]:
        """Stands where alpaca_eval has calls of its own: a completion for each prompt, None where there is none."""
        self._say_estimate(prompts)
        self._answers = self.client.ask(prompts, self._understood)
        self._say_spent()
        return {self._annotator.completion_key: [self._completion(answer) for answer in self._answers]}

    def _completion(self, answer: Answer) -> Any:
        """An answer in the form that the annotator's parser reads."""
        if answer.text is None or self._annotator.completion_key == "completions":
            return answer.text
        return {"text": answer.text, "logprobs": {"content": answer.logprobs}}

    def _understood(self, answer: Answer) -> bool:
        try:
            (preference,) = self._annotator.fn_completion_parser(self._completion(answer))
        except Exception:  # a parser of alpaca_eval may raise anything on what it cannot read
            return False
        return preference is not None and (preference == 0 or FIRST <= preference <= SECOND)

    def _say_estimate(self, prompts: list[Conversation]) -> None:
        new = self.client.unanswered(prompts, self._understood)
        turns = [turn["content"] for prompt in new for turn in prompt]
        tokens = sum(map(len, turns)) // _CHARACTERS_PER_TOKEN + len(turns) * _TOKENS_OF_TURN
        most = len(new) * self.api.max_tokens
        least, dollars = self._dollars(tokens, len(new)), self._dollars(tokens, most)
        cost = "" if dollars is None else f", {least:.2f} to {dollars:.2f} dollars"
        print(
            f"{self.name} asks {self.api.model} about {len(prompts)} comparisons, {len(prompts) - len(new)} of them "
            f"answered before; about {tokens} tokens in and at most {most} out{cost}",
            file=sys.stderr,
            flush=True,
        )

    def _say_spent(self) -> None:
        spent = self.usage(cached=False)
        cost = "" if spent["dollars"] is None else f": {spent['dollars']:.2f} dollars"
        tokens = f"{spent['prompt_tokens']} tokens in and {spent['completion_tokens']} out"
        print(f"{self.name} spent {tokens}{cost}", file=sys.stderr)

    def usage(self, cached: bool = True) -> dict[str, Any]:
        """Tokens of the answers by the server's count, and dollars where there are prices; those of earlier calls, from
        the cache, too or not."""
        answers = {id(a): a for a in self._answers if cached or not a.cached}.values()  # equal questions share one
        tokens = {key: sum(getattr(a, key) for a in answers) for key in ("prompt_tokens", "completion_tokens")}
        return {**tokens, "dollars": self._dollars(*tokens.values())}

    def _dollars(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        if self.prices is None:
            return None
        return float(prompt_tokens * self.prices["input"] + completion_tokens * self.prices["output"]) / 1e6


def check_failures(name: str, opinions: list[Opinion], most: float) -> None:
    """Refuse to judge by what is left where too much is missing.

    Args:
        most: the share of comparisons that may be without an answer.

    Raises:
        HalosError: there are more.
    """
    failed = [o.answer.problem for o in opinions if o.preference is None and o.answer is not None]
    if not failed or len(failed) <= most * len(opinions):
        return
    reasons = ", ".join(f"{count} {problem}" for problem, count in Counter(failed).most_common())
    raise HalosError(
        f"{name} has no answer to {len(failed)} of {len(opinions)} comparisons ({reasons}), more than its "
        f"max_failures {most:g} allows; the others are kept: run again to ask for these anew, or raise max_failures"
    )


def _turned(preference: Any, candidate_first: bool) -> float | None:
    """A preference between the first and second response that were shown, as one between baseline and candidate."""
    if preference is None:
        return None
    value = float(preference) or TIE  # alpaca_eval's parsers say 0 for a tie
    return FIRST + SECOND - value if candidate_first else value


def _annotator(settings: dict[str, Any], prompt: str | None) -> Any:
    """alpaca_eval's annotator of these settings; `prompt` is one that is not from its files.

    It fills in prompts in one pass over their parsed turns. alpaca_eval itself does so one place after the other and
    then looks for turns, so that a response with `{output_2}` or `<|im_end|>` in it would make another prompt.
    """
    import_alpaca_eval()
    from alpaca_eval.annotators.pairwise_evaluator import SinglePairwiseAnnotator
    from alpaca_eval.utils import prompt_to_chatml

    class Annotator(SinglePairwiseAnnotator):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings, is_shuffle=False, is_randomize_output_order=False)
            parser: Callable[[Any], list[float]] = vars(self)["fn_completion_parser"]
            self.fn_completion_parser = lambda found: [math.nan] if found is None else parser(found)
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
    return [{**turn, "content": place.sub(lambda found: values[found[0][1:-1]], turn["content"])} for turn in template]
