"""Chat templates as text: one of several named ones, a fixed date, defaults of its variables, and rendering."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import date
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from halos.data.feedback import Turn
from halos.errors import HalosError

TEMPLATES = Path(__file__).parent / "templates"
DATE = "2024-07-26"
"""The day that templates show as today's, unless `template_args.date` names another: prompts are the same tomorrow."""
RESERVED = frozenset(
    ["messages", "add_generation_prompt", "documents", "strftime_now", "raise_exception", "namespace", "range", "loop"]
    + [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]
)
"""Variables of a template that are not set by `template_args`."""
_STRFTIME = "macro strftime_now("
_DIRECTIVES = [f"%{pad}{letter}" for letter in "dmBbYyHMSIpAaj" for pad in ("-", "")]


class Refused(Exception):
    """A chat template cannot show a conversation; the message says why, in few words."""


def read_template(name: str) -> str:
    """The text of a chat template: a name in halos/tokens/templates, or the path of a .jinja file.

    Raises:
        HalosError: there is no such template.
    """
    for path in (TEMPLATES / f"{name}.jinja", Path(name)):
        if path.is_file():
            return path.read_text()
    known = ", ".join(sorted(p.stem for p in TEMPLATES.glob("*.jinja")))
    raise HalosError(f"there is no chat template {name!r}; name one of {known}, or the path of a .jinja file")


def one_template(chat_template: str | dict[str, str] | None) -> str:
    """The chat template of a tokenizer as one text; of named ones `tool_use` is for tools, `default` for all else.

    Raises:
        HalosError: there is none, or several are named and none of them `default`.
    """
    if not chat_template:
        raise HalosError("the tokenizer has no chat template; name one as `template:` in the model's entry")
    if isinstance(chat_template, str):
        return chat_template
    if "default" not in chat_template:
        names = ", ".join(sorted(chat_template))
        raise HalosError(f"none of the tokenizer's chat templates ({names}) is named default; name one as `template:`")
    default, with_tools = chat_template["default"], chat_template.get("tool_use")
    if with_tools is None:
        return default
    # a newline at the end of a template is not shown, but inside of a block it would be
    with_tools, default = with_tools.removesuffix("\n"), default.removesuffix("\n")
    return f"{{% if tools %}}\n{with_tools}{{% else %}}\n{default}{{% endif %}}"


def dated(text: str, day: str = DATE) -> str:
    """A chat template for which it is always the same day; unchanged if it does not ask for the day or has one."""
    if "strftime_now" not in text or _STRFTIME in text:
        return text
    at = date.fromisoformat(day)
    # strftime's own %-d is not known everywhere
    values = [(d, at.strftime(d.replace("-", "")).lstrip("0" if "-" in d else "") or "0") for d in _DIRECTIVES]
    filters = "".join(f" | replace({json.dumps(d)}, {json.dumps(value)})" for d, value in values)
    return _before(f"{{% {_STRFTIME}format) %}}{{{{ format{filters} }}}}{{% endmacro %}}", text)


def with_arguments(text: str, arguments: dict[str, Any]) -> str:
    """A chat template with defaults for its variables, so that whatever renders it shows the same text.

    Args:
        text: the template.
        arguments: variable -> JSON value; `date` is the day that it shows as today's.

    Raises:
        HalosError: the template does not read one of the variables.
    """
    if not arguments:
        return dated(text)
    known = variables(text)
    arguments = dict(arguments)
    day = arguments.pop("date", None)
    if day is not None and "strftime_now" not in text:
        if "date_string" not in known:
            raise HalosError("template_args.date: the chat template shows no date; take it out")
        arguments.setdefault("date_string", date.fromisoformat(day).strftime("%d %b %Y"))
    for name in arguments:
        if name not in known:
            reads = ", ".join(sorted(known - RESERVED)) or "none"
            raise HalosError(f"template_args.{name}: the chat template has no such variable (it reads {reads})")
    text = dated(text, day or DATE)
    for name, value in arguments.items():
        test = f"{{% if {name} is not defined or {name} is none %}}"
        text = _before(f"{test}{{% set {name} = {_literal(value)} %}}{{% endif %}}", text)
    return text


def _before(block: str, text: str) -> str:
    """A template with a block in front, which adds no output: the newline after it is not shown, and what follows is
    at the beginning of a line as before."""
    return block + "\n" + text


def _literal(value: Any) -> str:
    """A JSON value as the template language writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


class _Generation(Extension):
    """Reads the tag that transformers adds to the template language."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def variables(text: str) -> set[str]:
    """The variables that a chat template reads and does not set itself, before any use.

    Raises:
        HalosError: it is no template.
    """
    environment = Environment(extensions=[_Generation, loopcontrols])
    try:
        return set(meta.find_undeclared_variables(environment.parse(text)))
    except TemplateSyntaxError as error:
        raise HalosError(
            f"the chat template cannot be read (line {error.lineno}: {error.message}); correct it"
        ) from None


class Chat:
    """Renders conversations with a tokenizer's chat template.

    Args:
        tokenizer: a transformers tokenizer with a chat template.

    Attributes:
        text: the template, with a fixed date.
        parts: whether it wants texts as lists of parts, as templates of models that see images do.

    Raises:
        HalosError: it has no template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.text = dated(one_template(tokenizer.chat_template))
        self.parts = False

    def render(self, turns: list[Turn], generation: bool, tools: Sequence[dict[str, Any]] = ()) -> str:
        """The text of a conversation, up to the beginning of a response if `generation`.

        Raises:
            Refused: the template cannot show it.
        """
        try:
            return self._render([turns], generation, tools)[0]
        except Exception as error:  # a template is a program: whatever it raises is about this conversation
            with suppress(Exception):  # few templates want the arguments of calls as text
                return self._render([turns], generation, tools, parse=False)[0]
            raise Refused(_shortened(str(error))) from None

    def render_all(self, conversations: list[list[Turn]], generation: bool) -> list[str | Refused]:
        """The text of each conversation, or why there is none."""
        try:
            return list(self._render(conversations, generation)) if conversations else []
        except Exception:  # of one of them: each is tried alone
            return [self.or_refused(turns, generation) for turns in conversations]

    def or_refused(self, turns: list[Turn], generation: bool, tools: Sequence[dict[str, Any]] = ()) -> str | Refused:
        """The text of a conversation, or why there is none."""
        try:
            return self.render(turns, generation, tools)
        except Refused as refused:
            return refused

    def _render(
        self,
        conversations: list[list[Turn]],
        generation: bool,
        tools: Sequence[dict[str, Any]] = (),
        parse: bool = True,
    ) -> list[str]:
        if parse:
            conversations = [_parsed(turns) for turns in conversations]
        if self.parts:
            conversations = [[{**t, "content": _parts(t["content"])} for t in turns] for turns in conversations]
        if tools or any(len(turn) > 2 for turns in conversations for turn in turns):
            texts: list[str] = self.tokenizer.apply_chat_template(
                conversations,
                chat_template=self.text,
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=generation,
            )
            return texts
        return [self._render_plain(messages=turns, add_generation_prompt=generation) for turns in conversations]

    @cached_property
    def _render_plain(self) -> Callable[..., str]:
        """Renders turns of a role and a content alone, with what apply_chat_template gives a template besides. That
        copies all turns before, to clean their other fields and the tools."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        given = {**self.tokenizer.special_tokens_map, "tools": None, "documents": None}
        return partial(_compile_jinja_template(self.text).render, **given)


def _parsed(turns: list[Turn]) -> list[Turn]:
    """The turns with the arguments of calls as objects, which most templates want, where they are text of JSON."""
    if not any(turn.get("tool_calls") for turn in turns):
        return turns
    return [{**turn, "tool_calls": _objects(turn["tool_calls"])} if turn.get("tool_calls") else turn for turn in turns]


def _objects(value: Any) -> Any:
    """A JSON value in which each `arguments` that is the text of an object is that object."""
    if isinstance(value, list):
        return [_objects(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: _object(item) if key == "arguments" else _objects(item) for key, item in value.items()}


def _object(text: Any) -> Any:
    with suppress(TypeError, ValueError):
        if isinstance(found := json.loads(text), dict):
            return found
    return text


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _shortened(message: str) -> str:
    text = re.sub(r"\s+", " ", message).strip()
    return text if len(text) <= 160 else text[:157] + "..."
