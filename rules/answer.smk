"""Answers: a cell's samples and task results, by one job that loads its model once.

Which prompt sets and tasks are a batch is decided in halos/workflow/batches.py: all that are missing, at first; later what
is added, changed or deleted.

Input:   the cell's model; feedback records, whose prompts are answered or that a local task is made from
         results/answering/{batch}/config.yaml              the prompt sets and tasks, with their settings
Output:  results/runs/{...}/answering/{batch}/answers       a file of each, or the reason why it failed; temporary: the
                                                            rules `sample` and `task` take the files to their places
         asked.yaml and kept/ beside it are not declared: a copy of the batch's config.yaml, which says what the cell was
         asked where Snakemake's records are gone, and what a stopped job has finished, also for the batches after it
"""


rule answer:
    """A cell's answers to prompt sets and tasks."""
    input:
        choices=inputs.choices,
        config=inputs.answered_config,
        cell="<run>/config.yaml",
        model=inputs.model,
        manifest=inputs.manifest,
        store="<tokens>/store",
        answered=inputs.answered,
    output:
        temp(directory("<run>/answering/{batch}/answers")),
    log:
        "<logs>/answer/{dataset}/{model}/{method}/{run}/{batch}.log",
    benchmark:
        "<runtime>/answer/{dataset}/{model}/{method}/{run}/{batch}.tsv"
    wildcard_constraints:
        method=patterns.policies,
    conda:
        branch(
            resources.backend,
            cases={
                "vllm": "../envs/sample.yaml",
                "transformers": "../envs/evaluate.yaml",
            },
        )
    threads: resources.cpus
    resources:
        gres=resources.sampling_gres,
        gpus=resources.sampling_gpus,
        cpus_per_task=resources.cpus,
        mem_mb=resources.mem_mb,
        runtime=resources.runtime,
        sampling=resources.sampling,
    params:
        # of all that the batch was made for: inputs are those alone for which it is made again
        feedback=inputs.answered_data,
        local=inputs.answered_local,
        fetched=inputs.answered_fetched,
    shell:
        r"""
        exec &>{log:q}
        mkdir -p "$(dirname {output:q})"
        cp {input.config:q} "$(dirname {output:q})/asked.yaml"
        python -m halos.distributed.launch --one-process --gpus {resources.gpus} answer \
            --config {input.config:q} \
            --cell {input.cell:q} \
            --model {input.model:q} \
            --manifest {input.manifest:q} \
            --store {input.store:q} \
            --feedback {params.feedback:q} \
            --local {params.local:q} \
            --fetched {params.fetched:q} \
            --output {output:q} \
            --kept "$(dirname {output:q})/kept" \
            --earlier "$(dirname {input.cell:q})"/answering/*/kept \
            {resources.sampling}
        """
