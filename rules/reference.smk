"""Reference log-probabilities of a cell's model, cached for every cell that starts from it; a reward model's scores.

Input:   the model and its manifest; the sequence store; for a reward model of `models:`, the store's records
Output:  results/runs/{...}/reference/{part}.safetensors   part: responses, mismatched, both, scores
         results/tokens/{dataset}/{model}/scores/{reward_model}.safetensors
         results/tokens/{dataset}/{of}/reference/{model}/{part}.safetensors   for cells of a model whose stage names
                                                                              another one as its reference
"""


rule reference:
    """A model's log-probabilities of a store's sequences, or a reward model's scores of them."""
    input:
        choices=inputs.choices,
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
        gres=resources.gres,
        gpus=resources.gpus,
        cpus_per_task=resources.cpus,
        mem_mb=resources.mem_mb,
        runtime=resources.runtime,
        mpi=resources.mpi,
        nodes=resources.nodes,
        tasks=resources.nodes,
        tasks_per_gpu=resources.tasks_per_gpu,
        tokens=resources.tokens,
        launch=resources.launch,
    shell:
        r"""
        exec &>{log:q}
        python -m halos.distributed.launch {resources.launch} reference \
            --config {input.config:q} \
            --parent "$(dirname {input.manifest:q})" \
            --store {input.store:q} \
            --part {wildcards.part} \
            --vocabulary {input.vocabulary:q} \
            --output {output:q} \
            --tokens-per-microbatch {resources.tokens}
        """


rule score:
    """The scores of a store's responses by a reward model of `models:`."""
    input:
        config="<tokens>/config.yaml",
        train="<data>/train.parquet",
        validation="<data>/validation.parquet",
        model="<base>/model",
        store="<tokens>/store",
        reward_model=inputs.reward_model,
        manifest=inputs.reward_model_manifest,
    output:
        "<tokens>/scores/{reward_model}.safetensors",
    log:
        "<logs>/score/{dataset}/{model}/{reward_model}.log",
    benchmark:
        "<runtime>/score/{dataset}/{model}/{reward_model}.tsv"
    conda:
        "../envs/train.yaml"
    threads: resources.score.cpus
    resources:
        gres=resources.score.gres,
        gpus=resources.score.gpus,
        cpus_per_task=resources.score.cpus,
        mem_mb=resources.score.mem_mb,
        runtime=resources.score.runtime,
        tokens=resources.score.tokens,
        launch=resources.score.launch,
    shell:
        r"""
        exec &>{log:q}
        python -m halos.distributed.launch {resources.launch} score \
            --config {input.config:q} \
            --train {input.train:q} \
            --validation {input.validation:q} \
            --model {input.model:q} \
            --store {input.store:q} \
            --reward-model "$(dirname {input.manifest:q})" \
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
