"""A conversation as text, for a model that judges how it goes on."""

from __future__ import annotations

import json

from halos.data.feedback import Turn


def turn_text(turn: Turn) -> str:
    """A turn below its role, with the tools that it calls as JSON."""
    calls = [json.dumps(call, ensure_ascii=False) for call in turn.get("tool_calls") or []]
    return "\n".join([f"[{turn['role']}]", *([turn["content"]] if turn["content"] or not calls else []), *calls])
