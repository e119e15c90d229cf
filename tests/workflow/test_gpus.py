"""GPUs of one machine without a scheduler, through real `snakemake` commands. There are none: they are names."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from halos.distributed.devices import FOLDER, HELD, KNOWN, VISIBLE
from tests.workflow.conftest import CATALOGUE, ROOT, Project

GPUS = ("GPU-a", "GPU-b", "GPU-c", "GPU-d")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Variables of a machine with four GPUs."""
    for name in (VISIBLE, HELD, "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    return {KNOWN: ",".join(GPUS), FOLDER: str(tmp_path / "locks")}


PLUGIN = """
import json, os, sys, time


def write(**what):
    about = {"pid": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "at": time.monotonic()}
    file = os.open(FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, json.dumps({**about, **what}).encode() + b"\\n")
    os.close(file)


if sys.argv[1] in VERBS:
    write(end=False)
    time.sleep(0.5)
    write(end=True)
"""
"""A plugin that writes down which GPUs a job sees, and when. Loading it is most of the job."""


def write_plugin(folder: Path, *verbs: str) -> tuple[Path, Path]:
    """The plugin, and the file that it writes."""
    plugin, seen = folder / "seen.py", folder / "seen.jsonl"
    plugin.write_text(PLUGIN.replace("FILE", repr(str(seen))).replace("VERBS", repr(verbs)))
    return plugin, seen


@dataclass(frozen=True)
class Use:
    """The time for which a job used GPUs."""

    gpus: frozenset[str]
    begin: float
    end: float


def uses(seen: Path) -> list[Use]:
    """Those of jobs that have ended."""
    lines = [json.loads(line) for line in seen.read_text().splitlines()] if seen.exists() else []
    begun = {line["pid"]: line["at"] for line in lines if not line["end"]}
    return [Use(frozenset(line["gpus"].split(",")), begun[line["pid"]], line["at"]) for line in lines if line["end"]]


def overlaps(found: Iterable[Use]) -> list[tuple[Use, Use]]:
    """Jobs that had a GPU at the same time."""
    pairs = []
    for gpu in {gpu for use in found for gpu in use.gpus}:
        of_one = sorted((use for use in found if gpu in use.gpus), key=lambda use: use.begin)
        pairs += [(a, b) for a, b in pairwise(of_one) if b.begin < a.end]
    return pairs


SIZES = (1, 2, 4, 1, 2, 1)
"""GPUs of the jobs of one command."""
SNAKEFILE = """
rule all:
    input:
        expand("done/{number}", number=range(6)),


rule job:
    output:
        "done/{number}",
    resources:
        gpus=lambda wildcards: SIZES[int(wildcards.number)],
    shell:
        "python -m halos.distributed.launch --one-process --gpus {resources.gpus} list grids >{output}"
"""


@pytest.mark.slow
def test_two_commands_share_the_gpus_of_a_machine_and_one_that_is_killed_leaves_none_locked(
    tmp_path: Path, machine: dict[str, str]
) -> None:
    """Twelve jobs of 1, 2 and 4 GPUs. Those of the killed command go on, as orphans, beside those of its successor."""
    plugin, seen = write_plugin(tmp_path, "list")
    commands = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        for part in ("halos", "profiles"):
            (folder / part).symlink_to(ROOT / part)
        (folder / "Snakefile").write_text(SNAKEFILE.replace("SIZES", str(SIZES)))
        commands.append(Project(folder, variables=machine))
        commands[-1].write_config({**CATALOGUE, "plugins": [str(plugin)]})
    one, two = commands
    with one.started("--cores=6") as (killed, log), two.started("--cores=6") as (other, their_log):
        deadline = time.monotonic() + 120
        while len(uses(seen)) < 2:
            assert time.monotonic() < deadline, log.read_text() + their_log.read_text()
            time.sleep(0.05)
        orphans = psutil.Process(killed.pid).children(recursive=True)
        killed.kill()
        assert any(job.is_running() for job in orphans)
        assert other.wait(120) == 0, their_log.read_text()
    one.snakemake("--unlock").ok()
    one.snakemake("--cores=6").ok()
    assert psutil.wait_procs(orphans, 60)[1] == []
    found = uses(seen)
    assert Counter(len(use.gpus) for use in found) >= Counter((*SIZES, *SIZES))
    assert {gpu for use in found for gpu in use.gpus} == {"0", "1", "2", "3"}
    assert overlaps(found) == []
    code = "from halos.distributed.devices import take; take(4)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=one.environment(), capture_output=True, text=True, timeout=60
    )
    assert done.stderr.startswith("GPUs of this job: "), "it has not waited"


# ---- the project's rules -------------------------------------------------------------------------------------------

LOSS = """
from halos.losses.imitation import SFT
from halos.registry import LOSSES


@LOSSES.register("seen")
class Seen(SFT):
    pass
"""


@pytest.mark.slow
def test_jobs_of_a_model_with_gpus_have_their_own(fresh: Project, tmp_path: Path, machine: dict[str, str]) -> None:
    plugin, seen = write_plugin(tmp_path, "train")
    plugin.write_text(LOSS + plugin.read_text())
    content = fresh.read_config()
    content["plugins"] = [str(plugin)]
    content["stages"]["seen"] = {"loss": "seen", "lr": 1e-3, "batch_size": 8, "examples": 8}
    content["models"]["m"]["resources"] |= {"gpus": 1, "sampler": "transformers", "mem_gb": 10**6}
    fresh.write_config(content)
    run = fresh.snakemake("results/runs/d/m/base/seed0/reference/responses.safetensors", **machine).ok()
    assert re.search(r"^Limits of this machine: gpus=4, mem_mb=\d+$", run.output, re.MULTILINE)
    assert re.search(r"^jobs of m \(1e\+06 GB\) ask for more than the .* each runs alone$", run.output, re.MULTILINE)
    fresh.edit({"models.m.resources.mem_gb": 1})
    trained = [f"results/runs/d/m/seen/seed{seed}/manifest.json" for seed in (1, 2, 3)]
    run = fresh.snakemake("--cores=3", *trained, **machine, CUDA_VISIBLE_DEVICES="1,GPU-d").ok()
    assert "Limits of this machine: gpus=2, mem_mb=" in run.output
    found = uses(seen)
    assert [len(use.gpus) for use in found] == [1, 1, 1]
    assert {gpu for use in found for gpu in use.gpus} <= {"1", "3"}
    assert overlaps(found) == []
    logs = {log.relative_to(fresh.results / "logs").parts[0]: log.read_text() for log in fresh.results.rglob("*.log")}
    assert {rule for rule, text in logs.items() if "GPUs of this job: " in text} == {"reference", "train"}


TOO_LARGE = {
    "none are here": ({"gpus": 1}, {KNOWN: ""}, r"1 GPU wanted, and there is none on this machine: "),
    "there are fewer": ({"gpus": 5}, {}, r"5 GPUs wanted, and there are 4 on this machine: "),
    "fewer may be used": ({"gpus": 2}, {VISIBLE: "3"}, r"2 GPUs wanted, .* 1 .* \(CUDA_VISIBLE_DEVICES is '3'\)"),
    "no cluster is here": ({"gpus": 1, "nodes": 2}, {}, r"a job on 2 nodes has to be a Slurm job: "),
}  # fmt: skip


@pytest.mark.parametrize("why", TOO_LARGE)
def test_a_model_that_this_machine_is_too_small_for_is_one_sentence_before_any_job(
    why: str, fresh: Project, machine: dict[str, str]
) -> None:
    resources, variables, sentence = TOO_LARGE[why]
    fresh.edit({"models.m.resources": resources})
    run = fresh.snakemake("all", timeout=60, **{**machine, **variables}).failed()
    assert len(re.findall(rf"^models\.m: {sentence}", run.output, re.MULTILINE)) == 1, run.output
    assert not fresh.results.exists()


def test_a_limit_of_the_command_line_is_what_there_is_and_a_dry_run_has_none(
    fresh: Project, machine: dict[str, str]
) -> None:
    fresh.edit({"models.m.resources": {"gpus": 2}})
    assert fresh.dry("--resources", "gpus=1", "--", "all").rules["train_cell"] == 3
    run = fresh.snakemake("--resources", "gpus=1", "--", "all", timeout=60, **machine).failed()
    assert "\nmodels.m: 2 GPUs wanted, and `--resources gpus=1` allows fewer\n" in run.output
