"""Data: from named sources to feedback records, and from those to the sequence store of a model.

Input:   config.yaml; local files of the sources, if any
Output:  results/{...}/config.yaml                  the part of the catalogue that makes that folder
         results/data/{dataset}/fetched.json        the commits of sources on the hub, whose files are then in its cache
         results/data/{dataset}/{train,test}.parquet, report.json
         results/tokens/{dataset}/{model}/store, report.json, checked/{view}.json
"""


rule configure:
    output:
        "results/{folder}/config.yaml",
    log:
        "<logs>/configure/{folder}.log",
    conda:
        "../envs/train.yaml"
    params:
        slice=W.slice,
    shell:
        r"""
        printf '%s' {params.slice:q} >{output:q} 2>{log:q}
        """


rule fetch_dataset:
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
    input:
        config="<data>/config.yaml",
        files=W.source_files,
        fetched=W.fetched_data,
    output:
        train="<data>/train.parquet",
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
            --test {output.test:q} \
            --report {output.report:q}
        """


rule tokenize:
    input:
        config="<tokens>/config.yaml",
        train="<data>/train.parquet",
        test="<data>/test.parquet",
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
            --test {input.test:q} \
            --model {input.model:q} \
            --output {output.store:q} \
            --report {output.report:q}
        """


# Before anything is trained: does the dataset have what the losses of the grid read? A cell asks for the file of its
# view, so that a cell with another view makes a new file and leaves the other cells alone; each file is made by a look
# at all views of the grid. These are a resource, because a changed parameter would retrain everything. (`ancient` is no
# way out: Snakemake 9.27 leaves undone whatever comes after a job that reruns and is read as ancient.)
rule check:
    input:
        store="<tokens>/store",
        feedback="<data>/train.parquet",
    output:
        "<tokens>/checked/{view}.json",
    log:
        "<logs>/check/{dataset}/{model}/{view}.log",
    conda:
        "../envs/train.yaml"
    resources:
        views=W.views,
        prompts=W.fresh_prompts,
    shell:
        r"""
        exec &>{log:q}
        python -m halos check \
            --store {input.store:q} \
            --views {resources.views} \
            --feedback {input.feedback:q} \
            --prompts {resources.prompts} \
            --output {output:q}
        """
