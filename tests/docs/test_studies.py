"""Studies that are kept have the form that the code gives their results now, and are kept whole."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pandas as pd
import pytest

from docs.studies import __main__ as kept
from halos.data.sources.toy import CRITERIA, toy
from halos.errors import HalosError
from halos.files import hash_file
from halos.manifest import Manifest
from halos.report import tables
from halos.report.subjects import SUBJECTS
from halos.study.catalogue import load
from tests.report.conftest import write

ROOT = Path(__file__).parents[2]
TITLES = {subject.table: subject.title for subject in SUBJECTS if subject.table}
MADE = [name for name in kept.studies() if (kept.HERE / name).is_dir()]


def columns(table: Path, judges: tuple[str, ...], tasks: tuple[str, ...]) -> set[str]:
    """The columns of a table, with words for the ids of judges and tasks and the names of criteria and metrics."""
    header = next(csv.reader(table.open()))
    found = set()
    for column in header:
        first, _, rest = column.partition(".")
        if first in judges:
            column = "JUDGE." + re.sub(r"^score\.[a-z_]+?(_low|_high|_baseline)?$", r"score.CRITERION\1", rest)
        elif first in tasks:
            column = "TASK." + re.sub(r"^[^_]+", "METRIC", rest)
        found.add(column)
    return found


@pytest.mark.parametrize("name", kept.studies())
def test_a_kept_study_is_a_grid_of_its_files(name: str) -> None:
    study = kept.studies()[name]
    catalogue = load(*(ROOT / file for file in study.catalogue))
    assert catalogue.grids[name].methods
    assert set(study.tables) <= TITLES.keys()


@pytest.mark.parametrize("name", MADE)
def test_a_kept_study_is_whole(name: str) -> None:
    study, folder = kept.studies()[name], kept.HERE / name
    files = {f"{table}.{form}" for table in study.tables for form in ("csv", "md")}
    files |= {f"{figure}.png" for figure in study.figures} | {f"{figure}.csv" for figure in study.drawn}
    files |= {kept.RUNS} if study.runs else set()
    files |= ({kept.WORDS} if study.responses else set()) | ({"choices"} if study.choices else set())
    assert {path.name for path in folder.iterdir()} == files
    label = load(*(ROOT / file for file in study.catalogue)).grids[name].label
    for table in study.tables:
        assert (folder / f"{table}.md").read_text().startswith(f"# {TITLES[table]}: {label}\n")
    if study.responses:
        assert (folder / kept.WORDS).read_text().count("\n## ") == study.responses


@pytest.mark.parametrize("name", [name for name in MADE if "main" in kept.studies()[name].tables])
def test_the_main_table_of_a_kept_study_has_the_columns_that_it_would_have_now(name: str, tmp_path: Path) -> None:
    config, results = write(tmp_path, judges=("toy",), tasks=("arc",))
    tables.make(config, results=results, output=tmp_path)
    now = columns(tmp_path / "main.csv", ("toy",), ("arc",))
    grid = load(*(ROOT / file for file in kept.studies()[name].catalogue)).grids[name]
    assert columns(kept.HERE / f"{name}/main.csv", tuple(grid.judges), tuple(grid.tasks)) <= now


def test_the_page_on_the_demo_has_the_numbers_of_its_table() -> None:
    judged = pd.read_csv(kept.HERE / "demo/main.csv").filter(like="toy_verifier.").rename(columns=lambda c: c[13:])
    wanted = [
        [f"{row['score']:.3f} [{row['score_low']:.3f}, {row['score_high']:.3f}]",
         *(f"{row[f'score.{name}']:.3f}" for name in ("concise", "correct", "polite")),
         f"{row['win_rate']:.3f} [{row['win_rate_low']:.3f}, {row['win_rate_high']:.3f}]"]
        for row in judged.to_dict("records")
    ]  # fmt: skip
    rows = re.findall(r"^\| [A-Z].* \|$", (ROOT / "docs/demo.md").read_text(), flags=re.M)[1:]
    assert [[cell.strip() for cell in row.strip("|").split("|")][1:] for row in rows] == wanted


def short(value: float, digits: int = 3) -> str:
    """.895 for 0.8952."""
    return f"{value:.{digits}f}".removeprefix("0")


@pytest.fixture
def effects() -> str:
    return " ".join((ROOT / "docs/effects.md").read_text().split())


def test_the_page_on_effects_has_the_numbers_of_label_noise(effects: str) -> None:
    trials = pd.read_csv(kept.HERE / "label_noise/trials.csv")
    values = trials.set_index(["method", "settings.label_noise"])["value"]
    fall = {
        m: short(values[f"sft-{m}", 0.0] - values[f"sft-{m}", 0.4], 2) for m in ("dpo", "cdpo", "robust", "kto", "ipo")
    }
    assert (
        f"DPO's score falls by {fall['dpo']}, robust DPO's by {fall['robust']}, KTO's by {fall['kto']}, IPO's by "
        f"{fall['ipo']}"
    ) in effects
    assert f"falls by {fall['cdpo']}. It has" in effects
    assert f"where no label is wrong ({short(values['sft-cdpo', 0.0])})" in effects


def test_the_page_on_effects_has_the_numbers_of_label_imbalance(effects: str) -> None:
    trials = pd.read_csv(kept.HERE / "label_imbalance/trials.csv")
    kto = trials.set_index(["settings.keep_desirable", "settings.balance_labels"]).sort_index()
    dpo = trials.set_index("settings.keep_pairs")["value"]
    twentieth = [short(kto.loc[(0.05, weighed), "value"]) for weighed in (True, False)]
    few = [short(kto.loc[(0.01, True), column]) for column in ("value", "low", "high")]
    for words in (
        "with a twentieth of the desirable responses KTO scores {} with them and {} without".format(*twentieth),
        f"on a twentieth of the pairs DPO scores as high ({short(dpo[0.05])}), and on a hundredth, 35 pairs, still "
        f"{short(dpo[0.01])}",
        f"({few[0]}, with an interval from {few[1]} to {few[2]})",
    ):
        assert words in effects


def test_the_page_on_effects_has_the_course_of_over_optimisation(effects: str) -> None:
    folder = kept.HERE / "overoptimisation"
    course = pd.read_csv(folder / "course.csv").set_index(["judge", "method", "share"])
    gold, proxy = course["mean"]["gold"], course["mean"]["proxy"]
    distance = course["kl"]["gold"]
    dpo, simpo, ppo, grpo = "sft-dpo", "sft-simpo", "sft-ppo_rm", "sft-grpo"
    low, high = (course[side]["gold"][ppo] for side in ("low", "high"))
    assert high[1] > low[0.125]
    ranked = re.search(r"\| SFT \+ Reward model \| +(\S+) ", (folder / "main.md").read_text())
    assert ranked is not None
    assert (gold[dpo].idxmax(), gold[simpo].idxmax()) == (0.25, 0.125)
    assert max(distance[dpo, 0.25], distance[simpo, 0.125]) < 3
    for words in (
        f"(it ranks {short(float(ranked[1]))} of the validation pairs right)",
        f"its reward still rises, from {proxy[ppo, 0.125]:.2f} to {proxy[ppo, 1]:.2f}, and its score falls from "
        f"{short(gold[ppo, 0.125])} to {short(gold[ppo, 1])}; but the intervals of three seeds overlap",
        f"DPO's score from {short(gold[dpo, 0])} to {short(gold[dpo, 0.25])} after a quarter of its training and to "
        f"{short(gold[dpo, 1])} in the end, SimPO's to {short(gold[simpo, 0.125])} after an eighth and "
        f"{short(gold[simpo, 1])} in the end",
        f"from {proxy[dpo].max():.2f} to {short(proxy[dpo, 1], 2)} and from {proxy[simpo].max():.2f} to "
        f"{short(proxy[simpo, 1], 2)}",
        f"end {distance[dpo, 1]:.0f} and {distance[simpo, 1]:.0f} nats from",
        f"GRPO, which ends {distance[grpo, 1]:.0f} nat away",
    ):
        assert words in effects


def test_the_page_on_effects_has_the_lengths_of_the_study(effects: str) -> None:
    lengths = pd.read_csv(kept.HERE / "length_bias/lengths.csv").set_index(["dataset", "method"])["length"]
    of = {method: f"{lengths['toy_any_length', f'sft-{method}']:.0f}" for method in
          ("dpo", "rdpo", "simpo", "ipo", "dpo_norm", "kto")}  # fmt: skip
    aligned = [round(lengths["toy", f"sft-{method}"]) for method in of]
    start = {dataset: f"{lengths[dataset, 'sft']:.0f}" for dataset in ("toy", "toy_any_length")}
    assert of["simpo"] == of["ipo"]
    for words in (
        f"all six shorten the demo's responses, from {start['toy']} characters to {min(aligned)} or {max(aligned)}",
        f"it is DPO ({of['dpo']} of SFT's {start['toy_any_length']}) and R-DPO ({of['rdpo']})",
        f"SimPO and IPO ({of['simpo']}), length-normalised DPO ({of['dpo_norm']}) and KTO ({of['kto']})",
    ):
        assert words in effects


def test_the_page_on_effects_has_the_lengths_of_the_pairs(effects: str) -> None:
    words = []
    for criteria, form in (
        (("correct", "polite"), "shorter in {:.0f} % of pairs, by {:.0f} characters of {:.0f} in the mean"),
        (CRITERIA, "(in the demo in {:.0f} %, by {:.0f} of {:.0f})"),
    ):
        pairs = [(r.responses[a], r.responses[b]) for r in toy("train", criteria=criteria) for a, b in r.pairs]
        more = [len(b) - len(a) for a, b in pairs]
        shorter = sum(difference > 0 for difference in more)
        rejected = sum(len(b) for _, b in pairs)
        words.append(form.format(100 * shorter / len(pairs), sum(more) / len(pairs), rejected / len(pairs)))
    assert all(word in effects for word in words), words


def test_the_page_on_effects_has_the_scores_of_rounds(effects: str) -> None:
    scores = pd.read_csv(kept.HERE / "online/main.csv").set_index("method")["toy_verifier.score"]
    of = {
        loss: [short(scores[f"sft-{loss}{how}"]) for how in ("_online", "")] for loss in ("grpo", "ppo", "dpo", "kto")
    }
    for words in (
        "GRPO's score is {} online and {} offline, PPO's {} and {}".format(*of["grpo"], *of["ppo"]),
        "DPO ({} and {}) and KTO ({} and {}) end".format(*of["dpo"], *of["kto"]),
    ):
        assert words in effects


def test_the_page_on_the_real_model_has_the_numbers_of_its_tables() -> None:
    folder = kept.HERE / "instructions"
    main = list(csv.DictReader((folder / "main.csv").open()))
    strict = "score.prompt_strict"
    wanted = [
        [f"{float(row[f'constraints.{strict}']):.3f}", f"{float(row['constraints.length_candidate']):.0f}",
         f"{float(row['constraints.cut']):.3f}", f"{float(row[f'constraints_unseen.{strict}']):.3f}"]
        for row in main
    ]  # fmt: skip
    rows = re.findall(r"^\| [A-Z].* \|$", (ROOT / "docs/real.md").read_text(), flags=re.M)[1:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [[strict, length, cut, unseen] for _, strict, _, length, cut, unseen in cells] == wanted


def test_a_finished_grid_is_kept_with_the_hashes_of_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, results = write(tmp_path)
    tables.make(config, results=results, output=results / "tables/small")
    study = kept.Kept(catalogue=("config.yaml",), tables=("main",), responses=5)
    monkeypatch.setattr(kept, "studies", lambda: {"small": study})
    kept.keep("small", results, tmp_path / "kept")
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [
        "main.csv", "main.md", "responses.md", "runs.csv"
    ]  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "kept/runs.csv").open()))
    assert [row["run"] for row in rows[:2]] == ["runs/toy/tiny/sft/seed1", "runs/toy/tiny/sft/seed2"]
    for row in rows:
        manifest = results / row["run"] / "manifest.json"
        assert (row["weights"], row["manifest"]) == (Manifest.read(manifest).weights, hash_file(manifest))
    text = (tmp_path / "kept/responses.md").read_text()
    assert text.count("\n## ") == 5
    assert "| SFT + KTO | win | sft-kto 1 answers " in text


def test_what_is_not_made_is_said_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, results = write(tmp_path)
    study = kept.Kept(catalogue=("config.yaml", "studies/x.yaml"), tables=("main",))
    monkeypatch.setattr(kept, "studies", lambda: {"small": study, "other": study})
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/main.csv").write_text("of before")
    with pytest.raises(HalosError, match=r"main.csv is missing: the grid small is not finished"):
        kept.keep("small", results, tmp_path / "kept")
    assert (tmp_path / "kept/main.csv").read_text() == "of before"
    command = "snakemake --configfile config.yaml studies/x.yaml --config grid=other -- all"
    with pytest.raises(HalosError, match=f"config.yaml is missing: make the grid first, `{command}`"):
        kept.keep("other", results, tmp_path / "kept")
