"""Special tokens that a text spells: told apart from those that a chat template writes, and tokenised as text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any

MARK = "\ufdd0\ufdd7\ufdd3\ufdd5\ufdde\ufdd1"
"""Stands inside of a spelled special token while a template renders it: code points that are never characters."""
_ESCAPED = MARK.encode("ascii", "backslashreplace").decode()  # within JSON
_MARKS = re.compile(f"{MARK}|{re.escape(_ESCAPED)}")


class Tokens:
    """Tokenises texts in which special tokens may be marked as spelled.

    Args:
        tokenizer: a transformers tokenizer.
        split_special_tokens: whether a special token that a text spells is text; if not, it is that token.

    Attributes:
        special: id -> text of every special token, also of those without a name.
    """

    def __init__(self, tokenizer: Any, split_special_tokens: bool) -> None:
        self.tokenizer, self.split = tokenizer, split_special_tokens
        self.special = {int(i): str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special |= {
            int(i): str(token)
            for i, token in zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
            if i is not None
        }
        longest_first = sorted(set(self.special.values()), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def spells(self, value: Any) -> bool:
        """Whether a text, or any text within lists and objects, spells a special token."""
        if isinstance(value, str):
            return self._pattern.search(value) is not None
        if isinstance(value, dict):
            return any(map(self.spells, value.values()))
        return isinstance(value, list | tuple) and any(map(self.spells, value))

    def mark(self, value: Any) -> Any:
        """The same text, lists or object with each spelled special token marked, unless it is to become that token."""
        if not self.split:
            return value
        if isinstance(value, str):
            return self._pattern.sub(lambda found: found[0][0] + MARK + found[0][1:], value)
        if isinstance(value, dict):
            return {key: self.mark(item) for key, item in value.items()}
        return [self.mark(item) for item in value] if isinstance(value, list | tuple) else value

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text; the two sides of a mark are tokenised apart, so that no special token comes of it."""
        pieces = [_MARKS.split(text) if MARK in text or _ESCAPED in text else [text] for text in texts]
        heads = self._batch(piece[0] for piece in pieces)
        return [
            [*head, *(token for piece in tail for token in self._continued(piece))] if tail else head
            for head, (_, *tail) in zip(heads, pieces, strict=True)
        ]

    def _continued(self, text: str) -> list[int]:
        """Token ids of a text that continues another: without the space that some tokenizers put before a text."""
        ids = self._batch(["\n" + text])[0]
        n = len(self._newline)
        return ids[n:] if ids[:n] == self._newline else self._batch([text])[0]

    @cached_property
    def _newline(self) -> list[int]:
        return self._batch(["\n"])[0]

    def _batch(self, texts: Iterable[str]) -> list[list[int]]:
        if not (listed := list(texts)):
            return []
        ids: list[list[int]] = self.tokenizer(
            listed, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
        )["input_ids"]
        return ids
