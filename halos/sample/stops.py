"""Stop strings: texts that end a response before the model does."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Kept:
    """A response up to the first of its stop strings, which is not part of it.

    Attributes:
        text: without special tokens.
        ids: the ids that spell it; None where the stop string begins within a token, so that none do.
        tokens: number of tokens that hold it.
    """

    text: str
    ids: list[int] | None
    tokens: int


@dataclass(frozen=True)
class Stops:
    """Texts that end a response, looked for in all that a model writes, its special tokens included.

    Both backends ask this class after each token, in place of their own way of stopping: vLLM's needs its own
    tokenizer, that of transformers also looks at the prompt, and they would not always stop at the same token.
    """

    strings: tuple[str, ...]
    tokenizer: Any

    @cached_property
    def _tail(self) -> int:
        """Most tokens that a string which the last one completes is spread over; a tokenizer may swallow a space before
        the first."""
        return max(len(string.encode()) for string in self.strings) + 1

    def reached(self, ids: Sequence[int]) -> bool:
        """Whether the last token of a response completes one of the strings."""
        return self._within(ids[-self._tail :]) and self._within(ids)

    def cut(self, ids: list[int]) -> Kept | None:
        """A response up to the first of the strings, however it goes on; None if it holds none."""
        if not self._within(ids):
            return None
        ids = ids[: bisect_left(range(len(ids)), True, key=lambda n: self._within(ids[:n]))]
        shown = self._decode(ids)
        before = shown[: min(at for string in self.strings if (at := shown.find(string)) >= 0)]
        whole = next(n for n in range(len(ids), -1, -1) if before.startswith(self._decode(ids[:n])))
        rest = before.removeprefix(self._decode(ids[:whole]))
        text = self.tokenizer.decode(ids[:whole], skip_special_tokens=True) + rest
        return Kept(text, None if rest else ids[:whole], whole + bool(rest))

    def _within(self, ids: Sequence[int]) -> bool:
        text = self._decode(ids)
        return any(string in text for string in self.strings)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids)
        return text
