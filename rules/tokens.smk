"""Tokens: the sequence store of each dataset and model, and a check that it has what losses read.

Input:   results/tokens/{dataset}/{model}/config.yaml; the dataset's feedback records; the base model's tokenizer
Output:  results/tokens/{dataset}/{model}/store              token ids, and the views that losses read
         results/tokens/{dataset}/{model}/report.json        lengths, truncations and drops
         results/tokens/{dataset}/{model}/checked/{view}.json
"""


rule tokenize:
    """The sequence store of a dataset and a model: token ids, and the views that losses read."""
    input:
        config="<tokens>/config.yaml",
        train="<data>/train.parquet",
        validation="<data>/validation.parquet",
        model="<base>/model",
    output:
        store=directory("<tokens>/store"),
        report="<tokens>/report.json",
    log:
        "<logs>/tokenize/{dataset}/{model}.log",
    benchmark:
        "<runtime>/tokenize/{dataset}/{model}.tsv"
    conda:
        "../envs/train.yaml"
    shell:
        r"""
        exec &>{log:q}
        python -m halos tokenize \
            --config {input.config:q} \
            --train {input.train:q} \
            --validation {input.validation:q} \
            --model {input.model:q} \
            --output {output.store:q} \
            --report {output.report:q}
        """


# A cell asks for the file of its own view, so that a cell with another view makes a new file and leaves the other cells
# alone; each file is made by a look at all views of the grid. The views are a resource, because a changed parameter
# would retrain everything. (`ancient` does not help: Snakemake 9.27 leaves undone whatever comes after a job that reruns
# and is read as ancient.)
rule check:
    """A check, before anything is trained, that a store has what the losses of the grid read."""
    input:
        store="<tokens>/store",
        feedback="<data>/train.parquet",
        report="<data>/report.json",
    output:
        "<tokens>/checked/{view}.json",
    log:
        "<logs>/check/{dataset}/{model}/{view}.log",
    conda:
        "../envs/train.yaml"
    resources:
        views=resources.views,
        prompts=resources.fresh_prompts,
        validation_for=resources.validation_for,
        test_for=resources.test_for,
        margins_for=resources.margins_for,
    shell:
        r"""
        exec &>{log:q}
        python -m halos check \
            --store {input.store:q} \
            --views {resources.views} \
            --feedback {input.feedback:q} \
            --prompts {resources.prompts} \
            --report {input.report:q} \
            --validation-for {resources.validation_for} \
            --test-for {resources.test_for} \
            --margins-for {resources.margins_for} \
            --output {output:q}
        """
