"""Fingerprints of records: what two records are compared by, in some 150 bytes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from halos.data.feedback import Feedback, Turn
from halos.data.normal import normalised
from halos.data.sketch import Bytes, sketch

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
            fields = {name: value for name, value in turn.items() if name not in ("role", "content")}
            parts = (turn["role"], normalised(turn["content"]), json.dumps(fields, sort_keys=True) if fields else "")
            digest.update("\0".join((*parts, "\0")).encode())
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
        record = self.record
        instructions = [normalised(turn["content"]) for turn in record.prompt if turn["role"] in INSTRUCTING]
        fields = record.response_fields or [{}] * len(record.responses)
        responses = sorted(
            normalised(text) + (json.dumps(other, sort_keys=True) if other else "")
            for text, other in zip(record.responses, fields, strict=True)
        )
        rest = json.dumps([instructions, responses, record.tools], sort_keys=True)
        digest = hashlib.blake2b(self.prompt + rest.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    @property
    def draw(self) -> int:
        """64 bits that change with anything in the record, to draw records by."""
        return int.from_bytes(self.record.digest[:8], "little")

    @cached_property
    def prompt_sketch(self) -> Bytes:
        """MinHash sketch of the words of the conversation."""
        return sketch([" ".join(turn["content"] for turn in self._conversation)])

    @cached_property
    def responses_sketch(self) -> Bytes:
        """MinHash sketch of the words of all responses."""
        return sketch(self.record.responses)

    @property
    def _conversation(self) -> list[Turn]:
        return [turn for turn in self.record.prompt if turn["role"] not in INSTRUCTING]
