"""Evaluation: win rates against a baseline, and lm-evaluation-harness tasks, which run on what samples the model.

Input:   a cell's samples or model; results/judges/{judge}/config.yaml or results/tasks/{task}/config.yaml;
         the reward model that judges
Output:  results/tasks/{task}/fetched.json          the commits of a task's data, which is then in the hub's cache
         results/runs/{...}/judged/{judge}.json
         results/runs/{...}/tasks/{task}.json
"""


rule judge:
    input:
        config="results/judges/{judge}/config.yaml",
        samples=W.judged_samples,
        feedback=W.prompts_data,
        reward_model=W.judging_model,
        baseline=W.baseline,
        difficulties=W.difficulties,
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
        limits=W.judging_limits,
    shell:
        r"""
        exec &>{log:q}
        python -m halos judge \
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


rule fetch_task:
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
    input:
        config="results/tasks/{task}/config.yaml",
        fetched=W.fetched_task,
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
        branch(
            W.sampler,
            cases={
                "vllm": "../envs/sample.yaml",
                "transformers": "../envs/evaluate.yaml",
            },
        )
    threads: W.resource("cpus")
    resources:
        gres=W.sampling_gres,
        cpus_per_task=W.resource("cpus"),
        mem_mb=W.resource("mem_mb"),
        runtime=W.resource("runtime"),
        backend=W.sampler,
        tensor_parallel=W.resource("tensor_parallel"),
    shell:
        r"""
        exec &>{log:q}
        python -m halos task \
            --config {input.config:q} \
            --fetched {input.fetched:q} \
            --model {input.model:q} \
            --feedback {input.feedback:q} \
            --output {output:q} \
            --backend {resources.backend} \
            --tensor-parallel {resources.tensor_parallel}
        """
