"""Alignment of language models with human-centred losses: from config.yaml to tables and figures.

snakemake all                       the chosen grid (`grid:` in config.yaml), on this machine
snakemake --profile slurm all       the chosen grid on a Slurm cluster; profiles/ has others
snakemake PATH                      one file of the results tree, and what it is made from
snakemake --list                    what each rule makes
"""

from snakemake.settings.types import DeploymentMethod
from snakemake.utils import min_version

min_version("9.19")


configfile: "config.yaml"


report: "rules/captions/workflow.rst"


include: "rules/common.smk"


pathvars:
    data="results/data/{dataset}",
    base="results/models/{model}",
    tokens="results/tokens/{dataset}/{model}",
    run="results/runs/{dataset}/{model}/{method}/{run}",
    choices="results/choices/{dataset}/{model}/{method}",
    reports="results/reports/{dataset}/{model}",
    tables="results/tables/{grid}",
    figures="results/figures/{grid}",
    logs="results/logs",
    runtime="results/runtime",


include: "rules/data.smk"
include: "rules/tokens.smk"
include: "rules/models.smk"
include: "rules/reference.smk"
include: "rules/train.smk"
include: "rules/answer.smk"
include: "rules/sample.smk"
include: "rules/online.smk"
include: "rules/evaluate.smk"
include: "rules/tune.smk"
include: "rules/report.smk"
include: "rules/publish.smk"


# Below the rules: above them, Snakemake (9.27) would not apply these to wildcards that come from a pathvar.
wildcard_constraints:
    dataset=patterns.ids("datasets"),
    model=patterns.ids("models"),
    method=patterns.methods,
    run=patterns.run,
    prompts=patterns.ids("prompts"),
    labeller=patterns.ids("labellers"),
    reward_model=patterns.ids("models"),
    judge=patterns.ids("judges"),
    opponent=patterns.policies,
    task=patterns.ids("tasks"),
    batch="[0-9a-f]{12}",
    grid=study.grid,
    other=patterns.ids("datasets"),
    split="train|validation|test",
    part="responses|mismatched|both|scores",
    view="[a-z][a-z0-9_]*",


load_modules(workflow.rules, study.config.envmodules)
ask_lsf_for_gpus(workflow.rules)


# This runs in the first process alone, before anything is submitted, and never in a dry run.
onstart:
    try:
        needed = {job.rule.name for job in workflow.dag.needrun_jobs()}
        if {"ask", "ask_pair", "label", "label_round"} & needed:
            check_keys(study)
        # with conda, jobs have another environment than this one
        if {"train_cell", "train_round"} & needed and (
            DeploymentMethod.CONDA
            not in workflow.deployment_settings.deployment_method
        ):
            check_trackers(study.config.trackers)
        if workflow.executor_plugin.name == "local":
            for line in share(workflow, resources):
                logger.info(line)
        elif workflow.executor_plugin.name != "slurm":
            refuse_nodes(workflow, resources)
        elif workflow.execution_settings.lock:
            from halos.distributed.slurm import end_orphans

            end_orphans(
                workflow.dag.needrun_jobs(),
                workflow.executor_settings.jobname_prefix,
            )
    except HalosError as error:
        raise WorkflowError(str(error))


onsuccess:
    if workflow.is_main_process:
        inputs.clear()


onerror:
    if workflow.is_main_process:
        inputs.clear()


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
    choose,
    snapshot,
    gather,
    sample,
    judge,
    judge_pair,
    task,
    join,


rule all:
    """Everything for the chosen grid: tables, figures, overview, responses to read, model cards, and all that they come from."""
    default_target: True
    input:
        # listed though the tables need them, so that a cell whose folder was deleted is made again
        targets.trained,
        targets.sampled,
        targets.judged,
        targets.benchmarked,
        targets.described,
        expand("results/tables/{grid}/main.md", grid=study.grid),
        expand("results/figures/{grid}/win_rate.svg", grid=study.grid),
        expand("results/reports/{grid}/overview.html", grid=study.grid),
        expand("results/reports/{grid}/responses.html", grid=study.grid),
        expand("results/cards/{grid}/index.md", grid=study.grid),


rule train:
    """The trained models of the chosen grid, reward models included."""
    input:
        targets.trained,


rule samples:
    """The samples of the chosen grid."""
    input:
        targets.sampled,


rule judged:
    """The judgements of the chosen grid."""
    input:
        targets.judged,


rule tasks:
    """The task results of the chosen grid."""
    input:
        targets.benchmarked,


rule tables:
    """The tables of the chosen grid."""
    input:
        expand("results/tables/{grid}/main.md", grid=study.grid),


rule figures:
    """The figures of the chosen grid."""
    input:
        expand("results/figures/{grid}/win_rate.svg", grid=study.grid),
