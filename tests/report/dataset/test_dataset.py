"""The data report says what was put in, and shows what is learned: against a few records whose fate is known."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from transformers import AutoTokenizer

from halos.data import feedback
from halos.data.paths import SPLITS
from halos.data.prepare import prepare
from halos.errors import HalosError
from halos.report.dataset import describe as D
from halos.report.dataset import examples as X
from halos.report.dataset.charts import OUTCOMES, draw_lengths, draw_rows
from halos.report.dataset.counts import KEPT
from halos.report.dataset.pieces import Piece, pieces
from halos.report.dataset.split import ROLES
from halos.settings import dump
from halos.tokens.report import TokensReport
from halos.tokens.tokenize import tokenize
from tests.conftest import World

LIMITS = {"max_length": 60, "max_prompt_length": 40, "eval_examples": 6, "keep_desirable": 1.0, "keep_undesirable": 1.0}
NAMES = {f"{name}.{suffix}" for name in ("rows", "lengths") for suffix in ("svg", "png", "csv")}
SCRIPT = '</pre><script>"&"</script>'
EMOJI = "Größe 日本 👩‍🚀\n\tx = 1\u202e\x07"
TOO_LONG = "the last user turn alone is longer than max_prompt_length"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def row(prompt: str | list[dict[str, str]], *responses: str, **fields: Any) -> dict[str, Any]:
    turns = [user(prompt)] if isinstance(prompt, str) else prompt
    return {"prompt": turns, "responses": list(responses), **fields}


SYSTEM = [{"role": "system", "content": "Be brief."}, user("And with a system turn?")]
TURNS = [user("One?"), {"role": "assistant", "content": "Two."}, user("Three?")]
LONG = [user("x " * 40), {"role": "assistant", "content": "No."}, user("Short?")]
VALIDATION = [row(f"Question {i}?", f"Good {i}.", f"Bad {i}.", pairs=[[0, 1]], desirable=[True, False], target=0)
        for i in range(9)]  # fmt: skip
TRAIN = [
    row("Is it so?", "Yes it is.", "No.", "Perhaps.", pairs=[[0, 1], [0, 2]], scores=[1.0, 0.0, 0.5], target=0),
    row("Which?", SCRIPT, EMOJI, pairs=[[0, 1]], desirable=[True, False]),
    row("Go on?", "word " * 80, "Stop.", pairs=[[1, 0]], desirable=[False, True], target=1),
    row(SYSTEM, "So.", desirable=[True]),
    row(TURNS, "Four.", desirable=[False]),
    row(LONG, "Quite.", target=0),
]
ELSE = row("Else?", "Yes.", "No.")
LEAKED, UNFIT = row("Question 4?", "Leaked."), row("y " * 60, "Yes.", target=0)


@dataclass(frozen=True)
class Made:
    """What the verbs wrote into `folder`, and the report on it."""

    folder: Path
    model: Path

    def describe(self, name: str = "out") -> Path:
        D.describe(self.folder / "report.json", self.folder / "tokens.json", self.folder / "store", self.model,
                   self.folder / name)  # fmt: skip
        return self.folder / name

    @property
    def report(self) -> dict[str, Any]:
        return read(self.folder / "out/report.json")

    @property
    def page(self) -> str:
        return (self.folder / "out/examples.html").read_text()


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def local(folder: Path, name: str, train: list[dict[str, Any]], validation: list[dict[str, Any]]) -> dict[str, Any]:
    """A source whose splits are the given records."""
    folder.mkdir(exist_ok=True)
    path = {split: str(folder / f"{name}_{split}.jsonl") for split in ("train", "validation")}
    for split, rows in (("train", train), ("validation", validation)):
        Path(path[split]).write_text("".join(json.dumps(r) + "\n" for r in rows))
    return {"name": "local", "options": {"path": path}}


def make(folder: Path, world: World, *sources: dict[str, Any]) -> Made:
    """Prepare and tokenize the sources."""
    config, splits = folder / "data.yaml", [folder / f"{split}.parquet" for split in SPLITS]
    config.write_text(dump({"dataset": "d", "plugins": {}, "sources": list(sources)}))
    (folder / "tokens.yaml").write_text(dump({"dataset": "d", "model": "m", **LIMITS}))
    prepare(config, *splits, folder / "report.json")
    return tokenized(folder, world)


def tokenized(folder: Path, world: World) -> Made:
    model = world.base / "model"
    splits = folder / "train.parquet", folder / "validation.parquet"
    tokenize(folder / "tokens.yaml", *splits, model, folder / "store", folder / "tokens.json")
    return Made(folder, model)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, world: World) -> Made:
    """Two sources: the second repeats a record, has one on a validation prompt, and one whose prompt is too long."""
    folder = tmp_path_factory.mktemp("data")
    first = local(folder, "first", TRAIN, VALIDATION)
    second = local(
        folder, "second", [row("Else?", "Yes.", "No."), LEAKED, UNFIT, row("Else?", "Yes.", "No.")], VALIDATION[:1]
    )
    made = make(folder, world, first, second)
    made.describe()
    return made


@pytest.fixture(scope="module")
def tokenizer(world: World) -> Any:
    return AutoTokenizer.from_pretrained(world.base / "model")


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def sequences(tokenizer: Any, rows: list[dict[str, Any]]) -> list[list[tuple[list[int], list[int]]]]:
    """(prompt ids, response ids) of every response of every record, from the text of the chat template written out."""
    found = []
    for r in rows:
        turns = r["prompt"][-1:] if r["prompt"] == LONG else r["prompt"]
        text = "".join(f"<|{turn['role']}|>{turn['content']}<|end|>" for turn in turns)
        prompt = ids(tokenizer, text + "<|assistant|>")
        room = LIMITS["max_length"] - len(prompt)
        found.append([(prompt, ids(tokenizer, response + "<|end|>")[:room]) for response in r["responses"]])
    return found


class Page(HTMLParser):
    """The examples of a page: for each its heading and the (element, token ids, text) of its blocks' tokens."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.examples: list[tuple[str, list[list[tuple[str, list[int], str]]]]] = []
        self.facts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    @property
    def prompt_facts(self) -> list[str]:
        return [fact for fact in self.facts if fact.startswith("prompt")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.open.append(tag)
        if tag == "article":
            self.examples.append(("", []))
        elif tag == "pre":
            self.examples[-1][1].append([])
        elif tag in ("span", "mark") and "pre" in self.open:
            self.examples[-1][1][-1].append((tag, [int(i) for i in (dict(attrs)["title"] or "").split()], ""))
        elif tag == "p" and "article" in self.open:
            self.facts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "h2" in self.open:
            heading, blocks = self.examples[-1]
            self.examples[-1] = (heading + data, blocks)
        elif "pre" in self.open:
            assert {"span", "mark"} & set(self.open), f"text outside of tokens: {data!r}"
            if "sub" not in self.open:
                element, tokens, text = self.examples[-1][1][-1][-1]
                self.examples[-1][1][-1][-1] = element, tokens, text + data
        elif "p" in self.open and "article" in self.open:
            self.facts[-1] += data


def test_every_row_that_was_put_in_is_kept_or_dropped_for_a_reason(made: Made) -> None:
    train, validation = made.report["train"], made.report["validation"]
    assert (train["rows_in"], train["rows_out"]) == (10, 7)
    assert train["drops"] == {"duplicate record": 1, "prompt is in the validation split": 1, TOO_LONG: 1}
    assert (train["duplicates"], train["leakage"]) == (1, 1)
    assert train["sources"] == {
        "local": {"rows_in": 6, "rows_out": 6, "drops": {}},
        "local (2)": {"rows_in": 4, "rows_out": 2,
                      "drops": {"duplicate record": 1, "prompt is in the validation split": 1}},
    }  # fmt: skip
    assert train["tokenized"] == {"rows_in": 8, "rows_out": 7, "drops": {TOO_LONG: 1}}
    assert validation["rows_in"] == 10
    assert (
        sum(validation["drops"].values())
        == validation["drops"]["not in the evaluation subset"]
        == 10 - validation["rows_out"]
    )
    for split in (train, validation):
        for part in (split, split["tokenized"], *split["sources"].values()):
            assert part["rows_in"] == part["rows_out"] + sum(part["drops"].values())


def test_the_report_counts_what_the_records_hold(made: Made) -> None:
    train = made.report["train"]
    kept = [*TRAIN, ELSE]
    assert (train["prompts"], train["responses"]) == (7, sum(len(r["responses"]) for r in kept)) == (7, 12)
    assert (train["targets"], train["pairs"], train["scored_responses"], train["groups"]) == (3, 4, 3, 1)
    assert train["labels"] == {"desirable": 3, "undesirable": 3, "none": 6, "desirable_share": 0.5}
    assert train["prompts_with_dropped_turns"] == {"count": 1, "share": round(1 / 7, 6)}
    cut = train["truncated_responses"]
    assert (cut["count"], cut["share"]) == (1, round(1 / 12, 6))
    assert cut["by_role"] == {"target": 0, "chosen": 0, "rejected": 1, "desirable": 0, "undesirable": 1}
    assert made.report["limits"] == LIMITS
    validation = made.report["validation"]
    assert (validation["prompts"], validation["shared_prompts"]) == (LIMITS["eval_examples"], 1)


def test_quantiles_are_numpys_of_lengths_tokenized_anew(made: Made, tokenizer: Any) -> None:
    made_of = sequences(tokenizer, [*TRAIN, ELSE])
    every = [sequence for of_record in made_of for sequence in of_record]
    responses = {(i, j): len(response) for i, record in enumerate(made_of) for j, (_, response) in enumerate(record)}
    expected = {
        "prompt": [len(of_record[0][0]) for of_record in made_of],
        "response": [len(response) for _, response in every],
        "total": [len(prompt) + len(response) for prompt, response in every],
        "target": [responses[at] for at in [(0, 0), (2, 1), (5, 0)]],
        "chosen": [responses[at] for at in [(0, 0), (0, 0), (1, 0), (2, 1)]],
        "rejected": [responses[at] for at in [(0, 1), (0, 2), (1, 1), (2, 0)]],
        "desirable": [responses[at] for at in [(1, 0), (2, 1), (3, 0)]],
        "undesirable": [responses[at] for at in [(1, 1), (2, 0), (4, 0)]],
    }
    found = made.report["train"]["lengths"]
    assert found.keys() == expected.keys()
    curves = pd.read_csv(made.folder / "out/lengths.csv").query("split == 'train'")
    for text, lengths in expected.items():
        assert found[text]["count"] == len(lengths)
        assert found[text]["mean"] == pytest.approx(np.mean(lengths), abs=0.005)
        at = [float(q) for q in found[text]["quantiles"]]
        assert at == [0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1]
        assert list(found[text]["quantiles"].values()) == pytest.approx(np.quantile(lengths, at), abs=0.006)
        curve = curves[curves["text"] == text]
        assert curve["share"].tolist() == pytest.approx([np.mean(np.array(lengths) <= n) for n in curve["tokens"]])
        assert curve["tokens"].tolist() == sorted(set(lengths))
    padding = 1 - np.mean(expected["total"]) / LIMITS["max_length"]
    assert made.report["train"]["padding_share_at_max_length"] == pytest.approx(padding, abs=5e-5)


def test_the_marked_tokens_are_those_of_the_response_and_no_others(made: Made, tokenizer: Any) -> None:
    known = [sequence for record in sequences(tokenizer, [*TRAIN, *VALIDATION, ELSE])
             for sequence in record]  # fmt: skip
    examples = Page(made.page).examples
    assert len(examples) >= 8
    for _, (prompt, *responses) in examples:
        assert responses
        assert {element for element, _, _ in prompt} == {"span"}
        shown = [i for _, tokens, _ in prompt for i in tokens]
        for response in responses:
            assert {element for element, _, _ in response} == {"mark"}
            assert (shown, [i for _, tokens, _ in response for i in tokens]) in known


def test_each_kind_of_example_is_shown_with_what_is_known_of_it(made: Made) -> None:
    page = Page(made.page)
    headings = [heading for heading, _ in page.examples]
    for kind in ("SFT target", "pair", "desirable", "undesirable"):
        assert f"{kind} validation split" in headings
        assert f"{kind} train split" in headings
    assert len({str(prompt) for _, (prompt, *_) in page.examples}) == len(page.examples)
    [lost] = [blocks for heading, blocks in page.examples if heading == "prompt that lost turns train split"]
    assert "".join(text for _, _, text in lost[0]) == "<|user|>Short?<|end|><|assistant|>"
    assert any("the 2 oldest turns left out" in fact for fact in page.facts)
    pairs = [len(blocks) for heading, blocks in page.examples if heading.startswith("pair")]
    assert pairs == [3, 3]  # a prompt, the chosen response and the rejected one
    assert sum(fact.startswith("chosen ·") for fact in page.facts) == len(pairs)


def test_a_conversation_has_several_turns_and_a_system_turn_makes_none(tmp_path: Path, world: World) -> None:
    rows = [row(TURNS, "Four.", target=0), row(SYSTEM, "So.", desirable=[True])]
    made = make(tmp_path, world, local(tmp_path, "x", rows, VALIDATION))
    made.describe()
    page = Page(made.page)
    several = {"".join(text for _, _, text in blocks[0]): "several turns" in fact
               for (_, blocks), fact in zip(page.examples, page.prompt_facts, strict=True)}  # fmt: skip
    assert several.pop("<|user|>One?<|end|><|assistant|>Two.<|end|><|user|>Three?<|end|><|assistant|>")
    assert not several.pop("<|system|>Be brief.<|end|><|user|>And with a system turn?<|end|><|assistant|>")
    assert not any(several.values())


def test_a_truncated_response_is_shown_and_said_to_have_no_end(tmp_path: Path, world: World) -> None:
    rows = [row("Go on?", "word " * 80, desirable=[False]), row("Stop?", "Yes.", target=0)]
    made = make(tmp_path, world, local(tmp_path, "x", rows, VALIDATION))
    made.describe()
    page = Page(made.page)
    responses = [block for _, blocks in page.examples for block in blocks[1:]]
    facts = [fact for fact in page.facts if fact not in page.prompt_facts]
    said = ["truncated: no end of turn" in fact for fact in facts]
    assert said == [block[-1][2] != "<|end|>" for block in responses]
    assert sum(said) == 1


def test_nothing_of_the_data_becomes_html() -> None:
    hostile = Piece((1,), SCRIPT)  # one token: a tokenizer may have learned whole tags
    example = X.Example("train", SCRIPT, [SCRIPT], [hostile], [X.Shown(SCRIPT, [hostile], [SCRIPT])])
    tokens = TokensReport.model_construct(dataset=SCRIPT, model=SCRIPT, max_length=1, max_prompt_length=1)
    page = X.page(tokens, [example])
    found = Page(page)
    assert not found.tags.keys() & {"script", "img", "link", "iframe", "object"}
    assert [(heading, [block[0][2] for block in blocks]) for heading, blocks in found.examples] == [
        (f"{SCRIPT} train split", [SCRIPT, SCRIPT])
    ]
    assert "://" not in page  # nothing is fetched


def test_markup_in_a_response_is_shown_as_it_is(tmp_path: Path, world: World) -> None:
    made = make(tmp_path, world, local(tmp_path, "x", [row("Say it.", SCRIPT, target=0)], VALIDATION))
    made.describe()
    blocks = [block for _, blocks in Page(made.page).examples for block in blocks]
    assert SCRIPT + "<|end|>" in ["".join(text for _, _, text in block) for block in blocks]


def test_characters_of_several_tokens_are_whole_and_said_to_be(tmp_path: Path, world: World, tokenizer: Any) -> None:
    made = make(tmp_path, world, local(tmp_path, "x", [row("Which?", EMOJI, target=0)], VALIDATION))
    made.describe()
    [response] = [b[1] for heading, b in Page(made.page).examples if heading == "SFT target train split"]
    shown = EMOJI.replace("\n", "↵\n").replace("\u202e", "⟨U+202E⟩").replace("\x07", "␇")
    assert "".join(text for _, _, text in response) == shown + "<|end|>"
    assert [i for _, tokens, _ in response for i in tokens] == ids(tokenizer, EMOJI + "<|end|>")
    [rocket] = [tokens for _, tokens, text in response if text == "🚀"]
    assert len(rocket) == 4
    assert f'title="{" ".join(map(str, rocket))}">🚀<sub>4</sub></mark>' in made.page


def pieces_of(tokenizer: Any, *parts: list[int]) -> list[list[Piece]]:
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    return list(pieces(tokenizer, [np.array(part, dtype=np.int32) for part in parts], end))


def test_a_character_that_truncation_cuts_is_not_shown_as_another(tokenizer: Any) -> None:
    whole = ids(tokenizer, "a🚀")
    [found, after] = pieces_of(tokenizer, whole[:-1], ids(tokenizer, "b"))
    assert [piece.text for piece in found] == ["a", None]
    assert [i for piece in found for i in piece.ids] == whole[:-1]
    assert [piece.text for piece in after] == ["b"]


def test_a_replacement_character_of_the_data_is_shown_and_the_end_after_it_is_an_end(tokenizer: Any) -> None:
    [found] = pieces_of(tokenizer, ids(tokenizer, "a\ufffd<|end|>"))
    assert [(piece.text, piece.kind) for piece in found] == [("a", ""), ("\ufffd", ""), ("<|end|>", "end")]
    [cut] = pieces_of(tokenizer, [*ids(tokenizer, "🚀")[:2], *ids(tokenizer, "<|end|>")])
    assert [(piece.text, piece.kind) for piece in cut] == [(None, ""), ("<|end|>", "end")]


def test_special_tokens_are_told_apart_from_text(tokenizer: Any) -> None:
    [found] = pieces_of(tokenizer, ids(tokenizer, "<|user|>x<|end|>"))
    assert [(piece.text, piece.kind) for piece in found] == [("<|user|>", "special"), ("x", ""), ("<|end|>", "end")]


@pytest.mark.parametrize(
    ("fields", "kinds", "drawn"),
    [
        ({"target": 0}, {"SFT target"}, {"target"}),
        ({"pairs": [[0, 1]]}, {"pair"}, {"chosen", "rejected"}),
        ({"desirable": [True, None]}, {"desirable"}, {"desirable"}),
        ({"scores": [1.0, 0.5]}, {"group"}, set()),
    ],
    ids=["targets", "pairs", "labels", "scores"],
)
def test_a_dataset_may_have_but_one_kind_of_feedback(
    tmp_path: Path, world: World, fields: dict[str, Any], kinds: set[str], drawn: set[str]
) -> None:
    rows = [row(f"Number {i}?", f"It is {i}.", "No.", **fields) for i in range(12)]
    made = make(tmp_path, world, local(tmp_path, "x", rows[:6], rows[6:]))
    assert {path.name for path in made.describe().iterdir()} == {*NAMES, "report.json", "examples.html"}
    extremes = {"longest sequence", "shortest response"}
    assert {heading.rsplit(" ", 2)[0] for heading, _ in Page(made.page).examples} == kinds | extremes
    for split in ("train", "validation"):
        assert made.report[split]["lengths"].keys() == {"prompt", "response", "total"} | drawn


def test_a_train_split_may_be_empty(tmp_path: Path, world: World) -> None:
    made = make(tmp_path, world, local(tmp_path, "x", TRAIN, VALIDATION))
    feedback.write([], tmp_path / "train.parquet")
    made = tokenized(tmp_path, world)
    prepared = read(tmp_path / "report.json")
    prepared["train"] = dict.fromkeys(prepared["train"], 0) | {"drops": {}, "sources": []}
    (tmp_path / "report.json").write_text(json.dumps(prepared))
    made.describe()
    train = made.report["train"]
    assert (train["rows_in"], train["rows_out"], train["responses"], train["lengths"]) == (0, 0, 0, {})
    assert made.report["validation"]["responses"] == 2 * LIMITS["eval_examples"]
    assert {heading.rsplit(" ", 2)[1] for heading, _ in Page(made.page).examples} == {"validation"}


def test_equal_input_gives_equal_bytes(made: Made) -> None:
    again = made.describe("again")
    assert {path.name for path in again.iterdir()} == {*NAMES, "report.json", "examples.html"}
    for path in again.iterdir():
        assert path.read_bytes() == (made.folder / "out" / path.name).read_bytes(), path.name


def test_bars_are_the_rows_of_the_csv_and_small_ones_can_be_seen(made: Made) -> None:
    rows = pd.read_csv(made.folder / "out/rows.csv")
    figure = draw_rows(rows)
    assert [ax.get_xscale() for ax in figure.axes] == ["linear", "linear"]
    bars = [patch for ax in figure.axes for patch in ax.patches]
    assert [bar.get_width() for bar in bars] == rows["rows"].tolist()
    kept = [to_hex(bar.get_facecolor()) == OUTCOMES[KEPT] for bar in bars]
    assert kept == (rows["outcome"] == KEPT).tolist()
    labels = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert labels[:5] == ["6 (100 %)", "2 (50.0 %)", "1 (25.0 %)", "1 (25.0 %)", "7 (87.5 %)"]
    rows["rows"] *= np.where(rows["outcome"] == KEPT, 100_000, 1)
    figure = draw_rows(rows)
    assert {ax.get_xscale() for ax in figure.axes} == {"log"}
    assert all(ax.get_xlim()[0] < 1 for ax in figure.axes)


def test_curves_are_those_of_the_csv_with_the_limits_marked(made: Made) -> None:
    lengths = pd.read_csv(made.folder / "out/lengths.csv")
    prompt, response, total, *_ = draw_lengths(lengths, TokensReport.read(made.folder / "tokens.json")).axes
    for ax, name in ((prompt, "max_prompt_length"), (total, "max_length")):
        assert [LIMITS[name]] * 2 in [list(line.get_xdata()) for line in ax.lines]
        assert f"{name} {LIMITS[name]}" in [text.get_text() for text in ax.texts]
    curves = {line.get_label(): line for line in response.lines}
    assert curves.keys() == ROLES.keys()
    for role, line in curves.items():
        part = lengths[(lengths["split"] == "train") & (lengths["text"] == role)]
        assert line.get_xdata().tolist()[1:] == part["tokens"].tolist()
        assert line.get_ydata().tolist()[1:] == part["share"].tolist()


def test_reports_and_a_store_of_different_makings_are_refused(tmp_path: Path, made: Made, world: World) -> None:
    other = make(tmp_path, world, local(tmp_path, "x", TRAIN[:3], VALIDATION))
    out = tmp_path / "refused"
    with pytest.raises(HalosError, match="run `tokenize` again"):
        D.describe(made.folder / "report.json", made.folder / "tokens.json", other.folder / "store", made.model, out)
    with pytest.raises(HalosError, match="other data than the report of prepare"):
        D.describe(made.folder / "report.json", other.folder / "tokens.json", other.folder / "store", made.model, out)
    changed = AutoTokenizer.from_pretrained(made.model)
    changed.chat_template += " "
    changed.save_pretrained(tmp_path / "model")
    with pytest.raises(HalosError, match="another tokenizer or chat template"):
        D.describe(made.folder / "report.json", made.folder / "tokens.json", made.folder / "store", tmp_path / "model",
                   out)  # fmt: skip
    assert not out.exists()
