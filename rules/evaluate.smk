"""Evaluation: win rates against a baseline, and lm-evaluation-harness tasks.

Input:   a cell's samples or model; results/judges/{judge}/config.yaml or results/tasks/{task}/config.yaml;
         the reward model that judges
Output:  results/runs/{...}/judged/{judge}.json
         results/runs/{...}/tasks/{task}.json
"""


rule judge:
    input:
        config="results/judges/{judge}/config.yaml",
        samples=W.judged_samples,
        feedback=W.prompts_data,
        reward_model=W.judging_model,
    output:
        "<run>/judged/{judge}.json",
    log:
        "<logs>/judge/{dataset}/{model}/{method}/seed{seed}/{judge}.log",
    benchmark:
        "<runtime>/judge/{dataset}/{model}/{method}/seed{seed}/{judge}.tsv"
    conda:
        "../envs/evaluate.yaml"
    threads: W.judging_resource("cpus")
    resources:
        gres=W.judging_gres,
        cpus_per_task=W.judging_resource("cpus"),
        mem_mb=W.judging_resource("mem_mb"),
        runtime=W.judging_resource("runtime"),
        tokens=W.judging_resource("tokens_per_microbatch"),
    shell:
        r"""
        exec &>{log:q}
        python -m halos judge \
            --config {input.config:q} \
            --samples {input.samples:q} \
            --feedback {input.feedback:q} \
            --reward-model {input.reward_model:q} \
            --output {output:q} \
            --tokens-per-microbatch {resources.tokens}
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
    wildcard_constraints:
        method=W.policies,
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
