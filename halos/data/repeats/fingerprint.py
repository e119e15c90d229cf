"""Fingerprints of records: what two records are compared by, in some 150 bytes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from halos.data.feedback import Feedback, Turn
from halos.data.normal import normalised
from halos.data.rows import split_key

INSTRUCTING = ("system", "developer")
"""Roles of turns that are not part of the conversation itself: many conversations share them."""


@dataclass(frozen=True)
class Fingerprint:
    """A record as it is compared with others: by normalised texts (halos.data.normal), without its labels."""

    record: Feedback

    @cached_property
    def openings(self) -> tuple[bytes, ...]:
        """16 bytes for each part of the prompt from its beginning to a turn that a response can follow, shortest first;
        the last is the whole prompt. System turns are left out."""
        digest, found = hashlib.blake2b(digest_size=16), []
        for turn in self._conversation:
            digest.update(
                "\0".join((turn["role"], normalised(turn["content"]), _json(_other_fields(turn)), "\0")).encode()
            )
            if turn["role"] in ("user", "tool"):
                found.append(digest.copy().digest())
        return tuple(found)

    @property
    def prompt(self) -> bytes:
        """16 bytes that are equal for equal prompts."""
        return self.openings[-1]

    @property
    def content(self) -> int:
        """64 bits that are equal for records of an equal prompt, system turns and tools included, and the same
        responses in whichever order."""
        record, digest = self.record, hashlib.blake2b(self.prompt, digest_size=8)
        texts = list(map(normalised, record.responses))
        if record.response_fields:
            texts = [text + _json(other) for text, other in zip(texts, record.response_fields, strict=True)]
        instructions = [normalised(turn["content"]) for turn in record.prompt if turn["role"] in INSTRUCTING]
        digest.update("\0".join((*sorted(texts), "\0", *instructions, _json(record.tools))).encode())
        return int.from_bytes(digest.digest(), "little")

    @property
    def group(self) -> int:
        """64 bits that are equal for records that no two splits may share, as those of one conversation."""
        return int(split_key(self.record.prompt, self.record.group)[:16], 16)

    @property
    def draw(self) -> int:
        """64 bits that change with anything in the record, to draw records by."""
        return int.from_bytes(self.record.digest[:8], "little")

    @property
    def conversation(self) -> list[str]:
        """The texts of the prompt, and the other fields of its turns, such as calls of tools, without system turns."""
        return [text for turn in self._conversation for text in (turn["content"], _json(_other_fields(turn)))]

    @property
    def responses(self) -> list[str]:
        """The texts of the responses, and the other fields of their turns."""
        return [*self.record.responses, *map(_json, self.record.response_fields)]

    @property
    def _conversation(self) -> list[Turn]:
        return [turn for turn in self.record.prompt if turn["role"] not in INSTRUCTING]


def _other_fields(turn: Turn) -> Turn:
    return {name: value for name, value in turn.items() if name not in ("role", "content")}


def _json(content: object) -> str:
    """JSON of something, whatever the order of its keys; no text for nothing."""
    return json.dumps(content, sort_keys=True) if content else ""
