"""Evaluation: win rates against a baseline, and lm-evaluation-harness tasks, which the rule `answer` runs.

Input:   a cell's samples; results/judges/{judge}/config.yaml; the reward model that judges, if one does
         results/tasks/{task}/config.yaml; results/runs/{...}/answering/{batch}/answers
Output:  results/tasks/{task}/fetched.json          the commits of a task's data, downloaded to the hub's cache
         results/runs/{...}/judged/{judge}.json
         results/runs/{...}/judged/{judge}/against/{opponent}.json    where a judge is asked about two methods
         results/runs/{...}/tasks/{task}.json
"""


rule judge:
    """A judge's verdicts on a cell's samples, against a baseline."""
    input:
        choices=inputs.choices,
        config="results/judges/{judge}/config.yaml",
        samples=inputs.judged_samples,
        feedback=inputs.prompts_data,
        reward_model=inputs.judging_model,
        baseline=inputs.baseline,
        difficulties=inputs.difficulties,
    output:
        "<run>/judged/{judge}.json",
    log:
        "<logs>/judge/{dataset}/{model}/{method}/{run}/{judge}.log",
    benchmark:
        "<runtime>/judge/{dataset}/{model}/{method}/{run}/{judge}.tsv"
    conda:
        "../envs/evaluate.yaml"
    threads: resources.judge.cpus
    resources:
        gres=resources.judge.single_gres,
        gpus=resources.judge.single_gpus,
        cpus_per_task=resources.judge.cpus,
        mem_mb=resources.judge.mem_mb,
        runtime=resources.judge.runtime,
        tokens=resources.judge.tokens,
        limits=resources.judge.limits,
    shell:
        r"""
        exec &>{log:q}
        python -m halos.distributed.launch --one-process --gpus {resources.gpus} judge \
            --config {input.config:q} \
            --samples {input.samples:q} \
            --feedback {input.feedback:q} \
            --reward-model {input.reward_model:q} \
            --baseline {input.baseline:q} \
            --difficulties {input.difficulties:q} \
            --output {output:q} \
            --tokens-per-microbatch {resources.tokens} \
            {resources.limits}
        """


rule judge_pair:
    """A judge's verdicts on a cell's samples, against those of another method with the same seed."""
    input:
        choices=inputs.choices,
        config="results/judges/{judge}/against/{opponent}/config.yaml",
        samples=inputs.judged_samples,
        feedback=inputs.prompts_data,
        opponent=inputs.opponent_samples,
    output:
        "<run>/judged/{judge}/against/{opponent}.json",
    log:
        "<logs>/judge/{dataset}/{model}/{method}/{run}/{judge}/against/{opponent}.log",
    benchmark:
        "<runtime>/judge/{dataset}/{model}/{method}/{run}/{judge}/against/{opponent}.tsv"
    wildcard_constraints:
        run=patterns.seed,
    conda:
        "../envs/evaluate.yaml"
    threads: resources.judge.cpus
    resources:
        cpus_per_task=resources.judge.cpus,
        mem_mb=resources.judge.mem_mb,
        runtime=resources.judge.runtime,
        limits=resources.judge.limits,
    shell:
        r"""
        exec &>{log:q}
        python -m halos judge \
            --config {input.config:q} \
            --samples {input.samples:q} \
            --feedback {input.feedback:q} \
            --baseline {input.opponent:q} \
            --output {output:q} \
            {resources.limits}
        """


rule fetch_task:
    """A task's data downloaded from the hub, and the commits that they are of."""
    input:
        "results/tasks/{task}/config.yaml",
    output:
        "results/tasks/{task}/fetched.json",
    log:
        "<logs>/fetch/tasks/{task}.log",
    conda:
        "../envs/evaluate.yaml"
    shell:
        r"""
        exec &>{log:q}
        python -m halos fetch \
            --config {input:q} \
            --output {output:q}
        """


rule task:
    """A cell's result on a task of lm-evaluation-harness, of those that its model has answered."""
    input:
        answers=inputs.answers,
        choices=inputs.choices,
    output:
        "<run>/tasks/{task}.json",
    log:
        "<logs>/task/{dataset}/{model}/{method}/{run}/{task}.log",
    wildcard_constraints:
        method=patterns.policies,
    conda:
        "../envs/train.yaml"
    shell:
        r"""
        exec &>{log:q}
        if cat {input.answers:q}/tasks/{wildcards.task}.failed 2>/dev/null; then exit 1; fi
        cp {input.answers:q}/tasks/{wildcards.task}.json {output:q}
        """
