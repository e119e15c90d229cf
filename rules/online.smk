"""Labelling, and online stages: rounds of sample -> label -> train, each from the policy of the round before.

Input:   samples; results/labellers/{labeller}/config.yaml; the reward model that labels
         of a round: prompts that no earlier round had, and the same test prompts each time
Output:  results/runs/{...}/labelled/{prompts}/{labeller}.parquet, .json   feedback from any cell's samples
         results/runs/{...}/seed{seed}/round{n}/fresh/                     a round's samples, labels and store
         results/runs/{...}/seed{seed}/round{n}/                           what it trained: a run like any other
         results/runs/{...}/seed{seed}/                                    the cell: its last round's model, all logs
"""


rule label:
    input:
        config=W.labeller,
        samples="<run>/samples/{prompts}.jsonl",
        reward_model=W.labelling_model,
    output:
        feedback="<run>/labelled/{prompts}/{labeller}.parquet",
        report="<run>/labelled/{prompts}/{labeller}.json",
    log:
        "<logs>/label/{dataset}/{model}/{method}/seed{seed}/{prompts}/{labeller}.log",
    benchmark:
        "<runtime>/label/{dataset}/{model}/{method}/seed{seed}/{prompts}/{labeller}.tsv"
    conda:
        "../envs/train.yaml"
    threads: W.labelling_resource("cpus")
    resources:
        gres=W.labelling_gres,
        cpus_per_task=W.labelling_resource("cpus"),
        mem_mb=W.labelling_resource("mem_mb"),
        runtime=W.labelling_resource("runtime"),
        tokens=W.labelling_resource("tokens_per_microbatch"),
        launch=W.labelling_launcher,
        limits=W.labelling_limits,
    shell:
        r"""
        exec &>{log:q}
        python -m halos.distributed.launch {resources.launch} label \
            --config {input.config:q} \
            --samples {input.samples:q} \
            --reward-model {input.reward_model:q} \
            --output {output.feedback:q} \
            --report {output.report:q} \
            --tokens-per-microbatch {resources.tokens} \
            {resources.limits}
        """


use rule sample as sample_round with:
    input:
        config="<run>/config.yaml",
        prompts=[
            "<run>/fresh/train/config.yaml",
            "<run>/fresh/test/config.yaml",
        ],
        feedback=[
            "<data>/train.parquet",
            "<data>/test.parquet",
        ],
        model=W.parent_model,
        manifest=W.parent_manifest,
        store="<tokens>/store",
        checked=W.checked,
    output:
        "<run>/fresh/train/samples.jsonl",
        "<run>/fresh/test/samples.jsonl",
    log:
        "<logs>/sample_round/{dataset}/{model}/{method}/seed{seed}.log",
    benchmark:
        "<runtime>/sample_round/{dataset}/{model}/{method}/seed{seed}.tsv"
    wildcard_constraints:
        method=W.online_methods,
        seed=ROUND,


use rule label as label_round with:
    input:
        config=W.labeller,
        samples=[
            "<run>/fresh/train/samples.jsonl",
            "<run>/fresh/test/samples.jsonl",
        ],
        reward_model=W.labelling_model,
    output:
        feedback=[
            "<run>/fresh/train/feedback.parquet",
            "<run>/fresh/test/feedback.parquet",
        ],
        report="<run>/fresh/labels.json",
    log:
        "<logs>/label_round/{dataset}/{model}/{method}/seed{seed}.log",
    benchmark:
        "<runtime>/label_round/{dataset}/{model}/{method}/seed{seed}.tsv"
    wildcard_constraints:
        method=W.online_methods,
        seed=ROUND,


use rule tokenize as tokenize_round with:
    input:
        config="<tokens>/config.yaml",
        train="<run>/fresh/train/feedback.parquet",
        test="<run>/fresh/test/feedback.parquet",
        model="<base>/model",
    output:
        store=directory("<run>/fresh/store"),
        report="<run>/fresh/report.json",
    log:
        "<logs>/tokenize_round/{dataset}/{model}/{method}/seed{seed}.log",
    benchmark:
        "<runtime>/tokenize_round/{dataset}/{model}/{method}/seed{seed}.tsv"
    wildcard_constraints:
        method=W.online_methods,
        seed=ROUND,


use rule reference as reference_round with:
    input:
        config=W.anchor_config,
        model=W.anchor_model,
        manifest=W.anchor_manifest,
        store="<run>/fresh/store",
    output:
        "<run>/fresh/reference/{part}.safetensors",
    log:
        "<logs>/reference_round/{dataset}/{model}/{method}/seed{seed}/{part}.log",
    benchmark:
        "<runtime>/reference_round/{dataset}/{model}/{method}/seed{seed}/{part}.tsv"
    wildcard_constraints:
        method=W.online_methods,
        seed=ROUND,


use rule train_cell as train_round with:
    input:
        config="<run>/config.yaml",
        parent=W.parent_model,
        manifest=W.parent_manifest,
        store="<run>/fresh/store",
        labels="<run>/fresh/labels.json",
        reference=W.round_reference,
        reference_of=W.anchor_manifest,
        scores=[],
        adapters=W.adapters,
    output:
        model=directory("<run>/model"),
        log="<run>/train.jsonl",
        manifest="<run>/manifest.json",
    log:
        "<logs>/train_round/{dataset}/{model}/{method}/seed{seed}.log",
    benchmark:
        "<runtime>/train_round/{dataset}/{model}/{method}/seed{seed}.tsv"
    wildcard_constraints:
        method=W.online_methods,
        seed=ROUND,


rule join:
    input:
        config="<run>/config.yaml",
        model=W.last_model,
        rounds=W.round_manifests,
    output:
        model=directory("<run>/model"),
        log="<run>/train.jsonl",
        manifest="<run>/manifest.json",
    log:
        "<logs>/join/{dataset}/{model}/{method}/seed{seed}.log",
    wildcard_constraints:
        method=W.online_methods,
        seed=r"\d+",
    conda:
        "../envs/train.yaml"
    shell:
        r"""
        exec &>{log:q}
        python -m halos join \
            --config {input.config:q} \
            --rounds $(dirname {input.rounds:q}) \
            --output "$(dirname {output.manifest:q})"
        """
