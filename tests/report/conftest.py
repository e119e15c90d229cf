"""A small results tree, made by hand so that its numbers can be checked by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from halos.data.report import DataReport, SplitRows
from halos.evaluate.judging.judgement import Judgement
from halos.manifest import Manifest
from halos.sample.samples import Sample, write_samples
from halos.tokens.report import LengthQuantiles, SplitTokens, TokensReport

LABELS = {
    "models": {"tiny": "Tiny Llama"},
    "stages": {"sft": "SFT", "dpo": "DPO (0.1)"},
    "judges": {"toy": "Toy verifier"},
    "tasks": {"arc": "ARC"},
    "datasets": {"toy": "Toy data"},
    "grids": {"small": "A small grid"},
}

PROMPTS = 8
PAIRS = 48
WITHOUT_REFERENCE = ("sft", "csft", "simpo", "slic", "orpo", "rm")
METHODS = ("base", "sft", "sft-kto", "dpo")
SCORES = {"base": (0, 0), "sft": (2, 4), "sft-kto": (6, 7), "dpo": (1, 3)}
"""How many of the prompts, from the first, each method gets right, with seed 1 and with seed 2."""


def right(method: str, seed: int, prompt: int) -> float:
    return float(prompt < SCORES[method][seed - 1])


def write(
    root: Path,
    datasets: tuple[str, ...] = ("toy",),
    models: tuple[str, ...] = ("tiny",),
    methods: tuple[str, ...] = METHODS,
    seeds: tuple[int, ...] = (1, 2),
    judges: tuple[str, ...] = ("toy",),
    tasks: tuple[str, ...] = ("arc",),
    score: Callable[[str, int, int], float] = right,
    reward_models: tuple[str, ...] = (),
    published: str | None = None,
    counts: Callable[[str, str], tuple[int, int, int]] | None = None,
    stages: dict[str, dict[str, Any]] | None = None,
    parameters: int | None = 500_000,
    compare: Any = "all",
    **grid: Any,
) -> tuple[Path, Path]:
    """The config and the results folder of a finished grid.

    A response scores 0 or 1 in its one criterion `right`; the baseline scores .5, so that 1 wins and 0 loses. Prompt 7
    is a tie for everyone. The judge `rm` is a reward model: it says 2 * score - 4, and -3 of the baseline. Reward
    models are evaluated on PAIRS pairs. With `counts` of (model, method), a judge without scores says so many wins,
    losses and ties instead. `stages` are settings of stages, by their ids; `compare` the pairs of methods that each
    judge compares. The judges judge the prompt set `p`, to which each method answers "METHOD SEED answers PROMPT"; the
    first two responses are cut. `grid` are more settings.
    """
    results = root / "results"
    config = results / "grids" / "small" / "config.yaml"
    content = {"datasets": datasets, "models": models, "methods": methods, "seeds": seeds, "judges": judges}
    content = {k: list(v) for k, v in {**content, "tasks": tasks, "reward_models": reward_models}.items()}
    config.parent.mkdir(parents=True)
    compared = {} if counts or not compare else {judge: {"pairs": compare} for judge in judges}
    settings = {"grid": "small", "label": None, "labels": LABELS, "published": published, "compared": compared}
    whole = {**content, **settings, **grid}
    config.write_text(yaml.safe_dump(whole))
    for judge in judges:
        how = (
            {"kind": "reward_model", "reward_model": "rm"} if judge == "rm" else {"kind": "verifier", "verifier": "toy"}
        )
        write_yaml(results / "judges" / judge / "config.yaml", {"judge": judge, "prompts": "p", **how})
    write_yaml(results / "prompts/p/config.yaml", {"prompts": "p"})
    for dataset in datasets:
        for model in models:
            for method in methods:
                for seed in seeds:
                    folder = results / "runs" / dataset / model / method / f"seed{seed}"
                    for judge in judges:
                        said = counted(*counts(model, method)) if counts else judged(judge, method, seed, score)
                        said.write(folder / "judged" / f"{judge}.json")
                    if judges:
                        write_responses(folder / "samples/p.jsonl", method, seed)
                    for task in tasks:
                        dump(folder / "tasks" / f"{task}.json", task_result(task, method, seed))
                    if method != "base":
                        write_training(folder, method, seed, stages, parameters)
            for method, seed in product(reward_models, seeds):
                write_training(results / "runs" / dataset / model / method / f"seed{seed}", method, seed)
            tokens_report().write(results / "tokens" / dataset / model / "report.json")
    return config, results


def dump(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_yaml(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))


def write_responses(path: Path, method: str, seed: int) -> None:
    """The samples of PROMPTS prompts, and of one that could not be judged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = [
        Sample(prompt_id=f"p{prompt}", prompt=[{"role": "user", "content": f"question {prompt}"}],
               response=f"{method} {seed} answers {prompt}", sample=0, finish_reason="length" if prompt < 2 else "stop")
        for prompt in range(PROMPTS + 1)
    ]  # fmt: skip
    write_samples(samples, path)


def judgement(kind: str, annotations: list[dict[str, Any]], **fields: Any) -> Judgement:
    """A judgement whose counts and mean lengths are given, or else those of a judge who failed at nothing."""
    values: dict[str, Any] = {
        "judge": kind, "kind": kind, "baseline": "target", "ties_as": "half", "failures": 0, "not_judged": 0,
        "standard_error": 0.1, "length_controlled_win_rate": None, "length_controlled_standard_error": None,
        "length_control": "none", "mean_length": {"candidate": 100.0, "baseline": 90.0},
    }  # fmt: skip
    lengths = {"candidate_length": 10, "baseline_length": 30}
    blank = {"sample": 0, "win": None, "finish_reason": "stop", **lengths}
    values |= {**fields, "annotations": [{**blank, **a} for a in annotations]}
    return Judgement(**{"mean_judged_length": values["mean_length"], **values})


def judged(judge: str, method: str, seed: int, score: Callable[[str, int, int], float] = right) -> Judgement:
    got = [score(method, seed, prompt) for prompt in range(PROMPTS)]
    preferences = [1.5 if prompt == PROMPTS - 1 else 1 + float(s > 0.5) for prompt, s in enumerate(got)]
    mean = sum(got) / PROMPTS
    # a reward model says 2 * score - 4, in a criterion of its own
    name, reward = ("reward", lambda s: 2 * s - 4) if judge == "rm" else ("right", lambda s: s)
    annotations = [
        {
            "prompt_id": f"p{prompt}",
            "preference": preference,
            "win": preference - 1,
            "candidate_score": reward(s),
            "baseline_score": reward(0.5),
            "criteria": {name: reward(s)},
            "finish_reason": "length" if prompt < 2 else "stop",
        }
        for prompt, (s, preference) in enumerate(zip(got, preferences, strict=True))
    ]
    # a response that could not be judged counts nowhere
    failed = {"prompt_id": "p8", "preference": None, "baseline_score": reward(0.5)}
    return judgement(
        "reward_model" if judge == "rm" else "verifier",
        [*annotations, failed],
        n=PROMPTS,
        wins=preferences.count(2),
        losses=preferences.count(1),
        ties=1,
        failures=1,
        not_judged=2,
        win_rate=sum(preferences) / PROMPTS - 1,
        mean_length={"candidate": 10.0 * seed, "baseline": 30.0},
        scores={side: {"mean": reward(s), name: reward(s)} for side, s in (("candidate", mean), ("baseline", 0.5))},
    )


def counted(wins: int, losses: int, ties: int) -> Judgement:
    """The judgement of a judge without scores, for whom a tie is a win of neither."""
    preferences = [2.0] * wins + [1.0] * losses + [1.5] * ties
    annotations = [{"prompt_id": f"p{i}", "preference": value} for i, value in enumerate(preferences)]
    return judgement("openai", annotations, n=len(preferences), wins=wins, losses=losses, ties=ties,
                     ties_as="neither", win_rate=wins / len(preferences))  # fmt: skip


def task_result(task: str, method: str, seed: int) -> dict[str, Any]:
    value = {"base": 0.25, "sft": 0.5, "sft-kto": 0.6, "dpo": 0.26}.get(method, 0.4)
    value += 0.02 * (seed - 1) * (method != "base")
    return {
        "results": {},
        "higher_is_better": {task: {"acc": True}},
        "halos": {
            "task_id": task,
            "backend": "transformers",
            "metric": "acc,none",
            "value": value,
            "stderr": 0.03,
            "n": 200,
            "too_long": 0,
        },
    }


def write_training(
    folder: Path,
    method: str,
    seed: int,
    stages: dict[str, dict[str, Any]] | None = None,
    parameters: int | None = 500_000,
) -> None:
    """Ten steps of 4 examples, evaluated at 0, 5 and 10. The loss goes from 2 to 1, the margin from 0 to `seed`."""
    stage = method.rsplit("-", 1)[-1]
    lines: list[dict[str, Any]] = []
    for step in range(11):
        rewards = {} if method == "sft" else {"rewards/margin": seed * step / 10, "rewards/accuracy": 0.5 + step / 40}
        if step:
            kl = {} if stage in WITHOUT_REFERENCE else {"kl": float(step)}
            cost = {"examples": 4 * step, "lr": 1e-5, "grad_norm": 1.0, "tokens_per_second": 1000.0, "seconds": 0.1}
            lines.append({"split": "train", "step": step, "loss": 2 - step / 10, **cost, **rewards, **kl})
        if step % 5 == 0:
            lines.append({"split": "eval", "step": step, "loss": 2 - step / 10, **rewards})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Manifest(
        config={"stage": {"loss": stage, **(stages or {}).get(stage, {})}},
        weights="w",
        files={},
        seconds=12.5,
        gpu_hours=0.25,
        tokens=123456789,
        steps=10,
        peak_memory_gb=1.5,
        parameters=parameters,
        processes=2,
    ).write(folder / "manifest.json")


def tokens_report(**split: Any) -> TokensReport:
    """A store with PAIRS pairs in its validation split, and numbers of `split` in its train split."""
    nothing = {"records": 0, "prompts_with_dropped_turns": 0, "truncated_responses": 0, "responses_without_end": 0,
               "sequences": 0, "dropped": {}, "length_quantiles": LengthQuantiles(prompt={}, response={})}  # fmt: skip
    return TokensReport(
        dataset="toy", model="tiny", max_length=100, max_prompt_length=50, eval_examples=10, keep_desirable=1,
        keep_undesirable=1, template="t", n_prompts=0, n_responses=0, n_sequences=0,
        views={"train": {}, "validation": {"paired": PAIRS}}, data={}, files={}, hash="h",
        train=SplitTokens(**{**nothing, **split}), validation=SplitTokens(**nothing),
    )  # fmt: skip


def data_report(train: dict[str, Any], test: dict[str, Any]) -> DataReport:
    """A dataset with numbers of two of its splits, and 0 where none is given."""
    names = ("rows_in", "rows_out", "responses", "pairs", "desirable", "undesirable", "ties", "targets", "multi_turn",
             "shared_prompts")  # fmt: skip
    nothing = {**dict.fromkeys(names, 0), "drops": {}, "sources": ()}
    rows = {"train": train, "validation": {}, "test": test}
    return DataReport(dataset="toy", **{split: SplitRows(**{**nothing, **of}) for split, of in rows.items()})


@pytest.fixture
def write_tree() -> Callable[..., tuple[Path, Path]]:
    return write
