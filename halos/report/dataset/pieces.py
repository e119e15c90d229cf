"""Tokens as text: the pieces of a sequence that a reader sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

CONTROLS: dict[int, int | str] = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"},
    **{code: f"⟨U+{code:04X}⟩" for code in (*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))},
    ord("\n"): "↵\n",
}
"""Characters that cannot be seen, are not allowed in HTML, or turn the direction of what follows, made visible."""


@dataclass(frozen=True)
class Piece:
    """Text of one token, or of the few that make up one character.

    Attributes:
        ids: the tokens.
        text: their text; None where they are a part of a character and the rest is missing.
        kind: "", "special" or "end" (of turn).
    """

    ids: tuple[int, ...]
    text: str | None
    kind: str = ""

    @property
    def shown(self) -> str:
        """The text with line breaks and control characters made visible."""
        return (self.text or "").translate(CONTROLS)


def pieces(tokenizer: Any, parts: Iterable[np.ndarray], end: int) -> Iterator[list[Piece]]:
    """The pieces of each part of a sequence, which in their order make up all of its tokens.

    Args:
        tokenizer: a transformers tokenizer.
        parts: (n,) token ids each, that follow one another: a prompt and its response.
        end: id of the end-of-turn token.
    """
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}

    def text_of(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    before: list[int] = []  # the piece before: some decoders leave out a space where a text begins
    for ids in parts:
        of_part: list[Piece] = []
        waiting: list[int] = []
        for token in ids.tolist():
            if waiting and token in special:
                of_part.append(Piece(tuple(waiting), None))
                before, waiting = [], []
            waiting.append(token)
            text = text_of(before + waiting)[len(text_of(before)) :]
            # a replacement character that is in the data itself has tokens of its own
            if text.endswith("\ufffd") and tokenizer(text, add_special_tokens=False)["input_ids"] != waiting:
                continue
            kind = "end" if waiting == [end] else "special" if token in special else ""
            of_part.append(Piece(tuple(waiting), text, kind))
            before, waiting = waiting, []
        if waiting:
            of_part.append(Piece(tuple(waiting), None))
            before = []
        yield of_part
