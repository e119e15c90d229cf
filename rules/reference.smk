"""Reference log-probabilities of a cell's model, cached for every cell that starts from it; a reward model's scores.

Input:   the model and its manifest; the sequence store
Output:  results/runs/{...}/reference/{part}.safetensors   part: responses, mismatched, scores
"""


rule reference:
    """A model's log-probabilities of a store's sequences, or a reward model's scores of them."""
    input:
        config="<run>/config.yaml",
        model=inputs.model,
        manifest=inputs.manifest,
        store="<tokens>/store",
    output:
        "<run>/reference/{part}.safetensors",
    log:
        "<logs>/reference/{dataset}/{model}/{method}/{run}/{part}.log",
    benchmark:
        "<runtime>/reference/{dataset}/{model}/{method}/{run}/{part}.tsv"
    conda:
        "../envs/train.yaml"
    threads: resources.cpus
    resources:
        gres=resources.single_gres,
        cpus_per_task=resources.cpus,
        mem_mb=resources.mem_mb,
        runtime=resources.runtime,
        tokens=resources.tokens,
    shell:
        r"""
        exec &>{log:q}
        python -m halos reference \
            --config {input.config:q} \
            --parent "$(dirname {input.manifest:q})" \
            --store {input.store:q} \
            --part {wildcards.part} \
            --output {output:q} \
            --tokens-per-microbatch {resources.tokens}
        """
