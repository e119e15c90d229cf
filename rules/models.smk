"""Base models: random weights of an architecture, or the linked weights of a hub or local model.

Input:   results/models/{model}/config.yaml; the dataset that a tokenizer is trained on
Output:  results/models/{model}/model               weights, tokenizer, chat template, generation config
         results/models/{model}/manifest.json
"""


rule model:
    input:
        config="<base>/config.yaml",
        feedback=W.tokenizer_data,
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
            --output "$(dirname {output.model:q})"
        """
