"""Report: each dataset as a model sees it, the tables and figures of a grid, and what `snakemake --report` shows.

Input:   the reports and stores of datasets
         results/grids/{grid}/config.yaml; every cell's judgements, task results, training log and manifest
Output:  results/reports/{dataset}/{model}/   report (JSON), rows, lengths (SVG, PNG, CSV), examples (HTML)
         results/tables/{grid}/     main, comparisons, benchmarks (CSV and Markdown), reward_models, training,
                                    cells (CSV)
         results/figures/{grid}/    win_rate, score, training, rounds, benchmarks (SVG, PNG, and the data drawn as CSV)
"""


rule make_tables:
    input:
        W.judged,
        W.benchmarked,
        W.logged,
        W.trained,
        config="results/grids/{grid}/config.yaml",
    output:
        main=report(
            "<tables>/main.md",
            category="Tables",
            labels={"table": "Main result"},
            caption="captions/main.rst",
        ),
        comparisons=report(
            "<tables>/comparisons.md",
            category="Tables",
            labels={"table": "Comparisons"},
            caption="captions/comparisons.rst",
        ),
        benchmarks=report(
            "<tables>/benchmarks.md",
            category="Tables",
            labels={"table": "Benchmarks"},
            caption="captions/benchmarks.rst",
        ),
        data=multiext(
            "<tables>/",
            "main.csv",
            "comparisons.csv",
            "benchmarks.csv",
            "reward_models.csv",
            "training.csv",
            "cells.csv",
        ),
    log:
        "<logs>/tables/{grid}.log",
    conda:
        "../envs/report.yaml"
    shell:
        r"""
        exec &>{log:q}
        python -m halos tables \
            --config {input.config:q} \
            --results results \
            --output "$(dirname {output.main:q})"
        """


rule draw_figures:
    input:
        W.judged,
        W.benchmarked,
        W.logged,
        config="results/grids/{grid}/config.yaml",
    output:
        main=report(
            "<figures>/win_rate.svg",
            category="Figures",
            labels={"figure": "Win rate"},
            caption="captions/win_rate.rst",
        ),
        score=report(
            "<figures>/score.svg",
            category="Figures",
            labels={"figure": "Score"},
            caption="captions/score.rst",
        ),
        training=report(
            "<figures>/training.svg",
            category="Figures",
            labels={"figure": "Training"},
            caption="captions/training.rst",
        ),
        rounds=report(
            "<figures>/rounds.svg",
            category="Figures",
            labels={"figure": "Online rounds"},
            caption="captions/rounds.rst",
        ),
        benchmarks=report(
            "<figures>/benchmarks.svg",
            category="Figures",
            labels={"figure": "Benchmarks"},
            caption="captions/benchmarks_figure.rst",
        ),
        png=multiext(
            "<figures>/",
            "win_rate.png",
            "score.png",
            "training.png",
            "rounds.png",
            "benchmarks.png",
        ),
        data=multiext(
            "<figures>/",
            "win_rate.csv",
            "score.csv",
            "training.csv",
            "rounds.csv",
            "benchmarks.csv",
        ),
    log:
        "<logs>/figures/{grid}.log",
    conda:
        "../envs/report.yaml"
    shell:
        r"""
        exec &>{log:q}
        python -m halos figures \
            --config {input.config:q} \
            --results results \
            --output "$(dirname {output.main:q})"
        """


rule describe:
    input:
        data="<data>/report.json",
        feedback=["<data>/train.parquet", "<data>/test.parquet"],
        tokens="<tokens>/report.json",
        store="<tokens>/store",
        model="<base>/model",
    output:
        report=report(
            "<reports>/report.json",
            category="Data",
            labels={"dataset": "{dataset}", "model": "{model}", "what": "Numbers"},
            caption="captions/data_report.rst",
        ),
        rows=report(
            "<reports>/rows.svg",
            category="Data",
            labels={"dataset": "{dataset}", "model": "{model}", "what": "Rows"},
            caption="captions/data_rows.rst",
        ),
        lengths=report(
            "<reports>/lengths.svg",
            category="Data",
            labels={"dataset": "{dataset}", "model": "{model}", "what": "Lengths"},
            caption="captions/data_lengths.rst",
        ),
        examples=report(
            "<reports>/examples.html",
            category="Data",
            labels={"dataset": "{dataset}", "model": "{model}", "what": "Examples"},
            caption="captions/data_examples.rst",
        ),
        more=multiext(
            "<reports>/", "rows.png", "rows.csv", "lengths.png", "lengths.csv"
        ),
    log:
        "<logs>/describe/{dataset}/{model}.log",
    conda:
        "../envs/report.yaml"
    shell:
        r"""
        exec &>{log:q}
        python -m halos describe \
            --data {input.data:q} \
            --tokens {input.tokens:q} \
            --store {input.store:q} \
            --model {input.model:q} \
            --output "$(dirname {output.report:q})"
        """
