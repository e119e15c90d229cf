"""Evaluation: win rates against a baseline, how far a policy is from its reference, and lm-evaluation-harness tasks,
which the rule `answer` runs.

Input:   a cell's samples; its model and its reference; results/judges/{judge}/config.yaml; the reward model that judges, if one does
         results/tasks/{task}/config.yaml; results/runs/{...}/answering/{batch}/answers
Output:  results/tasks/{task}/fetched.json          the commits of a task's data, downloaded to the hub's cache
         results/runs/{...}/judged/{judge}.json
         results/runs/{...}/divergence/{prompts}/{number}.json   for grids with `divergence:`
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


rule divergence:
    """Log-probabilities of a cell's own samples, under it and under its reference."""
    input:
        choices=inputs.choices,
        config="<run>/config.yaml",
        model=inputs.model,
        manifest=inputs.manifest,
        reference=inputs.reference_model,
        reference_manifest=inputs.reference_manifest,
        store="<tokens>/store",
        samples="<run>/samples/{prompts}.jsonl",
        vocabulary=inputs.vocabulary,
    output:
        "<run>/divergence/{prompts}/{number}.json",
    log:
        "<logs>/divergence/{dataset}/{model}/{method}/{run}/{prompts}/{number}.log",
    benchmark:
        "<runtime>/divergence/{dataset}/{model}/{method}/{run}/{prompts}/{number}.tsv"
    wildcard_constraints:
        method=patterns.trained_methods,
        number=r"\d+",
    conda:
        "../envs/train.yaml"
    threads: resources.cpus
    resources:
        gres=resources.single_gres,
        gpus=resources.single_gpus,
        cpus_per_task=resources.cpus,
        mem_mb=resources.mem_mb,
        runtime=resources.runtime,
        tokens=resources.tokens,
    shell:
        r"""
        exec &>{log:q}
        python -m halos.distributed.launch --one-process --gpus {resources.gpus} divergence \
            --config {input.config:q} \
            --model {input.model:q} \
            --manifest {input.manifest:q} \
            --reference {input.reference:q} \
            --reference-manifest {input.reference_manifest:q} \
            --store {input.store:q} \
            --samples {input.samples:q} \
            --output {output:q} \
            --prompts {wildcards.number} \
            --tokens-per-microbatch {resources.tokens} \
            --vocabulary {input.vocabulary:q}
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
