"""Base models: random weights of an architecture, or links to the weights of a hub or local model.

Input:   results/models/{model}/config.yaml; the dataset that a tokenizer is trained on
Output:  results/models/{model}/fetched.json        the commit of a hub model, downloaded to the hub's cache
         results/models/{model}/model               weights, tokenizer, chat template, generation config
         results/models/{model}/manifest.json
"""


# Rules that fetch are local: the nodes of a cluster may have no network.
rule fetch_model:
    """A base model's download from the hub, and the commit that it is of."""
    input:
        "<base>/config.yaml",
    output:
        "<base>/fetched.json",
    log:
        "<logs>/fetch/models/{model}.log",
    conda:
        "../envs/train.yaml"
    shell:
        r"""
        exec &>{log:q}
        python -m halos fetch \
            --config {input:q} \
            --output {output:q}
        """


rule model:
    """A base model's folder: weights, tokenizer, chat template."""
    input:
        config="<base>/config.yaml",
        feedback=inputs.tokenizer_data,
        fetched=inputs.fetched_model,
        tokenizer_of=inputs.tokenizer_model,
    output:
        model=directory("<base>/model"),
        manifest="<base>/manifest.json",
    log:
        "<logs>/model/{model}.log",
    benchmark:
        "<runtime>/model/{model}.tsv"
    conda:
        "../envs/train.yaml"
    shell:
        r"""
        exec &>{log:q}
        python -m halos model \
            --config {input.config:q} \
            --feedback {input.feedback:q} \
            --fetched {input.fetched:q} \
            --tokenizer-of {input.tokenizer_of:q} \
            --output "$(dirname {output.model:q})"
        """
