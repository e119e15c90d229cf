"""Training: the last stage of a cell, from its parent's weights.

Input:   results/runs/{...}/config.yaml; the parent's model; the sequence store; the parent's log-probabilities;
         a reward model's scores; saved adapters
Output:  results/runs/{...}/model, train.jsonl and, written last, manifest.json
         checkpoints/ and kept/ beside them are not declared, so they survive a failure, and the next attempt goes on
"""


rule train_cell:
    input:
        config="<run>/config.yaml",
        parent=W.parent_model,
        manifest=W.parent_manifest,
        store="<tokens>/store",
        checked=W.checked,
        reference=W.parent_reference,
        reference_of=W.parent_manifest,
        scores=W.scores,
        adapters=W.adapters,
    output:
        model=directory("<run>/model"),
        log="<run>/train.jsonl",
        manifest="<run>/manifest.json",
    log:
        "<logs>/train/{dataset}/{model}/{method}/seed{seed}.log",
    benchmark:
        "<runtime>/train/{dataset}/{model}/{method}/seed{seed}.tsv"
    wildcard_constraints:
        method=W.offline_methods,
        seed=r"\d+",
    conda:
        "../envs/train.yaml"
    threads: W.resource("cpus")
    resources:
        gres=W.gres,
        cpus_per_task=W.resource("cpus"),
        mem_mb=W.resource("mem_mb"),
        runtime=W.resource("runtime"),
        mpi=W.over_nodes("mpi"),
        nodes=W.over_nodes("nodes"),
        tasks=W.over_nodes("tasks"),
        tasks_per_gpu=W.over_nodes("tasks_per_gpu"),
        tokens=W.resource("tokens_per_microbatch"),
        launch=W.launcher,
        checkpointing=W.checkpointing,
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
            --output "$(dirname {output.manifest:q})" \
            --tokens-per-microbatch {resources.tokens} \
            {resources.checkpointing} \
            --time-limit {resources.runtime}
        """
