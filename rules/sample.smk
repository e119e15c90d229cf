"""Sampling: a cell's responses to a prompt set, by vLLM where the model has GPUs, else by transformers.

Input:   the cell's model; the prompts; results/prompts/{prompts}/config.yaml
Output:  results/runs/{...}/samples/{prompts}.jsonl
"""


rule sample:
    """A cell's responses to a prompt set."""
    input:
        config="<run>/config.yaml",
        prompts="results/prompts/{prompts}/config.yaml",
        feedback=inputs.prompts_data,
        model=inputs.model,
        store="<tokens>/store",
    output:
        "<run>/samples/{prompts}.jsonl",
    log:
        "<logs>/sample/{dataset}/{model}/{method}/{run}/{prompts}.log",
    benchmark:
        "<runtime>/sample/{dataset}/{model}/{method}/{run}/{prompts}.tsv"
    wildcard_constraints:
        method=patterns.policies,
    conda:
        "../envs/sample.yaml"
    threads: resources.cpus
    resources:
        gres=resources.sampling_gres,
        gpus=resources.sampling_gpus,
        cpus_per_task=resources.cpus,
        mem_mb=resources.mem_mb,
        runtime=resources.runtime,
        batch=resources.batch,
        backend=resources.backend,
        tensor_parallel=resources.tensor_parallel,
    shell:
        r"""
        exec &>{log:q}
        python -m halos.distributed.launch --one-process --gpus {resources.gpus} sample \
            --config {input.config:q} \
            --prompts {input.prompts:q} \
            --feedback {input.feedback:q} \
            --model {input.model:q} \
            --store {input.store:q} \
            --output {output:q} \
            --batch {resources.batch} \
            --backend {resources.backend} \
            --tensor-parallel {resources.tensor_parallel}
        """
