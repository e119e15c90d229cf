"""Report: each dataset as a model sees it, and the tables and figures of a grid; `snakemake --report` shows them.

Input:   the reports and stores of datasets
         results/grids/{grid}/config.yaml; every cell's samples, judgements, task results, training log
         and manifest, and in grids with `divergence:` its log-probabilities of its samples; with
         `preference_sets:` its rewards of these
Output:  results/reports/{dataset}/{model}/   report (JSON), rows, lengths (SVG, PNG, CSV), examples (HTML)
         results/tables/{grid}/     the tables of the subjects that the grid has (CSV; most as Markdown and LaTeX, too)
         results/figures/{grid}/    the figures of the subjects that the grid has (SVG, PNG, and the data drawn as CSV)

A subject of tables and figures is a file of halos/report/subjects; captions/{table}.rst and captions/{figure}_figure.rst
are its captions.
"""


# One file for the rules that read all of these: Snakemake takes a quarter of a millisecond for each input of each job.
rule gather:
    """A sign that every cell of a grid is trained, judged and benchmarked."""
    input:
        targets.trained,
        targets.logged,
        targets.judged,
        targets.benchmarked,
    output:
        "results/grids/{grid}/measured",
    log:
        "<logs>/gather/{grid}.log",
    conda:
        "../envs/report.yaml"
    shell:
        r"""
        touch {output:q} 2>{log:q}
        """


rule make_tables:
    """A grid's tables."""
    input:
        "results/grids/{grid}/measured",
        targets.chosen,
        targets.counted,
        targets.compared,
        targets.asked,
        targets.sampled,
        targets.diverged,
        targets.rewarded,
        config="results/grids/{grid}/config.yaml",
    output:
        *[
            report(
                f"<tables>/{name}.md",
                category="Tables",
                labels={"table": name.capitalize()},
                caption=f"captions/{name}.rst",
            )
            for name in targets.tables
        ],
        tex=expand("<tables>/{name}.tex", name=targets.tables, allow_missing=True),
        data=expand(
            "<tables>/{name}.csv",
            name=[*targets.tables, *targets.plain_tables],
            allow_missing=True,
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
            --output results/tables/{wildcards.grid}
        """


rule draw_figures:
    """A grid's figures."""
    input:
        "results/grids/{grid}/measured",
        targets.chosen,
        targets.asked,
        targets.diverged,
        targets.rewarded,
        config="results/grids/{grid}/config.yaml",
    output:
        *[
            report(
                f"<figures>/{name}.svg",
                category="Figures",
                labels={"figure": name.replace("_", " ").capitalize()},
                caption=f"captions/{name}_figure.rst",
            )
            for name in targets.figures
        ],
        png=expand("<figures>/{name}.png", name=targets.figures, allow_missing=True),
        data=expand("<figures>/{name}.csv", name=targets.figures, allow_missing=True),
    log:
        "<logs>/figures/{grid}.log",
    conda:
        "../envs/report.yaml"
    params:
        only=targets.figures,
    shell:
        r"""
        exec &>{log:q}
        python -m halos figures \
            --config {input.config:q} \
            --results results \
            --output results/figures/{wildcards.grid} \
            --only {params.only}
        """


rule describe:
    """A report on a dataset as a model sees it: rows, lengths, examples."""
    input:
        data="<data>/report.json",
        feedback=["<data>/train.parquet", "<data>/validation.parquet"],
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
