"""Small tokenizers of many model families, and what becomes of conversations in their chat templates.

`python -m tests.tokens.families` writes the table of docs/templates.md anew.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import trl
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from halos.data.feedback import Turn
from halos.errors import HalosError
from halos.tokens.chat import TEMPLATES, dated
from halos.tokens.template import Template

PUBLISHED = Path(trl.__file__).parent / "chat_templates"
PAGE = Path(__file__).parents[2] / "docs/templates.md"
FILES = {path.stem: path for folder in (PUBLISHED, TEMPLATES) for path in sorted(folder.glob("*.jinja"))}
BOS_EOS = {
    "cohere": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "gemma": ("<bos>", "<eos>"),
    "diffusion_gemma": ("<bos>", "<eos>"),
    "glm4moe": (None, "<|endoftext|>"),
    "gptoss": ("<|startoftext|>", "<|return|>"),
    "idefics3": ("<|begin_of_text|>", "<end_of_utterance>"),
    "lfm2": ("<|startoftext|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>"),
    "llava_next": ("<s>", "</s>"),
    "muse": ("<|begin_of_text|>", "<|end_of_text|>"),
    "nemotron": ("<s>", "<|im_end|>"),
    "phi3": ("<s>", "<|endoftext|>"),
    "qwen": (None, "<|endoftext|>"),
    "smolvlm": ("<|im_start|>", "<end_of_utterance>"),
    "archangel": ("<s>", "</s>"),
    "turns": (None, "<|end|>"),
    "chatml": (None, "<|im_end|>"),
    "llama-2": ("<s>", "</s>"),
    "llama-3": ("<|begin_of_text|>", "<|end_of_text|>"),
    "mistral": ("<s>", "</s>"),
    "zephyr": ("<s>", "</s>"),
}
"""Beginning of a template's name -> the tokens that its models' tokenizers name bos and eos."""
SPECIAL = re.compile(
    r"<\|[\w]+\|>|<\|\"\|>|<\|\w+>|<\w+\|>|<｜[^｜]+｜>|<(?:start|end)_of_\w+>|<image>|<sop>|\[gMASK\]|\[/?INST\]|</?s>"
)
PLAIN = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
"""Tokens that are added to vocabularies without being special."""
CORPUS = [
    "What is two and two? The answer is four, and that is all.\n\nassistant\nuser\nsystem\nmodel\nAdd the numbers.\n",
    "<think>\n\n</think>\n\nThe user asks for a sum.\n\n\n",
]


WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Where texts are split into words, about as Llama 3's and Qwen's tokenizers do."""


@cache
def _words() -> str:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS * 3, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer.to_str()


def tokenizer_of(name: str, text: str | None = None, **special: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a template and all tokens that look special in it.

    Args:
        name: of the template, whose beginning tells its bos and eos.
        text: another template than the one of that name.
        special: `bos_token` and `eos_token`, where they are others.
    """
    text = FILES[name].read_text() if text is None else text
    family = max((f for f in BOS_EOS if name.startswith(f)), key=len)
    bos, eos = BOS_EOS[family]
    words = Tokenizer.from_str(_words())
    found = sorted({*SPECIAL.findall(text), *(t for t in (bos, eos) if t)})
    words.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in found])
    words.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN])
    names = {k: v for k, v in {"bos_token": bos, "eos_token": eos, **special}.items() if v}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    tokenizer.chat_template = text
    return tokenizer


def turn(role: str, content: str, **fields: Any) -> Turn:
    return {"role": role, "content": content, **fields}


SYSTEM, USER = turn("system", "Answer at once."), turn("user", "What is two and two?")
SEVERAL = [USER, turn("assistant", "It is four."), turn("user", "And three more?")]
ANSWER = "The answer is four."
THOUGHT = "<think>\nThe user asks for a sum.\n</think>\n\nThe answer is four."
REASONING = {"reasoning_content": "The user asks for a sum."}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer", "description": "one"}}},
    },
}
CALL = {"type": "function", "id": "call00001", "function": {"name": "add", "arguments": {"a": 2}}}
CALLED = [USER, turn("assistant", "", tool_calls=[CALL]), turn("tool", "4", name="add", tool_call_id="call00001")]


@dataclass
class Family:
    """A template with a tokenizer of its kind."""

    name: str
    tokenizer: PreTrainedTokenizerFast = field(init=False)

    def __post_init__(self) -> None:
        self.tokenizer = tokenizer_of(self.name)

    @cached_property
    def template(self) -> Template:
        return Template(self.tokenizer)

    def rendered(self, turns: list[Turn], tools: list[dict[str, Any]] | None, before: int) -> list[int]:
        """Token ids of a conversation as transformers renders it, up to the end of its last turn.

        Args:
            before: tokens of the prompt, within which no turn's end is looked for.
        """
        if self.template._chat.parts:
            turns = [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in turns]
        text = self.tokenizer.apply_chat_template(
            turns, chat_template=dated(self.tokenizer.chat_template), tools=tools, tokenize=False
        )
        ids: list[int] = self.tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"]
        if self.template.end in ids[before:]:
            return ids[: ids.index(self.template.end, before) + 1]
        return ids if SPECIAL.fullmatch(self.tokenizer.decode(ids[-1:])) else [*ids, self.template.end]

    def outcome(
        self,
        prompt: list[Turn],
        response: str,
        tools: list[dict[str, Any]] | None = None,
        fields: dict[str, Any] | None = None,
    ) -> str:
        """What becomes of a conversation: `yes` where its tokens are the template's own, else what differs."""
        try:
            [asked] = self.template.prompts([prompt], 10_000, [tools or []])
        except HalosError as error:
            return f"refused: {error}"
        [answer] = self.template.responses([response], fields=[fields or {}])
        if asked.ids is None or answer.ids is None:
            return f"refused: {asked.problem or answer.problem}"
        ids = [*asked.ids, *answer.ids]
        if asked.joined:  # the same with the system turn's text before the first question
            first = f"{prompt[0]['content']}\n\n{prompt[1]['content']}"
            prompt = [turn("user", first), *prompt[2:]]
        whole = self.rendered([*prompt, turn("assistant", response, **(fields or {}))], tools, len(asked.ids))
        decode = self.tokenizer.decode
        if ids == whole:
            return "joined" if asked.joined else "yes"
        if decode(ids) == decode(whole):
            return "apart"
        rest = self.tokenizer(response.removeprefix(self.template.thought), add_special_tokens=False)["input_ids"]
        if self.template.thought and ids == [*asked.ids, *rest, self.template.end]:
            return "continued"
        return f"differs: {decode(ids)!r}, not {decode(whole)!r}"

    @cached_property
    def outcomes(self) -> dict[str, str]:
        """What becomes of each kind of conversation."""
        plain = self.outcome([USER], ANSWER)
        answer, reasoning = (ANSWER, {}) if not plain.startswith("refused") else (THOUGHT, REASONING)
        return {
            "plain": plain,
            "one": self.outcome([USER], answer),
            "system": self.outcome([SYSTEM, USER], answer),
            "several": self.outcome(SEVERAL, answer),
            "system and several": self.outcome([SYSTEM, *SEVERAL], answer),
            "documents": self.outcome([USER], answer, [TOOL]),
            "calls": self.outcome([USER], "", [TOOL], {"tool_calls": [CALL], **reasoning}),
            "results": self.outcome(CALLED, answer, [TOOL]),
            "thought": self.outcome([USER], THOUGHT),
            "field": self.outcome([USER], ANSWER, fields=REASONING),
        }


def _short(found: dict[str, str], kinds: dict[str, str]) -> str:
    """Outcomes of several kinds of conversations in a word, or one for each kind."""
    words = {label: found[kind].split(":")[0] for kind, label in kinds.items()}
    if len(set(words.values())) == 1:
        return words[next(iter(words))]
    return ", ".join(f"{label}: {word}" for label, word in words.items())


@cache
def family_of(name: str) -> Family:
    return Family(name)


def _row(name: str) -> str:
    family = family_of(name)
    found, template = family.outcomes, family.template
    notes = []
    if template.thought:
        notes.append(f"prompts end with `{template.thought.strip()}`")
        if found["plain"].startswith("refused"):
            notes.append("a response without reasoning is refused")
    if template.lead.strip():
        notes.append(f"writes `{template.lead.encode('unicode_escape').decode()}` before a plain response")
    columns = [
        _short(found, {"system": "one turn", "system and several": "several"}),
        _short(found, {"one": "one", "several": "several"}),
        _short(found, {kind: kind for kind in ("documents", "calls", "results")}),
        _short(found, {"thought": "in the text", "field": "in a field"}),
        f"`{family.tokenizer.decode([template.end])}`",
        "; ".join(notes),
    ]
    return " | ".join(column.replace("|", "\\|") for column in columns)


def table() -> str:
    """The table of docs/templates.md. Templates with the same outcomes, in a row of the same name, share a line."""
    lines: dict[str, list[str]] = {}
    for name in FILES:
        lines.setdefault(f"{name.removesuffix('_training')}\n{_row(name)}", []).append(name)
    rows = [f"| {', '.join(f'`{n}`' for n in names)} | {key.partition(chr(10))[2]} |" for key, names in lines.items()]
    return "\n".join([HEAD, *rows]) + "\n"


HEAD = """| template | system turn | turns | tools | reasoning | ends with | notes |
|---|---|---|---|---|---|---|"""


def written() -> str:
    """docs/templates.md with the table as it is now."""
    return PAGE.read_text().partition(HEAD)[0] + table()


if __name__ == "__main__":
    PAGE.write_text(written())
