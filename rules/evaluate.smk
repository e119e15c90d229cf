"""Evaluation: win rates against a baseline, how far a policy is from its reference, and lm-evaluation-harness tasks,
which the rule `answer` runs.

Which judgements are a batch is decided in halos/workflow/judging.py: all that are missing by one reward model, by one
model that is asked, or by verifiers. A model behind a server judges each cell in a job of its own, as its server may
fail; so do people, whose votes `python -m halos annotate` gathers.

Input:   the samples of cells; their models and references; results/judges/{judge}/config.yaml; the reward model that
         judges, if one does
         results/judging/{batch}/config.yaml         the judgements of a batch, and the files that each is made from
         results/tasks/{task}/config.yaml; results/runs/{...}/answering/{batch}/answers
         annotations/{judge}/{annotator}.jsonl       votes of people, which no rule makes or deletes
Output:  results/judging/{batch}/judgements          a file of each, or the reason why it failed; temporary: the rule
                                                     `judge` takes the files to their places
         results/judging/kept/                       not declared: what a stopped job has finished, for the next one
         results/tasks/{task}/fetched.json           the commits of a task's data, downloaded to the hub's cache
         results/runs/{...}/judged/{judge}.json
         results/runs/{...}/judged/{judge}/against/{opponent}.json    where a judge is asked about two methods
         results/runs/{...}/divergence/{prompts}/{number}.json   for grids with `divergence:`
         results/runs/{...}/rewards/{other}.json    for grids with `preference_sets:`, of the dataset {other}
         results/runs/{...}/tasks/{task}.json
"""


rule decide:
    """Judges' verdicts on the samples of cells, against a baseline."""
    input:
        choices=inputs.decided_choices,
        config="results/judging/{batch}/config.yaml",
        decided=inputs.decided,
    output:
        temp(directory("results/judging/{batch}/judgements")),
    log:
        "<logs>/decide/{batch}.log",
    benchmark:
        "<runtime>/decide/{batch}.tsv"
    conda:
        branch(
            resources.judge.backend,
            cases={
                "vllm": "../envs/sample.yaml",
                "transformers": "../envs/evaluate.yaml",
            },
        )
    threads: resources.judge.cpus
    resources:
        gres=resources.judge.sampling_gres,
        gpus=resources.judge.sampling_gpus,
        cpus_per_task=resources.judge.cpus,
        mem_mb=resources.judge.mem_mb,
        runtime=resources.judge.runtime,
        tokens=resources.judge.tokens,
        sampling=resources.judge.sampling,
    shell:
        r"""
        exec &>{log:q}
        python -m halos.distributed.launch --one-process --gpus {resources.gpus} decide \
            --config {input.config:q} \
            --output {output:q} \
            --kept results/judging/kept \
            --tokens-per-microbatch {resources.tokens} \
            {resources.sampling}
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


rule rewards:
    """A cell's rewards of a preference set: the scores of a reward model, or a policy's log-ratios to its reference."""
    input:
        choices=inputs.choices,
        config="<run>/config.yaml",
        model=inputs.model,
        manifest=inputs.manifest,
        reference=inputs.compared_reference,
        vocabulary=inputs.compared_vocabulary,
        feedback="results/data/{other}/test.parquet",
    output:
        "<run>/rewards/{other}.json",
    log:
        "<logs>/rewards/{dataset}/{model}/{method}/{run}/{other}.log",
    benchmark:
        "<runtime>/rewards/{dataset}/{model}/{method}/{run}/{other}.tsv"
    wildcard_constraints:
        run=patterns.seed,
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
        python -m halos.distributed.launch --one-process --gpus {resources.gpus} rewards \
            --config {input.config:q} \
            --model {input.model:q} \
            --manifest {input.manifest:q} \
            --reference {input.reference:q} \
            --vocabulary {input.vocabulary:q} \
            --feedback {input.feedback:q} \
            --output {output:q} \
            --tokens-per-microbatch {resources.tokens}
        """


rule judge:
    """A judge's verdicts on a cell's samples, of those that its batch has made."""
    input:
        judgements=inputs.judgements,
        choices=inputs.choices,
    output:
        "<run>/judged/{judge}.json",
    log:
        "<logs>/judge/{dataset}/{model}/{method}/{run}/{judge}.log",
    wildcard_constraints:
        judge=patterns.batched,
    conda:
        "../envs/train.yaml"
    shell:
        r"""
        exec &>{log:q}
        if [ ! -d {input.judgements[0]:q} ]; then
            echo "error: what {output} was made from has changed meanwhile: run the same command again"
            exit 1
        fi
        judged={input.judgements[0]:q}/{output:q}
        if cat "${{judged%.json}}.failed" 2>/dev/null; then exit 1; fi
        cp "$judged" {output:q}
        """


rule judge_pair:
    """A judge's verdicts on a cell's samples against another method's, of those that its batch has made."""
    input:
        judgements=inputs.judgements,
        choices=inputs.choices,
    output:
        "<run>/judged/{judge}/against/{opponent}.json",
    log:
        "<logs>/judge/{dataset}/{model}/{method}/{run}/{judge}/against/{opponent}.log",
    wildcard_constraints:
        judge=patterns.batched,
        run=patterns.seed,
    conda:
        "../envs/train.yaml"
    shell:
        r"""
        exec &>{log:q}
        if [ ! -d {input.judgements[0]:q} ]; then
            echo "error: what {output} was made from has changed meanwhile: run the same command again"
            exit 1
        fi
        judged={input.judgements[0]:q}/{output:q}
        if cat "${{judged%.json}}.failed" 2>/dev/null; then exit 1; fi
        cp "$judged" {output:q}
        """


rule ask:
    """The verdicts of a model behind a server or of people, on a cell's samples, against a baseline."""
    input:
        choices=inputs.choices,
        config="results/judges/{judge}/config.yaml",
        samples=inputs.judged_samples,
        feedback=inputs.prompts_data,
        baseline=inputs.baseline,
        difficulties=inputs.difficulties,
        votes=inputs.votes,
    output:
        "<run>/judged/{judge}.json",
    log:
        "<logs>/judge/{dataset}/{model}/{method}/{run}/{judge}.log",
    benchmark:
        "<runtime>/judge/{dataset}/{model}/{method}/{run}/{judge}.tsv"
    wildcard_constraints:
        judge=patterns.asked,
    conda:
        "../envs/evaluate.yaml"
    threads: resources.ask.cpus
    resources:
        cpus_per_task=resources.ask.cpus,
        mem_mb=resources.ask.mem_mb,
        runtime=resources.ask.runtime,
        limits=resources.ask.limits,
    shell:
        r"""
        exec &>{log:q}
        python -m halos judge \
            --config {input.config:q} \
            --samples {input.samples:q} \
            --feedback {input.feedback:q} \
            --baseline {input.baseline:q} \
            --difficulties {input.difficulties:q} \
            --votes {input.votes:q} \
            --output {output:q} \
            {resources.limits}
        """


rule ask_pair:
    """The verdicts of a model behind a server or of people, on a cell's samples, against another method's, same seed."""
    input:
        choices=inputs.choices,
        config="results/judges/{judge}/against/{opponent}/config.yaml",
        samples=inputs.judged_samples,
        feedback=inputs.prompts_data,
        opponent=inputs.opponent_samples,
        votes=inputs.votes,
    output:
        "<run>/judged/{judge}/against/{opponent}.json",
    log:
        "<logs>/judge/{dataset}/{model}/{method}/{run}/{judge}/against/{opponent}.log",
    benchmark:
        "<runtime>/judge/{dataset}/{model}/{method}/{run}/{judge}/against/{opponent}.tsv"
    wildcard_constraints:
        judge=patterns.asked,
        run=patterns.seed,
    conda:
        "../envs/evaluate.yaml"
    threads: resources.ask.cpus
    resources:
        cpus_per_task=resources.ask.cpus,
        mem_mb=resources.ask.mem_mb,
        runtime=resources.ask.runtime,
        limits=resources.ask.limits,
    shell:
        r"""
        exec &>{log:q}
        python -m halos judge \
            --config {input.config:q} \
            --samples {input.samples:q} \
            --feedback {input.feedback:q} \
            --baseline {input.opponent:q} \
            --votes {input.votes:q} \
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
