"""Sampling: a cell's responses to a prompt set, by vLLM where the model has GPUs, else by transformers.

The rule `answer` generates them beside the other prompt sets and tasks of the cell.

Input:   results/runs/{...}/answering/{batch}/answers
Output:  results/runs/{...}/samples/{prompts}.jsonl
"""


rule sample:
    """A cell's responses to a prompt set, of those that its model has answered."""
    input:
        answers=inputs.answers,
        choices=inputs.choices,
    output:
        "<run>/samples/{prompts}.jsonl",
    log:
        "<logs>/sample/{dataset}/{model}/{method}/{run}/{prompts}.log",
    wildcard_constraints:
        method=patterns.policies,
    conda:
        "../envs/train.yaml"
    shell:
        r"""
        exec &>{log:q}
        if cat {input.answers:q}/samples/{wildcards.prompts}.failed 2>/dev/null; then exit 1; fi
        cp {input.answers:q}/samples/{wildcards.prompts}.jsonl {output:q}
        """
