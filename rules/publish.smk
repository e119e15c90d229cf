"""Publishing: a grid on one page, its responses to read, its model cards, and a finished grid as one archive.

Input:   results/grids/{grid}/config.yaml; its tables and figures; of every cell the manifest, log, samples, judgements
         and task results; the feedback records that its prompts come from
Output:  results/reports/{grid}/overview.html   the main figure, the tables and the methods in one file
         results/reports/{grid}/methods.md      the methods in words, from the settings that were used
         results/reports/{grid}/responses.html  the responses of all methods and seeds, side by side, with verdicts
         results/reports/{grid}/responses/      pages of all responses, where one has no room for them; else empty
         results/cards/{grid}/index.md          a list of the grid's model cards: README.md in each model's folder,
                                                which a rule of training declares as its output
         results/crates/{grid}.zip              RO-Crate: settings, logs, samples, judgements, tables, figures, hashes
"""


rule write_overview:
    """A grid on one page, and its methods in words."""
    input:
        tables=multiext("<tables>/", "main.md", "benchmarks.md", "comparisons.md"),
        figure="<figures>/win_rate.svg",
        config="results/grids/{grid}/config.yaml",
    output:
        page=report(
            "results/reports/{grid}/overview.html",
            category="Overview",
            labels={"grid": "{grid}", "what": "Overview"},
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


rule write_responses:
    """A grid's responses on one page, side by side, with verdicts and filters."""
    input:
        targets.trained,
        targets.sampled,
        targets.judged,
        targets.asked,
        targets.prompted,
        config="results/grids/{grid}/config.yaml",
    output:
        page=report(
            "results/reports/{grid}/responses.html",
            category="Overview",
            labels={"grid": "{grid}", "what": "Responses"},
            caption="captions/responses.rst",
        ),
        files=directory("results/reports/{grid}/responses"),
    log:
        "<logs>/responses/{grid}.log",
    conda:
        "../envs/report.yaml"
    shell:
        r"""
        exec &>{log:q}
        python -m halos responses \
            --config {input.config:q} \
            --results results \
            --output {output.page:q}
        """


rule write_cards:
    """A grid's model cards, and a list of them."""
    input:
        "results/grids/{grid}/measured",
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
    """A finished grid as one RO-Crate, without its weights."""
    input:
        targets.sampled,
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
