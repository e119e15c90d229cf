"""Reference log-probabilities of a cell's model, shared by every cell that starts from it; a reward model's scores.

Input:   the model and its manifest; the sequence store
Output:  results/runs/{...}/reference/{part}.safetensors   part: responses, mismatched, scores
"""


rule reference:
    input:
        config="<run>/config.yaml",
        model=W.model,
        manifest=W.manifest,
        store="<tokens>/store",
    output:
        "<run>/reference/{part}.safetensors",
    log:
        "<logs>/reference/{dataset}/{model}/{method}/seed{seed}/{part}.log",
    benchmark:
        "<runtime>/reference/{dataset}/{model}/{method}/seed{seed}/{part}.tsv"
    conda:
        "../envs/train.yaml"
    threads: W.resource("cpus")
    resources:
        gres=W.single_gres,
        cpus_per_task=W.resource("cpus"),
        mem_mb=W.resource("mem_mb"),
        runtime=W.resource("runtime"),
        tokens=W.resource("tokens_per_microbatch"),
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
