"""What judges and labellers share in config.yaml: a verifier, a reward model, or a model behind a server."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

import halos.data.sources  # noqa: F401  # registers the verifiers
from halos.registry import VERIFIERS, suggest
from halos.settings import Label, Positive, Strict


class Scorer(Strict):
    """What gives a score to a response: the kinds that judges and labellers share."""

    kind: Literal["verifier", "reward_model"]
    verifier: str | None = Field(
        None, description="for kind verifier, a registered one: a program that scores a response to a prompt"
    )
    reward_model: str | None = Field(
        None,
        description="for kind reward_model: a method that ends in one (sft-rm), of the cell's dataset and model, "
        "or a folder, with a / in its name, of a sequence classifier with one label",
    )
    seed: int = Field(1, ge=0, description="with a method as reward_model: its seed, the same for all cells")
    label: Label = Field(None, description="name in tables and figures")

    @model_validator(mode="after")
    def known(self) -> Scorer:
        what = f"a {type(self).__name__.lower()} of kind {self.kind}"
        if given := sorted(self.foreign & self.model_fields_set):
            which = "" if self.folder is None else ", which names a folder,"
            raise ValueError(f"{what}{which} has no {' and no '.join(given)}: take that out")
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
    def method(self) -> str | None:
        """The method whose reward model scores."""
        return None if self.folder is not None else self.reward_model

    @property
    def foreign(self) -> set[str]:
        """Keys that mean nothing to this kind."""
        own = {self.kind} | ({"seed"} if self.kind == "reward_model" and self.folder is None else set())
        return {"verifier", "reward_model", "openai", "seed"} - own


INSTRUCTIONS = """\
You rate responses of an assistant. Rate how well the response below ends its conversation, from {low} to {high}: is \
it helpful, correct and concise? Answer with one line, `Score: N`, and nothing else."""


class Server(Strict):
    """OpenAI, or any server that speaks its API, and how it is called."""

    base_url: str | None = Field(None, description="address of the server, up to /v1; by default OpenAI's own")
    key_variable: str = Field("OPENAI_API_KEY", description="the environment variable that holds the key")
    seed: int | None = 0
    timeout: float = Field(60.0, gt=0, description="seconds for one attempt")
    attempts: Positive = Field(6, description="of one call, the first included")


class OpenAI(Server):
    """A model behind OpenAI's API that is asked to score a response."""

    model: str
    instructions: str = Field(INSTRUCTIONS, description="system message; {low} and {high} are the ends of the scale")
    scale: tuple[float, float] = (1.0, 10.0)
    temperature: float = Field(0.0, ge=0)
    max_tokens: Positive = Field(64, description="of an answer")
