"""Alignment of language models with human-centred losses: from a catalogue (config.yaml) to tables and figures.

snakemake all                       the chosen grid (`grid:` in config.yaml), on this machine
snakemake --profile slurm all       the same on a Slurm cluster
snakemake PATH                      one file of the results tree, and what it needs
"""

from snakemake.utils import min_version

min_version("9.19")


configfile: "config.yaml"


report: "rules/captions/workflow.rst"


include: "rules/common.smk"


pathvars:
    data="results/data/{dataset}",
    base="results/models/{model}",
    tokens="results/tokens/{dataset}/{model}",
    run="results/runs/{dataset}/{model}/{method}/seed{seed}",
    reports="results/reports/{dataset}/{model}",
    tables="results/tables/{grid}",
    figures="results/figures/{grid}",
    logs="results/logs",
    runtime="results/runtime",


include: "rules/data.smk"
include: "rules/models.smk"
include: "rules/reference.smk"
include: "rules/train.smk"
include: "rules/sample.smk"
include: "rules/online.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"
include: "rules/publish.smk"


# Below the rules: above them, Snakemake (9.27) would not apply these to wildcards that come from a pathvar.
wildcard_constraints:
    dataset=W.ids("datasets"),
    model=W.ids("models"),
    method=W.methods,
    seed=rf"\d+|{ROUND}",
    prompts=W.ids("prompts"),
    labeller=W.ids("labellers"),
    judge=W.ids("judges"),
    task=W.ids("tasks"),
    grid=W.grid,
    part="responses|mismatched|scores",
    view="[a-z]+",


# In the first process alone, and before anything is submitted; never in a dry run.
onstart:
    try:
        if {"judge", "label", "label_round"} & {
            job.rule.name for job in workflow.dag.needrun_jobs()
        }:
            check_keys(CONFIG)
        if (
            workflow.executor_plugin.name == "slurm"
            and workflow.execution_settings.lock
        ):
            from halos.distributed.slurm import end_orphans

            end_orphans(
                workflow.dag.needrun_jobs(),
                workflow.executor_settings.jobname_prefix,
            )
    except HalosError as error:
        raise WorkflowError(str(error))


localrules:
    all,
    train,
    samples,
    judged,
    tasks,
    tables,
    figures,
    configure,
    fetch_model,
    fetch_dataset,
    fetch_task,
    check,
    join,


rule all:
    default_target: True
    input:
        # asked for by themselves, so that a cell whose folder was deleted is made again
        W.trained,
        W.sampled,
        W.judged,
        W.benchmarked,
        W.described,
        expand("results/tables/{grid}/main.md", grid=W.grid),
        expand("results/figures/{grid}/win_rate.svg", grid=W.grid),
        expand("results/reports/{grid}/overview.html", grid=W.grid),
        expand("results/cards/{grid}/index.md", grid=W.grid),


rule train:
    input:
        W.trained,


rule samples:
    input:
        W.sampled,


rule judged:
    input:
        W.judged,


rule tasks:
    input:
        W.benchmarked,


rule tables:
    input:
        expand("results/tables/{grid}/main.md", grid=W.grid),


rule figures:
    input:
        expand("results/figures/{grid}/win_rate.svg", grid=W.grid),
