"""Sampling: a cell's responses to a prompt set, by vLLM where the model has GPUs, else by transformers.

Input:   the cell's model; the prompts; results/prompts/{prompts}/config.yaml
Output:  results/runs/{...}/samples/{prompts}.jsonl
"""


rule sample:
    input:
        config="<run>/config.yaml",
        prompts="results/prompts/{prompts}/config.yaml",
        feedback=W.prompts_data,
        model=W.model,
        store="<tokens>/store",
    output:
        "<run>/samples/{prompts}.jsonl",
    log:
        "<logs>/sample/{dataset}/{model}/{method}/seed{seed}/{prompts}.log",
    benchmark:
        "<runtime>/sample/{dataset}/{model}/{method}/seed{seed}/{prompts}.tsv"
    wildcard_constraints:
        method=W.policies,
    conda:
        "../envs/sample.yaml"
    threads: W.resource("cpus")
    resources:
        gres=W.sampling_gres,
        cpus_per_task=W.resource("cpus"),
        mem_mb=W.resource("mem_mb"),
        runtime=W.resource("runtime"),
        batch=W.resource("generate_batch"),
        backend=W.sampler,
        tensor_parallel=W.resource("tensor_parallel"),
    shell:
        r"""
        exec &>{log:q}
        python -m halos sample \
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
