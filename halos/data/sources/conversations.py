"""Published conversations and tasks with a single response to each prompt, which is the target.

The options that all sources share are described in __init__.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic import BaseModel

from halos.data.feedback import Feedback
from halos.data.hub import Hub
from halos.data.rows import Drop, Paths, Records, TurnColumns, asked, only, table, turns_of
from halos.errors import HalosError
from halos.registry import SOURCES


class ChatColumns(BaseModel):
    messages: list[TurnColumns]


def _chat_record(row: ChatColumns) -> Feedback | Drop:
    turns = turns_of(row.messages)
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns:
        return Drop("no assistant turn")
    return Feedback(turns[:-1], [turns[-1]["content"]], "ultrachat", target=0)


def _each_turn(records: Iterable[Feedback | Drop]) -> Iterator[Feedback | Drop]:
    """Each record, after one for every earlier assistant turn of its prompt."""
    for record in records:
        if isinstance(record, Feedback):
            for i, turn in enumerate(record.prompt):
                if turn["role"] == "assistant":
                    yield Feedback(record.prompt[:i], [turn["content"]], record.source, target=0)
        yield record


@SOURCES.register("ultrachat")
def ultrachat(
    split: str,
    *,
    path: Paths | None = None,
    test_fraction: float = 0.1,
    revision: str = "8049631c405ae6576f93f445c6b8166f76f5505a",
    limit: int | None = None,
    every_turn: bool = False,
) -> Records:
    """UltraChat: conversations for SFT (Ding et al. 2023, arXiv:2305.14233).

    From the hub's HuggingFaceH4/ultrachat_200k, its splits train_sft and test_sft. Each row is a record: the last
    assistant turn is the target, all before it the prompt, what follows it is cut.

    Args:
        every_turn: a record for each assistant turn, with what precedes it as the prompt. All of a conversation are in
            the same split.
    """
    files = {name: f"data/{name}_sft-*" for name in ("train", "test")}
    hub = Hub("HuggingFaceH4/ultrachat_200k", revision, files)
    rows = table("ultrachat", ChatColumns, split, hub, path, test_fraction)
    records = rows.records(_chat_record)
    return Records(_each_turn(records) if every_turn else records, rows.origin, limit)


class S1KColumns(BaseModel):
    question: str
    deepseek_thinking_trajectory: str
    deepseek_attempt: str


S1K_FORMAT = "<|im_start|>think\n{reasoning}\n<|im_start|>answer\n{answer}"


@SOURCES.register("s1k_11")
def s1k_11(
    split: str,
    *,
    path: Paths | None = None,
    test_fraction: float = 0.1,
    revision: str = "96c411f1fe4c49d20f0e2a1565f61e1a28b0b84d",
    limit: int | None = None,
    response_format: str = S1K_FORMAT,
) -> Records:
    """s1K-1.1: questions with DeepSeek-R1's reasoning and answers (Muennighoff et al. 2025, arXiv:2501.19393).

    From the hub's simplescaling/s1K-1.1. Each row is a record, its one response the target. The hub has a train split
    only: `test_fraction` of its prompts are the test split here.

    Args:
        response_format: how {reasoning} and {answer} make a response; by default as the paper's models were trained,
            "{answer}" is the answer alone.
    """
    try:
        if not response_format.format(reasoning="", answer="x").strip():
            raise ValueError("a response would be empty")
    except (LookupError, ValueError, AttributeError) as error:
        raise HalosError(
            f"source s1k_11: response_format {response_format!r} cannot be filled in ({error}); write it with"
            " {reasoning} and {answer}, and any other brace twice"
        ) from None

    def record(row: S1KColumns) -> Feedback | Drop:
        if not row.deepseek_attempt.strip():
            return Drop("empty response")
        parts = {"reasoning": row.deepseek_thinking_trajectory, "answer": row.deepseek_attempt}
        return Feedback(asked(row.question), [response_format.format(**parts)], "s1k_11", target=0)

    hub = Hub("simplescaling/s1K-1.1", revision, "data/train-*")
    rows = table("s1k_11", S1KColumns, split, hub, path, test_fraction)
    return Records(rows.records(record), rows.origin, limit)


class WildBenchColumns(BaseModel):
    conversation_input: list[TurnColumns]
    references: dict[str, str | None]


def _wildbench_record(row: WildBenchColumns) -> Feedback | Drop:
    reference = row.references.get("gpt-4")
    if reference is None:
        return Drop("no reference of gpt-4")
    return Feedback(turns_of(row.conversation_input), [reference], "wildbench", target=0)


@SOURCES.register("wildbench")
@only("test")
def wildbench(
    split: str,
    *,
    path: str | None = None,
    revision: str = "26c49eb39d7d5ce2099b0bbafed5a88dcce954ec",
    limit: int | None = None,
) -> Records:
    """WildBench v2: hard conversations from real users (Lin et al. 2024, arXiv:2406.04770).

    From the hub's allenai/WildBench; a test split only. Each row is a record: the whole conversation is the prompt, the
    reference answer of gpt-4 the target.
    """
    hub = Hub("allenai/WildBench", revision, {"test": "v2/test-*"})
    rows = table("wildbench", WildBenchColumns, split, hub, path)
    return Records(rows.records(_wildbench_record), rows.origin, limit)


class AlpacaEvalColumns(BaseModel):
    instruction: str
    output: str


def _alpacaeval_record(row: AlpacaEvalColumns) -> Feedback | Drop:
    return Feedback(asked(row.instruction), [row.output], "alpacaeval", target=0)


@SOURCES.register("alpacaeval")
@only("test")
def alpacaeval(
    split: str,
    *,
    path: str | None = None,
    revision: str = "2edc6fad8be6b14ea7230aabfd08188da6b8b814",
    limit: int | None = None,
) -> Records:
    """AlpacaEval's 805 instructions (Dubois et al. 2024, arXiv:2404.04475).

    From the hub's tatsu-lab/alpaca_eval; a test split only. Each row is a record: the output of text-davinci-003 is the
    target.
    """
    hub = Hub("tatsu-lab/alpaca_eval", revision, {"test": "alpaca_eval.json"})
    rows = table("alpacaeval", AlpacaEvalColumns, split, hub, path)
    return Records(rows.records(_alpacaeval_record), rows.origin, limit)
