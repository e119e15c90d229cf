"""A model of the catalogue that is asked which of two responses is better, in a job and without a server."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from halos.errors import HalosError
from halos.evaluate.judging.judgement import TIE, Question
from halos.evaluate.judging.pairwise import Pairwise
from halos.evaluate.judging.settings import Asking, JudgeSlice
from halos.evaluate.judging.verdicts import FIRST, SECOND
from halos.manifest import Manifest
from halos.sample.settings import SamplerSlice
from halos.scoring.answers import CUT_OFF, NOT_UNDERSTOOD, Answer, Conversation
from halos.tokens.template import TOO_LONG, Prompt

HERE = "none: a job of the workflow"
"""Takes the place of a server's address."""
EMPTY, LONG = "empty answer", "longer than the model's context"


class LocalModel:
    """A model that answers questions greedily. Its weights are loaded when the first question comes.

    Args:
        name: its id in the catalogue.
        files: its folder and its manifest.
        batch: questions that are answered side by side.
        backend: library that runs it.
        tensor_parallel: GPUs over which vLLM splits each layer.

    Raises:
        HalosError: there are no such files, the model is not what its manifest says, or has no chat template; or vLLM
            is not installed here, or there are too few GPUs.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        batch: int = 16,
        backend: Literal["transformers", "vllm"] = "transformers",
        tensor_parallel: int = 1,
    ) -> None:
        if len(files) != 2:
            raise HalosError(
                "a judge of kind model needs its model's folder and its manifest: give both to --reward-model"
            )
        from halos.sample.backends import Transformers  # takes seconds to import, as what it needs does
        from halos.sample.prompter import Prompter
        from halos.sample.vllm import FITS, Vllm

        folder, manifest = files
        self.name, made = name, Manifest.read(manifest)
        made.check_links(folder)
        settings = SamplerSlice(seed=0, attention=made.config["attention"], precision=made.config["precision"])
        prompter = Prompter(folder, 0, sys.maxsize, split_special_tokens=True)
        self.template, self.positions, self.tokenizer = prompter.template, prompter.positions, prompter.tokenizer
        arguments = (folder, self.tokenizer, settings, batch)
        self.engine: Transformers | Vllm
        if backend == "vllm":
            self.engine = Vllm(*arguments, FITS, tensor_parallel)
        else:
            self.engine = Transformers(*arguments, longest=1)

    def first_tokens(self, choices: Sequence[str]) -> list[int]:
        """The ids of the tokens with which answers begin.

        Raises:
            HalosError: two begin with the same one.
        """
        ids = [self.tokenizer.encode(choice, add_special_tokens=False)[0] for choice in choices]
        if len({*ids}) < len(ids):
            raise HalosError(f"two of the choices {', '.join(choices)} begin with the same token of {self.name}: take "
                             "others, such as A and B")  # fmt: skip
        return ids

    def answer(self, questions: list[Conversation], longest: int) -> list[Answer]:
        """The answer to each question, as text; one that reaches the limit has its text, and CUT_OFF as its problem.

        Args:
            longest: tokens of the longest answer.
        """

        from halos.sample.backends import Request

        def answers(prompts: list[list[int]]) -> list[Answer]:
            requests = [Request(ids, longest, seed=0) for ids in prompts]
            generated = self.engine.generate(requests, 0.0, 1.0, 0, lambda number: None)
            return [self._text(ids, tokens) for ids, tokens in zip(prompts, generated, strict=True)]

        return self._all(questions, longest, answers)

    def likeliest(self, questions: list[Conversation], number: int) -> list[Answer]:
        """The likeliest first token of the answer to each question, with the log-probabilities of the `number`
        likeliest ones, in OpenAI's form."""

        def answers(prompts: list[list[int]]) -> list[Answer]:
            rows = zip(prompts, self.engine.first_logprobs(prompts, number), strict=True)
            return [_place(ids, map(self.tokenizer.decode, found), found.values()) for ids, found in rows]

        return self._all(questions, 1, answers)

    def choose(self, questions: list[Conversation], choices: Sequence[str]) -> list[Answer]:
        """The likeliest of several answers to each question, with the log-probabilities of all, in OpenAI's form: those
        of the tokens with which they begin, which decide where an answer has to be one of them."""
        chosen = dict(zip(self.first_tokens(choices), choices, strict=True))

        def answers(prompts: list[list[int]]) -> list[Answer]:
            rows = zip(prompts, self.engine.first_logprobs(prompts, [*chosen]), strict=True)
            return [_place(ids, map(chosen.__getitem__, found), found.values()) for ids, found in rows]

        return self._all(questions, 1, answers)

    def _all(self, questions: list[Conversation], longest: int, answers: Any) -> list[Answer]:
        """The answers to all questions, equal ones answered once, the longest first.

        Args:
            longest: tokens of an answer, for which the model's positions have to have room.
            answers: gives the answers to a batch of prompts in token ids.
        """
        limit = min(filter(None, (self.positions.limit, self.engine.room)), default=sys.maxsize) - longest
        prompts = self.template.prompts([[dict(turn) for turn in question] for question in questions], limit)
        cut = [_problem(prompt) for prompt in prompts]
        wanted = {tuple(p.ids) for p, problem in zip(prompts, cut, strict=True) if problem is None and p.ids}
        ordered = sorted(wanted, key=lambda ids: (-len(ids), ids))
        self.engine.expect(max(map(len, ordered), default=0) + longest)
        found: dict[tuple[int, ...], Answer] = {}
        with tqdm(total=len(ordered), desc="ask", unit=" answers", mininterval=1) as bar:
            for start in range(0, len(ordered), self.engine.chunk):
                batch = ordered[start : start + self.engine.chunk]
                found |= zip(batch, answers([list(ids) for ids in batch]), strict=True)
                bar.update(len(batch))
        return [
            Answer(None, problem) if problem is not None else found[tuple(prompt.ids or ())]
            for prompt, problem in zip(prompts, cut, strict=True)
        ]

    def _text(self, prompt: list[int], tokens: list[int]) -> Answer:
        end = next((index for index, token in enumerate(tokens) if token in self.engine.ends), None)
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        problem = EMPTY if not text.strip() else CUT_OFF if end is None else None
        return Answer(text, problem, len(prompt), len(tokens) if end is None else end + 1)


def _problem(prompt: Prompt) -> str | None:
    """Why a question cannot be asked; a conversation whose oldest turns were left out would be another question."""
    return LONG if prompt.problem == TOO_LONG or prompt.dropped_turns else prompt.problem


def _place(prompt: list[int], texts: Iterable[str], logprobs: Iterable[float]) -> Answer:
    """An answer of one token, the first of several with their log-probabilities, the highest first."""
    top = [{"token": text, "logprob": value} for text, value in zip(texts, logprobs, strict=True)]
    return Answer(str(top[0]["token"]), None, len(prompt), 1, logprobs=[{**top[0], "top_logprobs": top}])


class LocalPairwise(Pairwise):
    """A judge that asks a model of the catalogue.

    Args:
        name: of the judge, for messages.
        settings: its slice.
        model: the model.
    """

    def __init__(self, name: str, settings: JudgeSlice, model: LocalModel) -> None:
        assert settings.model is not None
        self.settings, self.model = settings.model, model
        self.top = self.settings.request.get("top_logprobs")
        super().__init__(name, self.settings, settings.max_failures, settings.both_orders)

    @property
    def question(self) -> Question:
        weighed = self.settings.choices or self.top
        return Question(model=self.model.name, server=HERE, temperature=0.0, seed=None,
                        max_tokens=1 if weighed else self.settings.longest_answer,
                        top_logprobs=len(self.settings.choices) or self.top,
                        prompt=self._annotator.template, both_orders=self.both_orders)  # fmt: skip

    def _reading(self, settings: Asking) -> dict[str, Any]:
        if not self.settings.choices:
            return super()._reading(settings)
        read = partial(weighed, choices=self.settings.choices)
        return {"fn_completion_parser": read, "completion_key": "completions_all"}

    def _reply(self, prompts: list[Conversation], again: bool) -> list[Answer]:
        print(f"{self.name} asks {self.model.name} {len(prompts)} questions", file=sys.stderr, flush=True)
        if self.settings.choices:
            return self.model.choose(prompts, self.settings.choices)
        if self.top is not None:
            return self.model.likeliest(prompts, self.top)
        answers = self.model.answer(prompts, self.settings.longest_answer)
        return [self._accepted(answer) for answer in answers]

    def _accepted(self, answer: Answer) -> Answer:
        """An answer, or the reason why it is none: as of a server's."""
        may_be_cut = self.settings.prompt is None  # some annotators ask for a single token
        if answer.text is None or (answer.problem is None and self._understood(answer)):
            return answer
        if answer.problem == CUT_OFF and may_be_cut and self._understood(answer):
            return Answer(answer.text, None, answer.prompt_tokens, answer.completion_tokens)
        return Answer(None, answer.problem or NOT_UNDERSTOOD, answer.prompt_tokens, answer.completion_tokens)


def weighed(completion: dict[str, Any] | None, choices: Sequence[str]) -> list[float]:
    """The verdict between the responses that are shown first and second, by the probabilities of the answers for them.

    Args:
        completion: with the log-probabilities of the choices.
        choices: the answers for the first response, the second and, if there is a third, neither.

    Returns:
        [the mean of 1, 2 and 1.5, each with the probability of its answer among these].
    """
    if completion is None:
        return [math.nan]
    logprobs = {top["token"]: top["logprob"] for top in completion["logprobs"]["content"][0]["top_logprobs"]}
    highest = max(logprobs.values())
    weights = [math.exp(logprobs[choice] - highest) for choice in choices]
    values = (FIRST, SECOND, TIE)
    return [sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights)]
