"""The part of `judges:` and `labellers:` in config.yaml that is the same: what scores, and how a server is called."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, model_validator

import halos.data.sources  # noqa: F401  # registers the verifiers
from halos.registry import VERIFIERS, suggest
from halos.settings import Label, Positive, Settings, Strict

_OWN = {"model", "messages", "seed", "temperature", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs"}
"""Fields of a request that are settings, or follow from them."""
_UNREAD = {"stream", "stream_options", "n"}
"""Fields with which the reply is no single answer."""


def _extra_body(fields: dict[str, Any]) -> dict[str, Any]:
    """Refuses what is no further field of a request.

    Raises:
        ValueError: naming the field.
    """
    if own := sorted(_OWN & set(fields)):
        raise ValueError(f"{' and '.join(own)} cannot be in extra_body: use the settings beside it")
    if unread := sorted(_UNREAD & set(fields)):
        raise ValueError(f"{' and '.join(unread)} cannot be in extra_body: each request gets one answer, in one piece")
    try:
        return dict(json.loads(json.dumps(fields, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"extra_body holds what JSON cannot ({error}): put quotes around dates, for one") from None


def check_pattern(pattern: str | None) -> str | None:
    """Refuses a regular expression that does not say which part of an answer counts.

    Raises:
        ValueError: it is no regular expression, or has not exactly one group.
    """
    try:
        groups = 1 if pattern is None else re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error}): correct it") from None
    if groups != 1:
        raise ValueError(f"{pattern!r} has {groups} groups: put exactly one pair of ( ) around the part that counts, "
                         "and write others as (?: )")  # fmt: skip
    return pattern


Pattern = Annotated[str | None, AfterValidator(check_pattern)]
"""A regular expression with one group."""


class Server(Strict):
    """A server that speaks OpenAI's API, and how it is called."""

    base_url: str | None = Field(None, description="address of the server, up to /v1; by default OpenAI's own")
    key_variable: str = Field("OPENAI_API_KEY", description="the environment variable that holds the key")
    seed: int | None = Field(0, description="sent with each request; null sends none")
    extra_body: Annotated[Settings, AfterValidator(_extra_body)] = Field(
        {}, description="further fields of each request, as the server knows them: { reasoning_effort: low }"
    )
    timeout: float = Field(60.0, gt=0, description="seconds for one attempt of a call")
    attempts: Positive = Field(6, description="attempts of one call, the first included")


class Scorer(Strict):
    """A scorer of responses: a verifier, a reward model, or a model behind a server that is asked."""

    noun: ClassVar[str] = "scorer"
    """The entry's name in messages."""

    kind: str
    verifier: str | None = Field(
        None, description="for kind verifier: the name of a registered program that scores a response to a prompt"
    )
    reward_model: str | None = Field(
        None,
        description="for kind reward_model: a method that ends in a reward model (sft-rm), of the cell's dataset and "
        "model; the id of an entry of models that holds one; or its folder, with a / in its name",
    )
    openai: Server | None = Field(None, description="for kind openai: the model that is asked")
    seed: int = Field(1, ge=0, description="with a method as reward_model: its seed, the same for all cells")
    label: Label = Field(None, description="name in tables and figures")

    @model_validator(mode="after")
    def known(self) -> Scorer:
        what = f"a {self.noun} of kind {self.kind}"
        if given := sorted(self._of_other_kinds() & self.model_fields_set):
            folder = "" if self.folder is None else ", which names a folder,"
            raise ValueError(f"{what}{folder} has no {' and no '.join(given)}: take that out")
        if getattr(self, self.kind) is None:
            raise ValueError(f"{what} names one: give it `{self.kind}:`")
        if self.verifier is not None and self.verifier not in VERIFIERS:
            raise ValueError(f"unknown verifier {self.verifier!r}{suggest(self.verifier, VERIFIERS)}")
        return self

    @property
    def folder(self) -> Path | None:
        """The folder of a reward model from elsewhere."""
        return Path(self.reward_model) if self.reward_model is not None and "/" in self.reward_model else None

    @property
    def files(self) -> list[str | Path | None]:
        """The local files and folders that it reads, besides those of the study."""
        return [self.folder]

    @property
    def named(self) -> str | None:
        """The method whose reward model scores, or the id of the entry of `models:` that is one, or that is asked."""
        return None if self.folder is not None else self.reward_model

    def _of_other_kinds(self) -> set[str]:
        """Fields that only other kinds have."""
        has_seed = self.kind == "reward_model" and self.folder is None
        return {"verifier", "reward_model", "openai", "seed"} - {self.kind} - ({"seed"} if has_seed else set())

    @property
    def foreign(self) -> set[str]:
        """Fields that are not read with these settings: the slice leaves them out."""
        return self._of_other_kinds()


INSTRUCTIONS = """\
You rate responses of an assistant. Rate how well the response below ends its conversation, from {low} to {high}: is \
it helpful, correct and concise? Answer with one line, `Score: N`, and nothing else."""


class OpenAI(Server):
    """A model behind OpenAI's API that is asked to score a response."""

    model: str = Field(description="its name on the server")
    instructions: str = Field(INSTRUCTIONS, description="system message; {low} and {high} are the ends of the scale")
    scale: tuple[float, float] = Field((1.0, 10.0), description="lowest and highest score")
    pattern: Pattern = Field(
        None,
        description="a regular expression whose one group holds the score, in its last match; by default `Score: N` "
        "and its like are understood. Thoughts, as in <think>, are left out first",
    )
    temperature: float | None = Field(0.0, ge=0, description="of sampling; null sends none")
    max_tokens: Positive = Field(64, description="longest answer, in tokens, thoughts included")

    @model_validator(mode="after")
    def rising(self) -> OpenAI:
        if self.scale[0] >= self.scale[1]:
            raise ValueError(f"scale: {self.scale[0]:g} is not below {self.scale[1]:g}: give the lowest score first")
        return self
