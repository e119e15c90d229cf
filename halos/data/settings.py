"""`datasets:` of config.yaml: named sources with their options, and how their text is cut to tokens."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, Self, get_type_hints

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PydanticSchemaGenerationError,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

import halos.data.sources  # noqa: F401  # registers them
from halos.data.feedback import Feedback
from halos.data.paths import SPLITS, all_files, by_split
from halos.data.rows import WRONG_PATH, Drop
from halos.errors import HalosError
from halos.registry import SOURCES, suggest
from halos.settings import Label, Positive, Share, Slice, Strict, numbers
from halos.views import VIEWS

VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Source(Strict):
    """A named source, with the options of its function."""

    name: str
    options: dict[str, Any] = Field({}, description="arguments of the source: `python -m halos list sources`")
    limit: Positive | None = Field(None, description="number of its train records, drawn at random; by default all")
    weight: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="its share of the train records beside the other sources' weights"
    )

    @model_validator(mode="after")
    def known(self) -> Source:
        """Refuse an unknown source, or an option that its function does not take."""
        try:
            _, *accepted = inspect.signature(self.function).parameters.values()  # the first is the split
        except HalosError as error:
            raise ValueError(str(error)) from None
        names = [parameter.name for parameter in accepted]
        for option in self.options:
            if option not in names:
                raise ValueError(f"source {self.name} has no option {option!r}{suggest(option, names)}")
        for parameter in accepted:
            if parameter.name in self.options:
                self._check_option(parameter.name)
            elif parameter.default is parameter.empty and parameter.kind not in VARIABLE:
                raise ValueError(f"source {self.name} needs the option {parameter.name!r}")
        if self.limit is not None and self.weight is not None:
            raise ValueError(f"source {self.name} has a limit and a weight; give it one of them")
        path, limit = self.options.get("path"), self.options.get("limit")
        if isinstance(limit, int) and limit < 1:
            raise ValueError(f"source {self.name}: limit is {limit}; give a number of records above 0, or leave it out")
        if isinstance(path, dict) and not (path and set(path) <= set(SPLITS)):
            raise ValueError(f"source {self.name}: {WRONG_PATH}")
        return self

    def _check_option(self, name: str) -> None:
        """Refuse an option's value that is not of the type that its function declares."""
        value = self.options[name]
        try:
            kind = get_type_hints(self.function, include_extras=True)[name]
            TypeAdapter(kind).validate_json(json.dumps(value, default=str), strict=True)
        except ValidationError as error:
            said = error.errors(include_url=False)[0]["msg"]
            raise ValueError(f"source {self.name}: {name} is {value!r}; {said[0].lower()}{said[1:]}") from None
        except (KeyError, NameError, TypeError, PydanticSchemaGenerationError):
            return  # a plugin may declare no type, or one that only it knows

    @property
    def function(self) -> Callable[..., Iterable[Feedback | Drop]]:
        """The registered function: (split, **options) -> records and drops."""
        return SOURCES[self.name]

    @property
    def files(self) -> list[str]:
        """The local files that it reads: those of its `path` option."""
        path = self.options.get("path")
        return [] if path is None or self._is_hub_name else all_files(path)

    @property
    def on_hub(self) -> bool:
        """Whether it reads the hub: its function takes a `revision`, and `path` names no file to read instead."""
        takes_commit = "revision" in inspect.signature(self.function).parameters
        return takes_commit and (self.options.get("path") is None or self._is_hub_name)

    @property
    def _is_hub_name(self) -> bool:
        """Whether its `path` is a name on the hub."""
        return getattr(self.function, "path_is_hub_name", False)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that it may have records for: those that `path` or `split` names, else those of its function. Of
        the latter, rows that are marked as of validation decide whether it has this split (`local`, `hub`)."""
        path = self.options.get("path")
        places = (path if path is None or self._is_hub_name else by_split(path), self.options.get("split"))
        if named := [place for place in places if isinstance(place, dict)]:
            return tuple(split for split in SPLITS if all(split in place for place in named))
        splits: tuple[str, ...] = getattr(self.function, "splits", ("train", "test"))
        return splits

    @property
    def holds_out(self) -> bool:
        """Whether it is to have a test split."""
        return "test" in self.splits and self.options.get("test_fraction") != 0

    @property
    def divided(self) -> bool:
        """Whether its files are divided into train and test by `test_fraction`."""
        named = any(isinstance(self.options.get(option), dict) for option in ("path", "split"))
        takes_fraction = "test_fraction" in inspect.signature(self.function).parameters
        return takes_fraction and "path" in self.options and not named and self.options.get("test_fraction") != 0

    def open(self, split: str, commit: str | None = None) -> Iterable[Feedback | Drop]:
        """The records and drops of a split.

        Args:
            split: "train", "validation" or "test".
            commit: the commit of the hub to read, in place of its `revision` option.
        """
        options = self.options if commit is None else {**self.options, "revision": commit}
        return self.function(split, **options)


def origin(records: Iterable[Feedback | Drop]) -> dict[str, str]:
    """{"hub": name, "commit": sha} of the records of an opened source that is on the hub; empty for any other."""
    commit: dict[str, str] = getattr(records, "origin", {})
    return commit


def _alike(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    """Refuse weights for some sources alone."""
    if 0 < sum(source.weight is not None for source in sources) < len(sources):
        raise ValueError("give each source a weight, or none; for a number of records of one, give it a limit")
    return sources


def _conversations(value: Any) -> Any:
    """Refuse a mistake in one sentence, where pydantic would give one for each member of the union."""
    value = numbers(value)
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if value is not None and not is_number and not (isinstance(value, float) and 0 < value < 1):
        raise ValueError(f"{value!r} is neither a number of conversations nor a share below 1")
    return value


Sources = Annotated[tuple[Source, ...], Field(min_length=1), AfterValidator(_alike)]
Duplication = Literal["none", "exact", "near"]


Conversations = Annotated[int | float | None, BeforeValidator(_conversations)]
"""A number of conversations, a share of them, or the default."""


class Sourced(Strict):
    """The sources of a dataset's splits."""

    sources: Sources
    validation_prompts: Conversations = Field(
        None,
        description="conversations of the validation split, on which trainings are evaluated: a number or, below 1, a "
        "share of those of train, from which they are cut by a hash; 0 for none; by default 256, or a tenth of train's "
        "where that is less. Sources with a validation split of their own give that instead",
    )
    test_sources: tuple[Source, ...] = Field(
        (),
        exclude_if=lambda sources: not sources,
        description="sources whose test splits are the test split, in place of those of `sources`",
    )

    @property
    def all_sources(self) -> tuple[Source, ...]:
        """Those of train, then those of test alone."""
        return (*self.sources, *self.test_sources)

    def sources_of(self, split: str) -> tuple[Source, ...]:
        """The sources that are read for a split; those that have no such split add nothing."""
        return self.test_sources if split == "test" and self.test_sources else self.sources

    def may_have(self, split: str) -> bool:
        """Whether some source may have a split, or train, from which that of validation is cut."""
        given = {split, "train"} if split == "validation" else {split}
        wanted = split != "validation" or self.validation_prompts != 0
        return wanted and any(not given.isdisjoint(source.splits) for source in self.sources_of(split))

    @model_validator(mode="after")
    def no_row_is_lost(self) -> Self:
        """Refuse sources of one split whose files are divided into both: a part of them would be read by nothing."""
        for source in self.test_sources:
            if "test" not in source.splits:
                raise ValueError(f"test_sources: source {source.name} has no test split; name one that has")
            if source.divided:
                raise ValueError(
                    f"test_sources: source {source.name} divides its files by test_fraction; name them for the test "
                    "split, as in `path: {test: FILE}`"
                )
            if source.limit or source.weight:
                raise ValueError(
                    f"test_sources: limit and weight of source {source.name} are for train: take them out; every "
                    "record of a test split is kept"
                )
        for source in self.sources if self.test_sources else ():
            if source.divided:
                raise ValueError(
                    f"source {source.name} divides its files by test_fraction, and the test split is that of "
                    "test_sources; give it `test_fraction: 0`"
                )
        return self


class Dataset(Sourced):
    """One or more sources mixed, and how their text is cut to tokens."""

    drop_duplicates: Duplication = Field(
        "none",
        description="records of train to leave out: exact (prompt and responses of an earlier one), or near ones, too",
    )
    seed: int = Field(0, ge=0, description="of the draws of records by `limit` or `weight`")
    max_length: Positive = Field(1250, description="tokens of prompt and response together")
    max_prompt_length: Positive = Field(625, description="tokens of the prompt; oldest turns are dropped first")
    eval_examples: Positive = Field(256, description="validation prompts in the fixed evaluation subset of training")
    keep_desirable: Share = Field(1.0, description="share of the desirable responses kept, of train")
    keep_undesirable: Share = Field(1.0, description="share of the undesirable responses kept, of train")
    split_special_tokens: bool = Field(
        True, description="text that spells a special token stays text; false: it becomes that control token"
    )
    views: tuple[str, ...] = Field(
        (), description="views of plugins that it has beside those of the package; a stage's loss may read them"
    )
    label: Label = Field(None, description="name in tables and figures")

    @field_validator("views")
    @classmethod
    def of_plugins(cls, views: tuple[str, ...]) -> tuple[str, ...]:
        """Views that no plugin has registered are refused."""
        own = [name for name in VIEWS if VIEWS.plugin(name)]
        for name in views:
            if name not in own:
                raise ValueError(
                    f"every dataset has the view {name!r}: take it out"
                    if name in VIEWS
                    else f"no plugin has a view {name!r}{suggest(name, own)}"
                )
        return views

    @model_validator(mode="after")
    def room_for_a_response(self) -> Dataset:
        """Refuse a prompt length that leaves no token for a response."""
        if self.max_prompt_length >= self.max_length:
            raise ValueError("max_prompt_length must be below max_length, or no token is left for a response")
        return self


class DataSlice(Slice, Sourced):
    """The part of the catalogue that makes one dataset's feedback records."""

    dataset: str
    drop_duplicates: Duplication = "none"
    seed: int = 0

    @property
    def draws(self) -> bool:
        """Whether some sources give a part of their records alone."""
        return any(source.limit is not None or source.weight is not None for source in self.sources)

    @property
    def leaves_out(self) -> bool:
        """Whether records that can be used may be left out of train."""
        return self.draws or self.drop_duplicates != "none"
