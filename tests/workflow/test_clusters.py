"""Clusters without Slurm, and environment modules, through real `snakemake` commands.

The commands of the schedulers are stand-ins that write down what they are asked for, and run the job in the background.
Snakemake's plugins, the profiles and the jobs are the real ones.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from halos.distributed.devices import FOLDER, KNOWN, VISIBLE
from tests.workflow.conftest import Project, Run

LSF, GENERIC = "profiles/lsf", "profiles/generic"
TRAINED = "results/runs/d/m/sft/seed1/manifest.json"
RESOURCES = {"gpus": 1, "cpus": 2, "mem_gb": 3, "runtime": 20, "sampler": "transformers"}

SUBMIT = r"""#!/bin/sh
number=$(($(ls QUEUE | grep -c options) + 1))
at=QUEUE/$number
for job; do :; done
printf '%s ' "$@" >$at.options
if [ -e "$job" ]; then cat "$job"; else echo "$job"; fi >$at.job
run=$at.job
[ $number = LOST ] && run=QUEUE/lost
case "$*" in *"-V "*|*"-env all"*) clean= ;; *) clean="env -i" ;; esac
$clean setsid sh -c "sh $run >$at.log 2>&1; echo \$? >$at.code" >/dev/null 2>&1 </dev/null &
echo ANSWER
"""
"""Runs a job without the caller's variables, unless it is asked for them. One job may be lost: it is killed."""
GRID_ENGINE = {
    "qsub": SUBMIT.replace("ANSWER", "$number"),
    "qstat": '#!/bin/sh\n[ ! -e "QUEUE/$2.code" ] || echo Following jobs do not exist: $2\n',
    "qacct": '#!/bin/sh\nprintf "failed       0\\nexit_status  $(cat QUEUE/$2.code)\\n"\n',
}
LSF_COMMANDS = {
    "bsub": SUBMIT.replace("ANSWER", '"Job <$number> is submitted to queue <gpu>."'),
    "bjobs": """#!/bin/sh
cd QUEUE
for file in *.options; do
    number=${file%.options}
    case "$(cat $number.code 2>/dev/null)" in "") state=RUN ;; 0) state=DONE ;; *) state=EXIT ;; esac
    echo $number $state
done
""",
    "badmin": '#!/bin/sh\necho "MBD configuration:"\necho "LSB_SHAREDIR = QUEUE"\necho "LSF_CONFDIR = QUEUE"\n',
    "lsclusters": '#!/bin/sh\necho "CLUSTER_NAME STATUS"\necho "here ok"\n',
}


@dataclass(frozen=True)
class Submitted:
    """What a scheduler was asked for: the options, and the rule of the job."""

    options: str
    rule: str


@dataclass(frozen=True)
class Scheduler:
    """A stand-in's folder."""

    folder: Path

    def of(self, project: Project) -> Project:
        """The project where its commands are found, on a machine with a GPU by name."""
        path = f"{self.folder}:{project.python}:{Path(sys.executable).parent}:/usr/bin:/bin"
        gpu = {KNOWN: "GPU-a", FOLDER: str(self.folder / "locks"), VISIBLE: "0"}
        return replace(project, variables={"PATH": path, **gpu})

    @property
    def submitted(self) -> list[Submitted]:
        files = sorted((self.folder / "queue").glob("*.options"), key=lambda file: int(file.stem))
        jobs = [file.with_suffix(".job").read_text() + file.read_text() for file in files]
        rules = [re.findall(r'"rule": "(\w+)"|Snakemake_rule_(\w+)', job)[0] for job in jobs]
        return [Submitted(file.read_text(), "".join(rule)) for file, rule in zip(files, rules, strict=True)]


def scheduler(folder: Path, commands: dict[str, str], lost: int = 0) -> Scheduler:
    queue = folder / "scheduler/queue"
    params = queue / "lsbatch/here/configdir/lsb.params"
    params.parent.mkdir(parents=True)
    params.touch()
    (queue / "lost").write_text("kill -9 $$")
    for name, text in commands.items():
        file = folder / "scheduler" / name
        file.write_text(text.replace("QUEUE", str(queue)).replace("LOST", str(lost)))
        file.chmod(0o755)
    return Scheduler(folder / "scheduler")


def asked(run: Run, name: str) -> dict[str, set[str]]:
    """The values of a resource that the jobs of each rule would ask for."""
    values: dict[str, set[str]] = {}
    for job in run.jobs:
        values.setdefault(job.rule, set()).add(job.resources.get(name, ""))
    return values


def test_lsf_is_asked_for_the_gpus_of_each_jobs_model(small: Project, tmp_path: Path) -> None:
    project = small.copy(tmp_path / "project").edit({"models.m.resources": {"gpus": 2, "cpus": 8, "mem_gb": 48}})
    options = asked(project.dry("--profile", LSF, "all"), "lsf_extra")
    gpus = {"train_cell": 2, "reference": 2, "answer": 1}
    assert {rule: options.pop(rule) for rule in gpus} == {
        rule: {f"-r -gpu num={number}/host:j_exclusive=yes"} for rule, number in gpus.items()
    }
    assert set().union(*options.values()) == {"-r"}
    more = "train_cell:lsf_extra=-m old"
    assert asked(project.dry("--profile", LSF, "--set-resources", more, "--", TRAINED), "lsf_extra")["train_cell"] == {
        "-m old -gpu num=2/host:j_exclusive=yes"
    }


def test_the_generic_profile_has_all_that_its_command_names_for_each_job(small: Project) -> None:
    run = small.dry("--profile", GENERIC, "all")
    assert {job.resources.get("cpus_per_task") for job in run.jobs} == {"1"}
    assert {job.resources.get("gpus") for job in run.jobs} == {"0"}


@pytest.mark.slow
def test_grid_engine_is_asked_for_what_a_job_needs_and_a_lost_job_is_run_again_with_more_memory(
    quick: Project, tmp_path: Path
) -> None:
    """Of its model, or the profile's defaults. The first job is lost."""
    engine = scheduler(tmp_path, GRID_ENGINE, lost=1)
    project = engine.of(quick).edit({"models.m.resources": RESOURCES})
    project.snakemake("--profile", GENERIC, "--seconds-between-status-checks=1", "--", TRAINED).ok()
    first, *others = engine.submitted
    assert Counter(job.rule for job in others) == {"model": 1, "prepare": 1, "tokenize": 1, "train_cell": 1}
    needs = {job.rule: job.options for job in others}
    for rule, memory in {"model": 8000, "prepare": 8000, "tokenize": 8000, first.rule: 16000}.items():
        assert f" -pe smp 1 -l gpu=0,mem_free={memory}M,h_rt=0:120:0 " in needs[rule]
    assert " -pe smp 2 -l gpu=1,mem_free=1500M,h_rt=0:20:0 " in needs["train_cell"]
    assert "GPUs of this job: 0 (GPU-a)" in (project.results / "logs/train/d/m/sft/seed1.log").read_text()


def test_a_job_that_grid_engine_has_dropped_before_it_began_has_failed(small: Project, tmp_path: Path) -> None:
    """The accounting never knows it."""
    commands = {"qstat": "#!/bin/sh\necho Following jobs do not exist: $2\nexit 1\n", "qacct": "#!/bin/sh\nexit 1\n"}
    engine = scheduler(tmp_path, {**commands, "sleep": "#!/bin/sh\n"})
    assert state(engine, small) == "failed"


def test_while_grid_engine_does_not_answer_a_job_counts_as_running(small: Project, tmp_path: Path) -> None:
    engine = scheduler(tmp_path, {"qstat": "#!/bin/sh\necho error: unable to contact qmaster\nexit 1\n"})
    assert state(engine, small) == "running"


def state(engine: Scheduler, project: Project) -> str:
    """What the profile's command says of a job."""
    command = [project.path / "profiles/generic/status", "7"]
    done = subprocess.run(
        command, env=engine.of(project).variables, check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.strip()


@pytest.mark.slow
def test_lsf_runs_a_job_with_the_gpu_cores_memory_and_time_of_its_model(quick: Project, tmp_path: Path) -> None:
    """Memory is told by core."""
    quick.snakemake("results/tokens/d/m/checked/sft.json").ok()
    lsf = scheduler(tmp_path, LSF_COMMANDS)
    project = lsf.of(quick).edit({"models.m.resources": RESOURCES})
    project.snakemake("--profile", LSF, "--seconds-between-status-checks=1", "--", TRAINED).ok()
    [job] = lsf.submitted
    assert job.rule == "train_cell"
    wanted = "-W 20 -n 2 -R rusage[mem=1500.0] -R span[hosts=1] -r -gpu num=1/host:j_exclusive=yes -cwd "
    assert f" -env all -P default -q gpu {wanted}" in job.options
    assert "GPUs of this job: 0 (GPU-a)" in (project.results / "logs/train/d/m/sft/seed1.log").read_text()


@pytest.mark.parametrize(("profile", "commands"), [(LSF, LSF_COMMANDS), (GENERIC, GRID_ENGINE)])
def test_several_nodes_need_slurm(profile: str, commands: dict[str, str], small: Project, tmp_path: Path) -> None:
    engine = scheduler(tmp_path, commands)
    project = engine.of(small.copy(tmp_path / "project"))
    run = project.edit({"models.m.resources": {"gpus": 2, "nodes": 2}}).snakemake("--profile", profile, "all").failed()
    assert len(re.findall(r"^models\.m: a job on 2 nodes has to be a Slurm job: ", run.output, re.MULTILINE)) == 1
    assert engine.submitted == []


def test_modules_of_the_config_are_loaded_before_a_job_where_that_is_asked_for(small: Project, tmp_path: Path) -> None:
    loaded = tmp_path / "loaded"
    command = {"BASH_FUNC_module%%": f'() {{ echo "$@" >>{loaded}; }}'}
    project = replace(small.copy(tmp_path / "project"), variables=command)
    modules = ("--config", "envmodules=[cuda/12.8, gcc/13]", "--")
    project.snakemake(*modules, "results/data/d/config.yaml").ok()
    assert not loaded.exists()
    project.snakemake("--sdm", "env-modules", *modules, "results/models/m/config.yaml").ok()
    assert loaded.read_text() == "purge\nload cuda/12.8 gcc/13\n"
    assert project.dry(*modules, "results/data/d/config.yaml").jobs == []
