"""Whatever a row holds, it becomes a record or is counted: no traceback, and nothing is lost."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from halos.data.feedback import Feedback, read
from halos.data.rows import Drop
from halos.data.sound import sound
from halos.data.sources.local import local
from halos.errors import HalosError
from tests.data.files import run_prepare

BASES = [
    json.loads(row)
    for row in re.findall(
        r"^\|(?: [^|]+ \|)? `({.*?})` \|", Path("docs/data.md").read_text(encoding="utf-8"), re.MULTILINE
    )
]
"""The rows of docs/data.md, of every layout and of what is refused."""
NAMES = sorted(
    {name for row in BASES for name in row} | {"rating", "history", "split", "finish_reason", "id", "\ud83d"}
)
TEXTS = st.sampled_from(
    ["", " ", "Why?", "yes", "x \ud83d y", "a\0b", "<|im_end|>", "\ufeff", "é", "\r\n", "NaN", "none", "1", "true",
     "[]", '[{"role": "user", "content": "q"}]', "[{'role': 'user'", '[{"from": "gpt"}]', "{",
     "\n\nHuman: q\n\nAssistant: a"]
)  # fmt: skip
SCALARS = st.one_of(
    TEXTS, st.none(), st.booleans(), st.sampled_from([0, 1, -1, 2**70, 0.0, 0.5, 1e308, float("nan"), float("inf")])
)
TURNS = st.fixed_dictionaries(
    {},
    optional={
        "role": st.one_of(
            st.sampled_from(["user", "assistant", "system", "tool", "Human", "gpt", "narrator"]), SCALARS
        ),
        "content": st.one_of(SCALARS, st.lists(st.one_of(TEXTS, st.just({"type": "image"})), max_size=2)),
        "from": SCALARS,
        "value": SCALARS,
        "weight": SCALARS,
        "name": SCALARS,
        "fields": TEXTS,
        "tool_calls": st.one_of(SCALARS, st.lists(st.one_of(st.none(), st.just({"function": {"arguments": "{"}})))),
    },
)
VALUES = st.one_of(
    SCALARS,
    TURNS,
    st.lists(TURNS, max_size=4),
    st.lists(SCALARS, max_size=3),
    st.dictionaries(TEXTS, SCALARS, max_size=2),
)


@st.composite
def rows(draw: st.DrawFn) -> Any:
    """A row of some layout, changed in up to three fields; now and then anything at all."""
    if draw(st.integers(0, 19)) == 0:
        return draw(VALUES)
    row = dict(draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(0, 3))):
        name = draw(st.one_of(st.sampled_from(sorted(row) or NAMES), st.sampled_from(NAMES)))
        if draw(st.integers(0, 3)):
            row[name] = draw(VALUES)
        else:
            row.pop(name, None)
    return row


ODD = settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    phases=[Phase.generate],
)


def write(folder: Path, odd: list[Any], name: str) -> str:
    """A file of the rows, with a sound one of each split after each, so that no two of them are joined."""
    path = folder / name
    mixed = []
    for i, one in enumerate([*odd, {}]):
        sound = [{"prompt": f"{split} {i}", "completion": "a", "type": "prompt-completion", "split": split}
                 for split in ("train", "test")]  # fmt: skip
        mixed += [one, *sound]
    if name.endswith(".csv"):
        fields = sorted({field for row in mixed for field in row})
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fields)
            writer.writeheader()
            writer.writerows(
                {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()} for row in mixed
            )
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in mixed), encoding="utf-8")
    return str(path)


def check_nothing_is_lost(folder: Path, path: str, count: int, every_turn: bool) -> None:
    """Every row is a record or a drop of one split; refused, it is named in one line; written, it is read again."""
    options: dict[str, Any] = {"path": path, "test_fraction": 0.3, "every_turn": every_turn}
    found = [row for split in ("train", "test") for row in local(split, invalid="drop", **options)]
    assert len(found) >= count if every_turn else len(found) == count
    assert all(row.problem() is None for row in found if isinstance(row, Feedback))
    assert len({row.reason for row in found if isinstance(row, Drop)}) < 60
    try:
        strict = [row for split in ("train", "test") for row in local(split, **options)]
    except HalosError as error:
        message = str(error).encode()
        if b"\n" in message:
            raise
    else:
        assert strict == found
    source = {"name": "local", "options": {**options, "invalid": "drop"}}
    report = run_prepare(folder, source)
    counts = [report[split] for split in ("train", "test")]
    assert sum(split["rows_in"] for split in counts) == len(found)
    for split, name in zip(counts, ("train", "test"), strict=True):
        assert split["rows_in"] == split["rows_out"] + sum(split["drops"].values())
        assert len(list(read(folder / f"out/{name}.parquet"))) == split["rows_out"]


@ODD
@given(st.lists(rows(), min_size=20, max_size=20), st.booleans())
def test_of_2000_odd_rows_each_becomes_a_record_or_is_counted(odd: list[Any], every_turn: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), odd, "f.jsonl")
        check_nothing_is_lost(Path(folder), path, 63, every_turn)


@settings(ODD, max_examples=25)
@given(st.lists(rows(), min_size=20, max_size=20))
def test_of_500_odd_rows_of_csv_each_becomes_a_record_or_is_counted(odd: list[Any]) -> None:
    odd = [row for row in odd if isinstance(row, dict) and row and not {"\ud83d"} & row.keys()]
    odd = [row for row in odd if json.dumps(row, ensure_ascii=False).isprintable()]  # halves of pairs cannot be in CSV
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), odd, "f.csv")
        check_nothing_is_lost(Path(folder), path, 3 * len(odd) + 3, every_turn=False)


FIELDS = (
    "prompt",
    "responses",
    "scores",
    "pairs",
    "desirable",
    "target",
    "cut",
    "tools",
    "response_fields",
    "template",
    "weights",
    "pair_weights",
    "margins",
)


@settings(ODD, max_examples=500)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=2), st.booleans())
def test_whatever_a_plugin_yields_is_sound_a_drop_or_refused(changed: dict[str, Any], as_record: bool) -> None:
    whole = {"prompt": [{"role": "user", "content": "Why?"}], "responses": ["yes", "no"], **changed}
    with contextlib.suppress(HalosError):  # any other error fails the test
        found = sound(Feedback(source="mine", **whole) if as_record else whole, "mine", 1)
        if isinstance(found, Feedback) and found.problem() is None:
            json.dumps(found.row(), ensure_ascii=False).encode()
