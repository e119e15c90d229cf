"""Evaluation: win rates against a baseline, and lm-evaluation-harness tasks.

Input:   a cell's samples or model; results/judges/{judge}/config.yaml or results/tasks/{task}/config.yaml
Output:  results/runs/{...}/judged/{judge}.json
         results/runs/{...}/tasks/{task}.json
"""


rule judge:
    input:
        config="results/judges/{judge}/config.yaml",
        samples=W.judged_samples,
        feedback=W.prompts_data,
    output:
        "<run>/judged/{judge}.json",
    log:
        "<logs>/judge/{dataset}/{model}/{method}/seed{seed}/{judge}.log",
    benchmark:
        "<runtime>/judge/{dataset}/{model}/{method}/seed{seed}/{judge}.tsv"
    conda:
        "../envs/evaluate.yaml"
    shell:
        r"""
        exec &>{log:q}
        python -m halos judge \
            --config {input.config:q} \
            --samples {input.samples:q} \
            --feedback {input.feedback:q} \
            --output {output:q}
        """


rule task:
    input:
        config="results/tasks/{task}/config.yaml",
        model=W.model,
        feedback="<data>/test.parquet",
    output:
        "<run>/tasks/{task}.json",
    log:
        "<logs>/task/{dataset}/{model}/{method}/seed{seed}/{task}.log",
    benchmark:
        "<runtime>/task/{dataset}/{model}/{method}/seed{seed}/{task}.tsv"
    conda:
        "../envs/evaluate.yaml"
    threads: W.resource("cpus")
    resources:
        gres=W.gres,
        cpus_per_task=W.resource("cpus"),
        mem_mb=W.resource("mem_mb"),
        runtime=W.resource("runtime"),
    shell:
        r"""
        exec &>{log:q}
        python -m halos task \
            --config {input.config:q} \
            --model {input.model:q} \
            --feedback {input.feedback:q} \
            --output {output:q}
        """
