"""A small results tree, made by hand so that its numbers can be checked by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

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
) -> tuple[Path, Path]:
    """The config and the results folder of a finished grid.

    A response scores 0 or 1 in its one criterion `right`; the baseline scores .5, so that 1 wins and 0 loses. Prompt 7
    is a tie for everyone. The judge `rm` is a reward model: it says 2 * score - 4, and -3 of the baseline. Reward
    models are evaluated on PAIRS pairs. With `counts` of (model, method), a judge without scores says so many wins,
    losses and ties instead. `stages` are settings of stages, by their ids.
    """
    results = root / "results"
    config = results / "grids" / "small" / "config.yaml"
    content = {"datasets": datasets, "models": models, "methods": methods, "seeds": seeds, "judges": judges}
    content = {k: list(v) for k, v in {**content, "tasks": tasks, "reward_models": reward_models}.items()}
    config.parent.mkdir(parents=True)
    whole = {**content, "grid": "small", "label": None, "labels": LABELS, "published": published}
    config.write_text(yaml.safe_dump(whole))
    for dataset in datasets:
        for model in models:
            for method in methods:
                for seed in seeds:
                    folder = results / "runs" / dataset / model / method / f"seed{seed}"
                    for judge in judges:
                        said = counted(*counts(model, method)) if counts else judged(judge, method, seed, score)
                        dump(folder / "judged" / f"{judge}.json", said)
                    for task in tasks:
                        dump(folder / "tasks" / f"{task}.json", task_result(task, method, seed))
                    if method != "base":
                        write_training(folder, method, seed, stages, parameters)
            for method, seed in product(reward_models, seeds):
                write_training(results / "runs" / dataset / model / method / f"seed{seed}", method, seed)
            dump(results / "tokens" / dataset / model / "report.json", {"views": {"test": {"paired": PAIRS}}})
    return config, results


def dump(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def judged(judge: str, method: str, seed: int, score: Callable[[str, int, int], float]) -> dict[str, Any]:
    got = [score(method, seed, prompt) for prompt in range(PROMPTS)]
    preferences = [1.5 if prompt == PROMPTS - 1 else 1 + float(s > 0.5) for prompt, s in enumerate(got)]
    mean = sum(got) / PROMPTS
    if judge == "rm":
        return as_rewards(judged("toy", method, seed, score))
    return {
        "judge": judge,
        "kind": "verifier",
        "baseline": "target",
        "n": PROMPTS,
        "wins": preferences.count(2),
        "losses": preferences.count(1),
        "ties": 1,
        "failures": 1,
        "not_judged": 2,
        "win_rate": sum(preferences) / PROMPTS - 1,
        "standard_error": 0.1,
        "mean_length": {"candidate": 10.0 * seed, "baseline": 30.0},
        "scores": {"candidate": {"mean": mean, "right": mean}, "baseline": {"mean": 0.5, "right": 0.5}},
        "annotations": [
            {
                "prompt_id": f"p{prompt}",
                "sample": 0,
                "preference": preference,
                "candidate_score": s,
                "baseline_score": 0.5,
                "criteria": {"right": s},
                "finish_reason": "length" if prompt < 2 else "stop",
            }
            for prompt, (s, preference) in enumerate(zip(got, preferences, strict=True))
        ]
        # a response that could not be judged counts nowhere
        + [
            {
                "prompt_id": "p8",
                "sample": 0,
                "preference": None,
                "candidate_score": None,
                "baseline_score": 0.5,
                "criteria": {},
                "finish_reason": "stop",
            }
        ],
    }


def counted(wins: int, losses: int, ties: int) -> dict[str, Any]:
    """What a judge without scores says of so many prompts."""
    preferences = [2.0] * wins + [1.0] * losses + [1.5] * ties
    return {
        "kind": "openai", "baseline": "target", "n": len(preferences), "wins": wins, "losses": losses, "ties": ties,
        "ties_as": "neither", "failures": 0, "not_judged": 0, "win_rate": wins / len(preferences),
        "mean_length": {"candidate": 100.0, "baseline": 90.0},
        "annotations": [{"prompt_id": f"p{i}", "preference": value} for i, value in enumerate(preferences)],
    }  # fmt: skip


def as_rewards(content: dict[str, Any]) -> dict[str, Any]:
    """A verifier's judgement as that of a reward model."""

    def reward(score: float | None) -> float | None:
        return None if score is None else 2 * score - 4

    for a in content["annotations"]:
        a |= {f"{side}_score": reward(a[f"{side}_score"]) for side in ("candidate", "baseline")}
        a["criteria"] = {} if a["candidate_score"] is None else {"reward": a["candidate_score"]}
    means = {side: reward(scores["mean"]) for side, scores in content["scores"].items()}
    scores = {side: {"mean": mean, "reward": mean} for side, mean in means.items()}
    return {**content, "judge": "rm", "kind": "reward_model", "scores": scores}


def task_result(task: str, method: str, seed: int) -> dict[str, Any]:
    value = {"base": 0.25, "sft": 0.5, "sft-kto": 0.6, "dpo": 0.26}.get(method, 0.4)
    value += 0.02 * (seed - 1) * (method != "base")
    return {
        "results": {},
        "higher_is_better": {task: {"acc": True}},
        "halos": {"task_id": task, "metric": "acc,none", "value": value, "stderr": 0.03, "n": 200},
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
    config = {"stage": {"loss": stage, **(stages or {}).get(stage, {})}}
    cost = {"seconds": 12.5, "gpu_hours": 0.25, "tokens": 123456789, "steps": 10, "peak_memory_gb": 1.5}
    dump(folder / "manifest.json", {"config": config, **cost, "parameters": parameters, "processes": 2})


@pytest.fixture
def write_tree() -> Callable[..., tuple[Path, Path]]:
    return write
