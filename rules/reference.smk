"""Reference log-probabilities of a cell's model, cached for every cell that starts from it; a reward model's scores.

Input:   the model and its manifest; the sequence store
Output:  results/runs/{...}/reference/{part}.safetensors   part: responses, mismatched, scores
         results/tokens/{dataset}/{of}/reference/{model}/{part}.safetensors   for cells of a model whose stage names
                                                                              another one as its reference
"""


rule reference:
    """A model's log-probabilities of a store's sequences, or a reward model's scores of them."""
    input:
        config="<run>/config.yaml",
        model=inputs.model,
        manifest=inputs.manifest,
        store="<tokens>/store",
        vocabulary=[],
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
            --vocabulary {input.vocabulary:q} \
            --output {output:q} \
            --tokens-per-microbatch {resources.tokens}
        """


use rule reference as reference_of_model with:
    """A base model's log-probabilities of a store of another model, of the same vocabulary."""
    input:
        config="results/runs/{dataset}/{model}/base/seed0/config.yaml",
        model="<base>/model",
        manifest="<base>/manifest.json",
        store="results/tokens/{dataset}/{of}/store",
        vocabulary="results/models/{of}/model",
    output:
        "results/tokens/{dataset}/{of}/reference/{model}/{part}.safetensors",
    log:
        "<logs>/reference_of_model/{dataset}/{of}/{model}/{part}.log",
    benchmark:
        "<runtime>/reference_of_model/{dataset}/{of}/{model}/{part}.tsv"
    wildcard_constraints:
        of=patterns.ids("models"),
