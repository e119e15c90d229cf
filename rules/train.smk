"""Training: the last stage of a cell, from its parent's weights.

Input:   results/runs/{...}/config.yaml; the parent's model; the sequence store; the reference's log-probabilities;
         a reward model's scores; saved adapters; the run that the cell goes on from
Output:  results/runs/{...}/model, train.jsonl and, written last, manifest.json
         checkpoints/, kept/ and previews.jsonl beside them are not declared: Snakemake leaves them after a failure, and
         the next attempt goes on from the last checkpoint
         results/runs/{...}/snapshot{number}/model, train.jsonl, manifest.json, from kept/: as if training ended there
"""


rule train_cell:
    """A cell's model: the last stage of its method, trained from its parent's weights."""
    input:
        choices=inputs.choices,
        config="<run>/config.yaml",
        parent=inputs.parent_model,
        manifest=inputs.parent_manifest,
        store="<tokens>/store",
        checked=inputs.checked,
        reference=inputs.reference,
        reference_of=inputs.reference_manifest,
        scores=inputs.scores,
        adapters=inputs.adapters,
        resumed=inputs.resumed,
    output:
        model=directory("<run>/model"),
        log="<run>/train.jsonl",
        manifest="<run>/manifest.json",
    log:
        "<logs>/train/{dataset}/{model}/{method}/{run}.log",
    benchmark:
        "<runtime>/train/{dataset}/{model}/{method}/{run}.tsv"
    wildcard_constraints:
        method=patterns.offline_methods,
        run=patterns.seed,
    conda:
        "../envs/train.yaml"
    threads: resources.cpus
    resources:
        gres=resources.gres,
        gpus=resources.gpus,
        cpus_per_task=resources.cpus,
        mem_mb=resources.mem_mb,
        runtime=resources.runtime,
        mpi=resources.mpi,
        nodes=resources.nodes,
        tasks=resources.nodes,
        tasks_per_gpu=resources.tasks_per_gpu,
        launch=resources.launch,
        options=resources.training,
    shell:
        r"""
        exec &>{log:q}
        python -m halos.distributed.launch {resources.launch} train \
            --config {input.config:q} \
            --parent "$(dirname {input.manifest:q})" \
            --store {input.store:q} \
            --reference {input.reference:q} \
            --reference-of "$(dirname {input.reference_of:q})" \
            --scores {input.scores:q} \
            --resumed {input.resumed:q} \
            --output "$(dirname {output.manifest:q})" \
            {resources.options} \
            --time-limit {resources.runtime}
        """


rule snapshot:
    """A model that a cell's training passed through, as a run of its own."""
    input:
        choices=inputs.choices,
        config="<run>/snapshot{number}/config.yaml",
        manifest="<run>/manifest.json",
    output:
        model=directory("<run>/snapshot{number}/model"),
        log="<run>/snapshot{number}/train.jsonl",
        manifest="<run>/snapshot{number}/manifest.json",
    log:
        "<logs>/snapshot/{dataset}/{model}/{method}/{run}/{number}.log",
    wildcard_constraints:
        method=patterns.offline_methods,
        run=patterns.seed,
        number=r"\d+",
    conda:
        "../envs/train.yaml"
    shell:
        r"""
        exec &>{log:q}
        python -m halos snapshot \
            --config {input.config:q} \
            --run "$(dirname {input.manifest:q})" \
            --output "$(dirname {output.manifest:q})"
        """
