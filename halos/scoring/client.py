"""A client of OpenAI-compatible servers: many calls at once, none paid for twice, no answer lost to a fault."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from tqdm import tqdm

from halos.errors import HalosError
from halos.scoring.answers import CUT_OFF, NOT_UNDERSTOOD, Answer, AnswerCache, Conversation
from halos.scoring.api import MAX_UNUSABLE, Api, Calls, read_key
from halos.scoring.parameters import Parameters

if TYPE_CHECKING:
    from halos.scoring.completions import Endpoint

Accept = Callable[[Answer], bool]
"""Whether an answer can be understood."""


class Client:
    """Asks one model of one server, and keeps its answers.

    Args:
        api: the model.
        calls: how it is called. The cache holds a line for each answer, found by the hash of the whole request, so
            that studies can share a file.
        entry: where the model's settings stand in config.yaml, for messages.

    Raises:
        HalosError: there is no usable key, `base_url` is no address, or the cache cannot be written.
    """

    def __init__(self, api: Api, calls: Calls, entry: str = "its `openai:` settings") -> None:
        if not api.address.startswith(("http://", "https://")):
            raise HalosError(f"base_url {api.address!r} is no address; write it as in http://localhost:8000/v1")
        self.api, self.calls = api, calls
        self._parameters = Parameters(api, entry)
        self._misunderstood = ""
        self._key = read_key(api.server.base_url, api.server.key_variable)
        self._cache = AnswerCache(calls.cache)

    def ask(self, conversations: list[Conversation], accept: Accept = lambda answer: True) -> list[Answer]:
        """One answer for each conversation, in their order.

        A failed call is returned with its problem, and made anew by the next `ask`. Equal conversations are asked
        once. Counts of calls, failures and tokens are printed on stderr.

        Args:
            accept: whether an answer can be understood. One that cannot is asked for again a few times, and is then a
                failure; only understood ones are kept.

        Raises:
            HalosError: no call can succeed: the server cannot be reached, refuses the key, or does not have the model.
                The answers so far are kept.
        """
        keys = [self.api.key(conversation) for conversation in conversations]
        pending = self._pending(conversations, accept)
        answers = {key: self._cache.answers[key] for key in keys if key not in pending}
        spent: Counter[str] = Counter()
        try:
            if pending:
                asyncio.run(self._ask_all(pending, accept, answers, spent))
        finally:
            self._report([answers[key] for key in keys if key in answers], spent)
        return [answers[key] for key in keys]

    def unanswered(self, conversations: list[Conversation], accept: Accept = lambda answer: True) -> list[Conversation]:
        """The different conversations that `ask` would send."""
        return list(self._pending(conversations, accept).values())

    def _pending(self, conversations: list[Conversation], accept: Accept) -> dict[str, Conversation]:
        """The conversations without a kept answer that is understood, by the key of their request."""
        pending: dict[str, Conversation] = {}
        for conversation in conversations:
            key = self.api.key(conversation)
            kept = self._cache.answers.get(key)
            if kept is None or not kept.text or not accept(kept):
                pending[key] = conversation
        return pending

    async def _ask_all(
        self, pending: dict[str, Conversation], accept: Accept, answers: dict[str, Answer], spent: Counter[str]
    ) -> None:
        """Put the answers to `pending` into `answers` as they come, and count calls and tokens in `spent`."""
        from halos.scoring.completions import Endpoint  # openai takes a second, which no other scorer needs

        endpoint = Endpoint(self._parameters, self._key, self.calls.requests_per_minute)
        todo = iter(pending.items())
        bar = tqdm(total=len(pending), desc="ask", unit=" answers", mininterval=1)

        async def work() -> None:
            for key, conversation in todo:
                answers[key] = answer = await self._ask(endpoint, conversation, accept, spent)
                if answer.text is not None:
                    self._cache.add(key, answer)
                bar.update()

        failure: BaseException | None = None
        try:
            async with endpoint, asyncio.TaskGroup() as group:
                for _ in range(min(self.calls.concurrency, len(pending))):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            failure = failures.exceptions[0]
        finally:
            spent["calls"] = endpoint.attempts
            bar.close()
        if failure is not None:  # raised out here it has no context, and a group of errors is no news to the user
            raise failure

    async def _ask(self, endpoint: Endpoint, conversation: Conversation, accept: Accept, spent: Counter[str]) -> Answer:
        """The answer to one conversation, asked again with another seed while it is unusable."""
        tokens: Counter[str] = Counter()
        for asked in range(MAX_UNUSABLE):
            seed = self.api.seed
            reply = await endpoint.complete(conversation, None if seed is None else seed + asked)
            if reply.fatal:
                raise HalosError(reply.fatal)
            answer, unusable = reply.answer, reply.unusable
            for count in (tokens, spent):
                count.update(prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens)
            if answer.text is not None and not accept(answer):
                self._misunderstood = self._misunderstood or answer.text
                answer, unusable = Answer(None, CUT_OFF if reply.cut else NOT_UNDERSTOOD), True
            if not unusable:
                break
        return replace(answer, prompt_tokens=tokens["prompt_tokens"], completion_tokens=tokens["completion_tokens"])

    def _report(self, answers: list[Answer], spent: Counter[str]) -> None:
        problems = Counter(answer.problem for answer in answers if answer.problem)
        reasons = ", ".join(f"{count} {problem}" for problem, count in problems.most_common())
        print(
            f"{self.api.model}: {spent['calls']} calls made, {sum(a.cached for a in answers)} answers from the "
            f"cache, {problems.total()} failed{f' ({reasons})' if reasons else ''}, "
            f"{spent['prompt_tokens']} tokens in, {spent['completion_tokens']} out",
            file=sys.stderr,
        )
        if lost := problems[NOT_UNDERSTOOD]:
            example = " ".join(self._misunderstood.split())[-80:]
            print(f"{lost} answers were not understood, such as one that ends in {example!r}: see what "
                  f"{self._parameters.entry} ask for and can read", file=sys.stderr)  # fmt: skip
        if cut := problems[CUT_OFF]:
            print(f"{cut} answers were cut off at {self.api.max_tokens} tokens: raise max_tokens in "
                  f"{self._parameters.entry}", file=sys.stderr)  # fmt: skip
