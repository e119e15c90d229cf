"""Data: feedback records of each dataset, from its sources.

Input:   config.yaml; local files of the sources, if any
Output:  results/{folder}/config.yaml                        the part of the catalogue that makes a folder
         results/data/{dataset}/fetched.json                 the commits of sources on the hub, downloaded to its cache
         results/data/{dataset}/{split}.parquet              feedback records of train, validation and test
         results/data/{dataset}/report.json                  rows in and out, drops by reason, duplicates, leaks
         results/data/{dataset}/overlap/{other}/{split}.json train prompts that recur among another dataset's
"""


rule configure:
    """A results folder's config.yaml: the part of the catalogue that makes the folder."""
    input:
        choice=inputs.choice,
    output:
        "results/{folder}/config.yaml",
    log:
        "<logs>/configure/{folder}.log",
    conda:
        "../envs/train.yaml"
    params:
        slice=inputs.slice,
    shell:
        r"""
        printf '%s' {params.slice:q} >{output:q} 2>{log:q}
        """


rule fetch_dataset:
    """A dataset's download from the hub, and the commits that it is of."""
    input:
        "<data>/config.yaml",
    output:
        "<data>/fetched.json",
    log:
        "<logs>/fetch/data/{dataset}.log",
    conda:
        "../envs/train.yaml"
    shell:
        r"""
        exec &>{log:q}
        python -m halos fetch \
            --config {input:q} \
            --output {output:q}
        """


rule prepare:
    """A dataset's feedback records, train, validation and test, from its sources."""
    input:
        config="<data>/config.yaml",
        files=inputs.source_files,
        fetched=inputs.fetched_data,
    output:
        train="<data>/train.parquet",
        validation="<data>/validation.parquet",
        test="<data>/test.parquet",
        report="<data>/report.json",
    log:
        "<logs>/prepare/{dataset}.log",
    benchmark:
        "<runtime>/prepare/{dataset}.tsv"
    conda:
        "../envs/train.yaml"
    shell:
        r"""
        exec &>{log:q}
        python -m halos prepare \
            --config {input.config:q} \
            --fetched {input.fetched:q} \
            --train {output.train:q} \
            --validation {output.validation:q} \
            --test {output.test:q} \
            --report {output.report:q}
        """


rule overlap:
    """The prompts of a dataset's train split that recur among those of another, which a grid is judged on."""
    input:
        train="<data>/train.parquet",
        prompts="results/data/{other}/{split}.parquet",
    output:
        "<data>/overlap/{other}/{split}.json",
    log:
        "<logs>/overlap/{dataset}/{other}/{split}.log",
    benchmark:
        "<runtime>/overlap/{dataset}/{other}/{split}.tsv"
    conda:
        "../envs/train.yaml"
    shell:
        r"""
        exec &>{log:q}
        python -m halos overlap \
            --train {input.train:q} \
            --prompts {input.prompts:q} \
            --output {output:q}
        """
