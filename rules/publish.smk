"""Publishing: a grid on one page, its model cards, and a finished grid as one file.

Input:   results/grids/{grid}/config.yaml; its tables and figures; every cell's manifest, log, judgements and task results
Output:  results/reports/{grid}/overview.html   the main figure, the tables and the methods, and needs no other file
         results/reports/{grid}/methods.md      the methods in words, from the settings that were used
         results/cards/{grid}/index.md         a list of the grid's model cards; the cards are the README.md of the
                                               models' folders, which rules of training declare
         results/crates/{grid}.zip             RO-Crate: settings, logs, samples, judgements, tables, figures, hashes
"""


rule write_overview:
    input:
        W.trained,
        tables=multiext("<tables>/", "main.md", "benchmarks.md", "comparisons.md"),
        figure="<figures>/win_rate.svg",
        config="results/grids/{grid}/config.yaml",
    output:
        page=report(
            "results/reports/{grid}/overview.html",
            category="Overview",
            labels={"grid": "{grid}"},
            caption="captions/overview.rst",
        ),
        methods="results/reports/{grid}/methods.md",
    log:
        "<logs>/overview/{grid}.log",
    conda:
        "../envs/report.yaml"
    shell:
        r"""
        exec &>{log:q}
        python -m halos overview \
            --config {input.config:q} \
            --results results \
            --output "$(dirname {output.page:q})"
        """


rule write_cards:
    input:
        W.judged,
        W.benchmarked,
        W.logged,
        W.trained,
        config="results/grids/{grid}/config.yaml",
    output:
        "results/cards/{grid}/index.md",
    log:
        "<logs>/cards/{grid}.log",
    conda:
        "../envs/report.yaml"
    shell:
        r"""
        exec &>{log:q}
        python -m halos cards \
            --config {input.config:q} \
            --results results \
            --output "$(dirname {output:q})"
        """


rule make_crate:
    input:
        W.sampled,
        tables="<tables>/main.md",
        figures="<figures>/win_rate.svg",
        cards="results/cards/{grid}/index.md",
        config="results/grids/{grid}/config.yaml",
    output:
        "results/crates/{grid}.zip",
    log:
        "<logs>/crates/{grid}.log",
    conda:
        "../envs/report.yaml"
    shell:
        r"""
        exec &>{log:q}
        python -m halos crate \
            --config {input.config:q} \
            --results results \
            --output {output:q}
        """
