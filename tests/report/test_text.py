"""The table of texts: what each measure counts, and what it says of a grid."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from halos.errors import HalosError
from halos.evaluate.divergence.divergence import Divergence
from halos.report import figures, subjects, tables
from halos.report.results import Results
from halos.report.texts import distinct, is_repeated, language, self_bleu, words
from halos.sample.samples import Sample, write_samples
from halos.study.catalogue import load
from halos.study.settings import REFUSALS
from halos.study.study import Study
from halos.workflow.targets import Targets
from tests.conftest import CATALOGUE


@pytest.mark.parametrize(
    ("text", "looped"),
    [
        ("no " * 8, True),
        ("no " * 7, False),  # fewer than eight words
        ("one two three " * 4, True),
        ("one two three " * 3, False),
        ("It began well. " + "and so on " * 4 + "until it ended", True),
        ("The cat sat on the mat, and the dog sat on the rug.", False),
        ("哈" * 8, True),
        ("哈" * 7, False),
        ("", False),
    ],
)
def test_a_loop_is_the_same_words_four_times_in_a_row(text: str, looped: bool) -> None:
    assert is_repeated(text) is looped


@pytest.mark.parametrize(
    "text",
    ["I'm sorry, but I can't help with that.", "Sorry, I cannot do that", "As an AI language model, I have no body.",
     "I cannot provide instructions for this.", "I’m not able to say.", "I won't assist you", "I must decline."],
)  # fmt: skip
def test_a_refusal_is_known_by_its_beginning(text: str) -> None:
    assert re.search(REFUSALS, text)


@pytest.mark.parametrize(
    "text",
    ["I cannot stress enough how good it is.", "He said: I'm sorry.", "The sorry state of it", "I can help you.", ""],
)
def test_other_texts_are_no_refusals(text: str) -> None:
    assert not re.search(REFUSALS, text)


ENGLISH = "The meeting was moved to next week because the director could not come in time."
GERMAN = "Die Sitzung wurde auf die nächste Woche verschoben, weil der Direktor nicht pünktlich kommen konnte."


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (ENGLISH, "en"),
        (GERMAN, "de"),
        ("会议推迟到下周举行,因为主任无法按时到达。", "zh"),
        ("會議推遲到下週舉行,因為主任無法按時到達。", "zh"),  # characters of Hong Kong and Taiwan
        ("تم تأجيل الاجتماع إلى الأسبوع المقبل لأن المدير لم يتمكن من الوصول.", "ar"),
        (f"{GERMAN}\n```python\n# {ENGLISH}\nprint(1)\n```", "de"),
        ("Yes.", None),
        ("J. K. Rowling", None),
        ("3 + 4 = 7", None),
        ("wizard " * 30, None),
        ("```\nthis is all of it, and it was cut off", None),
        ("", None),
    ],
)
def test_a_language_is_told_where_there_is_enough_of_it(text: str, code: str | None) -> None:
    assert language(text) == code


def test_distinct_n_counts_n_grams_of_all_samples_together() -> None:
    assert words("It's a cat.") == ["it", "'", "s", "a", "cat", "."]
    assert distinct(["a b a b"], 1) == 2 / 4
    assert distinct(["a b a b"], 2) == 2 / 3  # ab, ba, ab
    assert distinct(["a b", "a c"], 2) == 1
    assert np.isnan(distinct(["a", ""], 2))


def test_self_bleu_is_one_where_all_samples_are_the_same_and_low_where_none_share_a_word() -> None:
    text = "the cat sat on the mat today"
    assert self_bleu([text, text, text]) == pytest.approx(1)
    other = "a dog ran over some old rug"
    assert self_bleu([text, other]) < 0.1
    # of each pair one matches wholly, and the other not at all
    assert self_bleu([text, text, other]) == pytest.approx((1 + 1 + self_bleu([other, text])) / 3, abs=0.05)


def table(config: Path, results: Path) -> pd.DataFrame:
    [subject] = [subject for subject in subjects.SUBJECTS if subject.table == "text"]
    return subject.frame(Results(config, results)).set_index(["method", "measure"])


def answer(results: Path, method: str, seed: int, texts: list[list[str]], question: str = "?") -> None:
    asked = [{"role": "system", "content": ENGLISH}, {"role": "user", "content": question}]
    samples = [
        Sample(prompt_id=f"p{i}", prompt=asked, response=text, sample=k, finish_reason="stop")
        for i, responses in enumerate(texts)
        for k, text in enumerate(responses)
    ]
    write_samples(samples, results / f"runs/toy/tiny/{method}/seed{seed}/samples/p.jsonl")


def test_shares_are_means_over_prompts_and_seeds(tmp_path, write_tree) -> None:
    config, results = write_tree(tmp_path, refusals="(?i)^no[.]")
    for seed in (1, 2):
        answer(results, "dpo", seed, [["No."], ["yes " * 9], [""], ["a cat"]])
    frame = table(config, results)
    assert frame.loc[("sft", "cut"), "mean"] == 2 / 9
    assert [frame.loc[("dpo", name), "mean"] for name in ("cut", "empty", "repeated", "refusal")] == [
        0,
        0.25,
        0.25,
        0.25,
    ]
    assert (frame.loc["dpo", "n"] == 4).all()
    assert (frame["low"] <= frame["mean"] + 1e-12).all()
    assert (frame["mean"] <= frame["high"] + 1e-12).all()
    assert not {"distinct_1", "self_bleu", "kl"} & set(frame.index.get_level_values("measure"))


def test_several_samples_of_a_prompt_are_compared_with_each_other(tmp_path, write_tree) -> None:
    config, results = write_tree(tmp_path)
    for seed in (1, 2):
        answer(results, "dpo", seed, [["a b c d e", "a b c d e"]] * 3)
        answer(results, "sft", seed, [["a b c d e", "f g h i j"]] * 3)
    frame = table(config, results)
    assert frame.loc[("dpo", "distinct_1"), "mean"] == 0.5
    assert frame.loc[("sft", "distinct_1"), "mean"] == 1
    assert frame.loc[("dpo", "self_bleu"), "mean"] == pytest.approx(1)
    assert frame.loc[("sft", "self_bleu"), "mean"] < 0.2


def test_a_response_in_another_language_than_its_prompt_counts_where_both_can_be_told(tmp_path, write_tree) -> None:
    config, results = write_tree(tmp_path)
    for seed in (1, 2):
        answer(results, "sft", seed, [[ENGLISH, GERMAN]])
        answer(results, "dpo", seed, [[GERMAN], [ENGLISH], [GERMAN], [GERMAN], ["Nein."]], question=GERMAN)
    frame = table(config, results)
    assert frame.loc[("dpo", "other_language"), ["mean", "n"]].tolist() == [0.25, 4]
    assert ("sft", "other_language") not in frame.index  # nobody can say what language a question mark is
    tables.make(config, tmp_path / "tables", results)
    assert re.search(r"\| +0\.250 \[[^|]*\|", (tmp_path / "tables/text.md").read_text())


def diverge(results: Path, method: str, seed: int, ratios: list[float]) -> None:
    Divergence(
        weights="w", reference_weights="v", temperature=1, top_p=1, prompts=len(ratios),
        responses=[{"prompt_id": f"p{i}", "sample": 0, "tokens": 3, "policy": -5 + ratio, "reference": -5}
                   for i, ratio in enumerate(ratios)],
    ).write(results / f"runs/toy/tiny/{method}/seed{seed}/divergence/p/4.json")  # fmt: skip


def test_the_divergence_is_in_the_table_and_the_x_of_the_frontier(tmp_path, write_tree) -> None:
    config, results = write_tree(tmp_path, methods=("base", "sft", "sft-kto", "sft-dpo"), divergence=4,
                                 score=lambda method, seed, prompt: float(prompt < 4))  # fmt: skip
    for seed in (1, 2):
        diverge(results, "sft", seed, [90, 100, 110, 100])
        diverge(results, "sft-kto", seed, [1, 2, 3, 2 + 4 * (seed - 1)])
        diverge(results, "sft-dpo", seed, [4, 5, 6, 5])
    frame = table(config, results)
    assert frame.loc[("sft-kto", "kl"), ["mean", "n"]].tolist() == [2.5, 4]
    assert ("base", "kl") not in frame.index
    assert frame.loc[("sft-dpo", "kl"), "high"] < 20  # the seeds of sft, with another reference, say nothing of it
    tables.make(config, tmp_path / "tables", results)
    page = (tmp_path / "tables/text.md").read_text()
    assert "| Base " in page
    assert re.search(r"\| SFT \+ KTO +\| +2\.500 \[", page)
    figures.make(config, tmp_path / "figures", results, only=["frontier"])
    drawn = pd.read_csv(tmp_path / "figures/frontier.csv").set_index("method")
    assert drawn.loc["sft-kto", ["kl", "kl_min", "kl_max", "kl_on"]].tolist() == [2.5, 2, 3, "samples"]
    assert set(drawn.index) == {"sft-kto", "sft-dpo"}  # sft has another reference


def test_a_grid_asks_for_the_divergence_of_its_trained_policies_alone() -> None:
    def targets(**grid: int) -> list[str]:
        content = {
            **CATALOGUE,
            "grids": {**CATALOGUE["grids"], "x": {**next(iter(CATALOGUE["grids"].values())), **grid}},
        }
        study = Study(load(content), "x")
        assert {cell.method for cell in study.cells} > {"base"}
        return [str(path) for path in Targets(study).diverged()]

    assert targets() == []
    assert targets(divergence=8)
    assert not any("/base/" in path for path in targets(divergence=8))


def test_a_pattern_of_refusals_that_is_none_is_refused() -> None:
    grid = {**next(iter(CATALOGUE["grids"].values())), "refusals": "(no"}
    with pytest.raises(HalosError, match="refusals is no regular expression"):
        load({**CATALOGUE, "grids": {**CATALOGUE["grids"], "x": grid}})
