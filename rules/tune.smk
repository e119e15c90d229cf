"""Tuning: the choice between the trials of a sweep, on validation prompts, which the chosen cells' settings come from.

A trial is a cell of its own, METHOD~ID, and is made by the rules of any cell. What has the chosen settings waits for
the choice (`choices` among the inputs of each rule of a cell), and runs again only when another trial is chosen.

Input:   results/choices/{dataset}/{model}/{method}/config.yaml   the trials, and what decides between them
         the judgements, task results or logs of the trials, and their manifests
Output:  results/choices/{dataset}/{model}/{method}/choice.json   each trial's value, and the one that is chosen
"""


checkpoint choose:
    """The choice between the trials of a sweep."""
    input:
        config="<choices>/config.yaml",
        tried=inputs.tried,
    output:
        "<choices>/choice.json",
    log:
        "<logs>/choose/{dataset}/{model}/{method}.log",
    conda:
        "../envs/report.yaml"
    shell:
        r"""
        exec &>{log:q}
        python -m halos choose \
            --config {input.config:q} \
            --results results \
            --output {output:q}
        """
