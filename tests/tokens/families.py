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
        if asked.joined:
            return "joined"
        if asked.lost:
            return "lost"
        whole = self.rendered([*prompt, turn("assistant", response, **(fields or {}))], tools, len(asked.ids))
        if ids == whole:
            return "yes"
        decode = self.tokenizer.decode
        return "yes, apart" if decode(ids) == decode(whole) else f"differs: {decode(ids)!r} {decode(whole)!r}"
