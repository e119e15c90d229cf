"""The page of responses: what it holds, how much of a large grid, and what its filters and links show."""

from __future__ import annotations

import base64
import gzip
import html
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from halos.data.feedback import Feedback, write
from halos.errors import HalosError
from halos.manifest import Manifest, Round
from halos.publish import responses
from halos.publish.examples import LONGEST, examples
from halos.publish.views import most_disputed
from halos.report.results import Results
from halos.sample.samples import Sample, write_samples
from halos.study.paths import Paths
from halos.train.log import Preview
from tests.report import conftest as tree

ROOT = Path(__file__).parents[2]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "</script><script>document.title = 'run'</script><b>bold</b> & <!-- {{ 1 }}"
METHODS = ("base", "sft", "sft-dpo")

Said = Callable[[str, int, int], str]
Won = Callable[[str, int, int], float]


def said(method: str, seed: int, prompt: int) -> str:
    return f"{method} {seed} answers {prompt}"


def won(method: str, seed: int, prompt: int) -> float:
    """sft wins nothing, dpo the even prompts; on prompt 3 its seeds disagree, and prompt 4 is a tie for all."""
    if prompt == 4:
        return 0.5
    return float(method == "sft-dpo" and (prompt % 2 == 0 or (prompt == 3 and seed == 1)))


class Grid:
    """A finished grid of some prompts, methods and seeds, whose one judge is `toy`."""

    def __init__(self, root: Path, prompts: int = 6, text: Said = said, win: Won = won, **settings: Any) -> None:
        self.config, self.results = tree.write(root, methods=METHODS, tasks=(), score=lambda *_: 0, **settings)
        self.records = [
            Feedback([{"role": "user", "content": f"question {i}"}], [f"target {i}", "other"], "s", target=0)
            for i in range(prompts)
        ]
        self.ids = [record.prompt_id for record in self.records]
        data = self.results / "data/toy/test.parquet"
        data.parent.mkdir(parents=True)
        write(self.records, data)
        for folder in [samples.parent for samples in self.results.glob("runs/toy/*/*/seed*/samples")]:
            method, seed = folder.parent.name, int(folder.name.removeprefix("seed"))
            write_samples(
                [
                    Sample(prompt_id=r.prompt_id, prompt=r.prompt, response=text(method, seed, i), sample=0,
                           finish_reason="stop" if i else "length", response_tokens=4)
                    for i, r in enumerate(self.records)
                ],
                folder / "samples/p.jsonl",
            )  # fmt: skip
            wins = [win(method, seed, i) for i in range(prompts)]
            tree.judgement(
                "verifier",
                [
                    {"prompt_id": key, "preference": 1 + w, "win": w, "candidate_score": w, "baseline_score": 0.5,
                     "criteria": {"right": w}, "baseline_criteria": {"right": 0.5}}
                    for key, w in zip(self.ids, wins, strict=True)
                ],
                n=prompts, wins=wins.count(1), losses=wins.count(0), ties=wins.count(0.5), win_rate=sum(wins) / prompts,
                scores={side: {"mean": 0.5, "right": 0.5} for side in ("candidate", "baseline")},
            ).write(folder / "judged/toy.json")  # fmt: skip

    @property
    def page(self) -> Path:
        return Paths(self.results).responses("small")

    def make(self, **options: float) -> Page:
        responses.make(self.config, self.page, self.results, **options)
        return Page(self.page)

    def judge(self, **changes: Any) -> None:
        file = self.results / "judges/toy/config.yaml"
        tree.write_yaml(file, {**yaml.safe_load(file.read_text()), **changes})


class Page:
    """What a page embeds."""

    def __init__(self, path: Path) -> None:
        self.path, self.text = path, path.read_text()
        scripts = re.findall(r'<script type="([^"]+)" id="(\w+)">(.*?)</script>', self.text, flags=re.DOTALL)
        [self.about] = [json.loads(text) for kind, _, text in scripts if kind == "application/json"]
        packed = [text for kind, _, text in scripts if kind == "application/octet-stream"]
        self.views = [json.loads(gzip.decompress(base64.b64decode(text))) for text in packed]

    def prompt(self, key: str, view: int = 0) -> dict[str, Any]:
        [prompt] = [prompt for prompt in self.views[view] if prompt["id"] == key]
        return prompt


def test_it_holds_all_responses_with_their_verdicts_and_the_baseline(tmp_path: Path) -> None:
    grid = Grid(tmp_path)
    page = grid.make()
    assert {prompt["id"] for prompt in page.views[0]} == set(grid.ids)
    prompt = page.prompt(grid.ids[2])
    assert (prompt["turns"], prompt["baselines"]) == ([["user", "question 2"]], ["target 2"])
    assert [(r["method"], r["seed"], r["text"]) for r in prompt["responses"]] == [
        (method, seed, said(method, seed, 2)) for method in METHODS for seed in (1, 2)
    ]
    assert prompt["responses"][-1] == {
        "method": "sft-dpo", "seed": 2, "sample": 0, "text": "sft-dpo 2 answers 2", "finish": "stop", "tokens": 4,
        "verdicts": [{"win": 1.0, "baseline": 0, "score": 1.0, "baseline_score": 0.5, "criteria": [1.0],
                      "baseline_criteria": [0.5]}],
    }  # fmt: skip
    assert page.prompt(grid.ids[0])["responses"][0]["finish"] == "length"
    [view] = page.about["views"]
    assert (view["shown"], view["total"], view["files"], view["judges"]) == (6, 6, [], ["toy"])
    assert [method["parent"] for method in page.about["methods"]] == [None, "base", "sft"]
    assert list(grid.page.with_suffix("").iterdir()) == []


def test_it_needs_no_other_file_and_no_network(tmp_path: Path) -> None:
    text = Grid(tmp_path).make().text
    assert not re.search(r"""(src|href)=["'](?!#)|url\(|@import|https?:""", text)


def test_texts_of_models_stay_texts(tmp_path: Path) -> None:
    grid = Grid(tmp_path, text=lambda *_: HOSTILE)
    content = yaml.safe_load(grid.config.read_text())
    content["labels"]["grids"]["small"] = HOSTILE
    grid.config.write_text(yaml.safe_dump(content))
    page = grid.make()
    assert page.prompt(grid.ids[0])["responses"][0]["text"] == HOSTILE
    assert "document.title =" in html.unescape(page.text)
    assert not re.search(r"</script><script>document|<b>bold", page.text)


def test_prompts_on_which_seeds_disagree_come_first_then_those_on_which_methods_do(tmp_path: Path) -> None:
    grid = Grid(tmp_path)
    page = grid.make()
    [view] = page.about["views"]
    disputed = dict(view["disputed"])
    # prompt 4 is a tie for all, and on 1 and 5 all lose
    assert next(iter(disputed)) == grid.ids[3]
    assert set(disputed) == {grid.ids[i] for i in (3, 0, 2)}
    assert (disputed[grid.ids[3]], disputed[grid.ids[0]]) == ("1 win, 5 losses", "2 wins, 4 losses")
    # of sft and its parent, and of dpo and its parent, for two seeds: dpo alone improves
    assert dict(view["improved"]) == {grid.ids[0]: "+0.50", grid.ids[2]: "+0.50", grid.ids[3]: "+0.25"}
    assert [prompt["id"] for prompt in page.views[0]][:3] == list(disputed)


def test_nothing_is_disputed_without_verdicts() -> None:
    assert most_disputed([]) == []


def noise(method: str, seed: int, prompt: int) -> str:
    return random.Random(f"{method} {seed} {prompt}").randbytes(400).hex()


@pytest.mark.parametrize("megabytes", [0.1, 0.15])
def test_a_large_grid_has_a_stated_share_on_a_page_of_bounded_size_and_all_in_files(
    tmp_path: Path, megabytes: float
) -> None:
    models = ("tiny", "other")
    grid = Grid(tmp_path, prompts=40, text=noise, models=models, win=lambda m, s, i: float(m == "sft" and i > 37))
    page = grid.make(megabytes=megabytes)
    assert len(page.text.encode()) <= megabytes * 1e6
    shown = {view["shown"] for view in page.about["views"]}
    assert len(shown) == 1
    assert 2 < shown.pop() < 40
    ids = [[prompt["id"] for prompt in view] for view in page.views]
    assert ids[0] == ids[1]  # the same prompts of each model
    assert set(ids[0][:2]) == {grid.ids[38], grid.ids[39]}  # the disputed ones, first
    for view, model in zip(page.about["views"], models, strict=True):
        parts = [Page(grid.page.parent / file) for file in view["files"]]
        assert len(parts) > 1
        assert all(f"/{model}/" in file for file in view["files"])
        assert all(len(part.text.encode()) <= megabytes * 1e6 * 1.02 for part in parts)
        assert sorted(p["id"] for part in parts for p in part.views[0]) == sorted(grid.ids)
        home = {(part.path.parent / part.about["home"]).resolve() for part in parts}
        assert home == {grid.page.resolve()}


def test_a_smaller_grid_leaves_no_page_of_a_larger_one_behind(tmp_path: Path) -> None:
    grid = Grid(tmp_path, prompts=40, text=noise)
    assert grid.make(megabytes=0.1).about["views"][0]["files"]
    assert not grid.make().about["views"][0]["files"]
    assert list(grid.page.with_suffix("").iterdir()) == []


def test_the_baseline_may_be_another_cell_or_a_file(tmp_path: Path) -> None:
    grid = Grid(tmp_path)
    grid.judge(baseline={"method": "sft", "seed": "same"})
    page = grid.make()
    prompt = page.prompt(grid.ids[1])
    assert prompt["baselines"] == [said("sft", 1, 1), said("sft", 2, 1)]
    assert [r["verdicts"][0]["baseline"] for r in prompt["responses"]] == [0, 1] * 3
    assert page.about["judges"]["toy"]["baseline"] == "SFT"
    outputs = tmp_path / "outputs.json"
    outputs.write_text(json.dumps([{"instruction": "question 1", "output": "theirs"}]))
    grid.judge(baseline={"file": str(outputs)})
    page = grid.make()
    assert page.prompt(grid.ids[1])["baselines"] == ["theirs"]
    assert "baselines" not in page.prompt(grid.ids[2])


def test_responses_sampled_during_training_have_a_view_of_their_own(tmp_path: Path) -> None:
    grid = Grid(tmp_path)
    assert len(grid.make().views) == 1
    lines = [Preview(step=step, prompt_row=7, prompt="<|user|>hi", response=f"at {step}", tokens=3).model_dump()
             for step in (5, 10)]  # fmt: skip
    file = grid.results / "runs/toy/tiny/sft/seed1/previews.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = grid.make()
    [prompt] = page.views[1]
    assert [(r["method"], r["step"], r["text"]) for r in prompt["responses"]] == [
        ("sft", 5, "at 5"),
        ("sft", 10, "at 10"),
    ]
    assert page.about["views"][1]["label"].endswith("during training")
    file.write_text("{}\n")
    with pytest.raises(HalosError, match=r"previews\.jsonl holds a line that is no preview"):
        grid.make()


def test_previews_of_an_online_stage_are_those_of_its_rounds_whose_steps_count_on(tmp_path: Path) -> None:
    """A round has a store of its own, in which the same prompt has another row."""
    grid = Grid(tmp_path)
    cell = grid.results / "runs/toy/tiny/sft-dpo/seed1"
    manifest = Manifest.read(cell / "manifest.json")
    of_round = Round(weights="w", inputs={}, data={}, steps=8, tokens=9, seconds=1.0, labels={})
    manifest.model_copy(update={"rounds": (of_round, of_round)}).write(cell / "manifest.json")
    (cell / "round1/judged").mkdir(parents=True)
    (cell / "round1/judged/toy.json").write_bytes((cell / "judged/toy.json").read_bytes())
    for number in (1, 2):
        lines = [Preview(step=step, prompt_row=number, prompt="<|user|>hi", response=f"{number}, {step}", tokens=3)
                 for step in (0, 8)]  # fmt: skip
        (cell / f"round{number}").mkdir(exist_ok=True)
        file = cell / f"round{number}/previews.jsonl"
        file.write_text("".join(line.model_dump_json() + "\n" for line in lines))
    [prompt] = grid.make().views[1]
    assert [(r["step"], r["text"]) for r in prompt["responses"]] == [
        (0, "1, 0"), (8, "1, 8"), (8, "2, 0"), (16, "2, 8")
    ]  # fmt: skip


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    grid = Grid(tmp_path)
    with pytest.raises(HalosError, match="--megabytes is 0"):
        grid.make(megabytes=0)
    write(grid.records[1:], grid.results / "data/toy/test.parquet")
    with pytest.raises(HalosError, match=rf"prompt {grid.ids[0]} of .*p.jsonl is not in .*test.parquet"):
        grid.make()
    write(grid.records, grid.results / "data/toy/test.parquet")
    (grid.results / "runs/toy/tiny/sft/seed2/samples/p.jsonl").unlink()
    with pytest.raises(HalosError, match=r"no samples file .*sft/seed2/samples/p.jsonl"):
        grid.make()


def test_a_grid_that_samples_nothing_has_an_empty_page(tmp_path: Path) -> None:
    grid = Grid(tmp_path, judges=())
    assert grid.make().about["views"] == []


def test_it_is_made_without_a_model(tmp_path: Path) -> None:
    """The environment of the report has no torch."""
    grid = Grid(tmp_path)
    command = ["responses", "--config", str(grid.config), "--results", str(grid.results), "--output", str(grid.page)]
    code = f"import sys\nfrom halos.cli import main\nassert main({command}) in (0, None)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "datasets", "alpaca_eval", "matplotlib"} & set(done.stdout.split())
    assert len(Page(grid.page).views[0]) == 6


def test_the_overview_has_three_prompts_with_a_response_of_each_method(tmp_path: Path) -> None:
    grid = Grid(tmp_path, text=lambda method, *_: f"{method} {'x' * 500}")
    found = examples(Results(grid.config, grid.results))
    assert len({example.prompt for example in found}) == 3
    for example in found:
        number = int(example.prompt.split()[-1])
        assert [(method, verdict) for method, _, verdict in example.rows] == [
            (label, {0: "loss", 0.5: "tie", 1: "win"}[won(method, 1, number)])
            for method, label in zip(METHODS, ("Base", "SFT", "SFT + DPO (0.1)"), strict=True)
        ]
        assert all(len(text) == LONGEST + 2 and text.endswith(" …") for _, text, _ in example.rows)


# ---- in a browser ------------------------------------------------------------------------------------------------


def opened(page: Path, address: str = "") -> str:
    """The document as a browser has made it of a page."""
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent}/profile",
               "--virtual-time-budget=4000", "--dump-dom", f"{page.resolve().as_uri()}{address}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert 'data-ready="yes"' in done.stdout, done.stderr
    return done.stdout


def cards(document: str) -> list[str]:
    return [
        html.unescape(re.sub("<[^>]+>", " ", card))
        for card in re.findall(r'<section class="card">(.*?)</section>', document)
    ]


in_a_browser = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")


@in_a_browser
def test_a_browser_shows_the_first_disputed_prompt_with_the_changes_from_the_parent(tmp_path: Path) -> None:
    grid = Grid(tmp_path)
    grid.make()
    document = opened(grid.page)
    baseline, *shown = cards(document)
    assert "target 3" in baseline
    assert [text.split(" answers")[0].split()[0] for text in shown] == ["Base,"] * 2 + ["SFT,"] * 2 + ["SFT"] * 2
    assert "<del>sft </del><ins>sft-dpo </ins>1 answers 3" in document
    assert "Prompts: 6 of 6" in document
    assert "win" in shown[4]
    assert "loss" in shown[5]


@in_a_browser
def test_a_permanent_link_opens_its_prompt_and_its_filters(tmp_path: Path) -> None:
    grid = Grid(tmp_path)
    grid.make()
    document = opened(grid.page, f"#prompt={grid.ids[5][:12]}&m=sft&s=2&marks=0")
    _, *shown = cards(document)
    assert len(shown) == 1
    assert "SFT, seed 2" in shown[0]
    assert said("sft", 2, 5) in shown[0]
    assert "<ins>sft" not in document
    assert "Prompts: 6 of 6" in document


@in_a_browser
@pytest.mark.parametrize(
    ("address", "number"),
    [
        ("#q=SFT-DPO+1+ANSWERS+5", 1),
        ("#q=dpo&m=sft", 0),
        ("#a=sft-dpo&rel=wins", 2),  # over the baseline, of the mean of both seeds: prompts 0 and 2
        ("#a=sft-dpo&rel=wins&s=1", 3),
        ("#a=sft&rel=loses&b=sft-dpo&judge=toy&measure=right", 3),
        ("#hi=16&m=sft", 6),
    ],
)
def test_filters_leave_the_prompts_that_they_name(made: Grid, address: str, number: int) -> None:
    assert f"Prompts: {number} of 6" in opened(made.page, address)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    grid = Grid(tmp_path_factory.mktemp("made"))
    grid.make()
    return grid


@in_a_browser
def test_a_browser_shows_what_a_model_wrote_as_text(tmp_path: Path) -> None:
    grid = Grid(tmp_path, text=lambda *_: HOSTILE)
    grid.make()
    document = opened(grid.page)
    assert "<title>A small grid: responses</title>" in document
    assert html.escape("</script><script>document.title", quote=False) in document
    assert "<b>bold" not in document
