"""Labelling, and online stages: rounds of sample -> label -> train, each from the policy of the round before.

Input:   samples; results/labellers/{labeller}/config.yaml; the reward model that labels
         for a round: train prompts that no earlier round had, and the same validation prompts each time
Output:  results/runs/{...}/labelled/{prompts}/{labeller}.parquet, .json   feedback from any cell's samples
         results/runs/{...}/seed{n}/round{m}/fresh/                        a round's samples, labels and store
         results/runs/{...}/seed{n}/round{m}/                              a round's run, like any other
         results/runs/{...}/seed{n}/                                       the cell: its last round's model, all logs
"""


rule label:
    """Feedback records from a cell's samples, scored by a labeller."""
    input:
        choices=inputs.choices,
        config=inputs.labeller,
        samples="<run>/samples/{prompts}.jsonl",
        reward_model=inputs.labelling_model,
    output:
        feedback="<run>/labelled/{prompts}/{labeller}.parquet",
        report="<run>/labelled/{prompts}/{labeller}.json",
    log:
        "<logs>/label/{dataset}/{model}/{method}/{run}/{prompts}/{labeller}.log",
    benchmark:
        "<runtime>/label/{dataset}/{model}/{method}/{run}/{prompts}/{labeller}.tsv"
    conda:
        "../envs/train.yaml"
    threads: resources.label.cpus
    resources:
        gres=resources.label.gres,
        gpus=resources.label.gpus,
        cpus_per_task=resources.label.cpus,
        mem_mb=resources.label.mem_mb,
        runtime=resources.label.runtime,
        tokens=resources.label.tokens,
        launch=resources.label.launch,
        limits=resources.label.limits,
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


rule sample_round:
    """A round's responses to fresh prompts, from the policy that the round starts from."""
    input:
        choices=inputs.choices,
        config="<run>/config.yaml",
        prompts=[
            "<run>/fresh/train/config.yaml",
            "<run>/fresh/validation/config.yaml",
        ],
        feedback=[
            "<data>/train.parquet",
            "<data>/validation.parquet",
        ],
        model=inputs.parent_model,
        manifest=inputs.parent_manifest,
        store="<tokens>/store",
        checked=inputs.checked,
    output:
        "<run>/fresh/train/samples.jsonl",
        "<run>/fresh/validation/samples.jsonl",
    log:
        "<logs>/sample_round/{dataset}/{model}/{method}/{run}.log",
    benchmark:
        "<runtime>/sample_round/{dataset}/{model}/{method}/{run}.tsv"
    wildcard_constraints:
        method=patterns.online_methods,
        run=patterns.round,
    conda:
        "../envs/sample.yaml"
    threads: resources.cpus
    resources:
        gres=resources.sampling_gres,
        gpus=resources.sampling_gpus,
        cpus_per_task=resources.cpus,
        mem_mb=resources.mem_mb,
        runtime=resources.runtime,
        sampling=resources.sampling,
    shell:
        r"""
        exec &>{log:q}
        python -m halos.distributed.launch --one-process --gpus {resources.gpus} sample \
            --config {input.config:q} \
            --prompts {input.prompts:q} \
            --feedback {input.feedback:q} \
            --model {input.model:q} \
            --store {input.store:q} \
            --output {output:q} \
            {resources.sampling}
        """


use rule label as label_round with:
    """A round's feedback records from its samples, scored by the stage's labeller."""
    input:
        choices=inputs.choices,
        config=inputs.labeller,
        samples=[
            "<run>/fresh/train/samples.jsonl",
            "<run>/fresh/validation/samples.jsonl",
        ],
        reward_model=inputs.labelling_model,
    output:
        feedback=[
            "<run>/fresh/train/feedback.parquet",
            "<run>/fresh/validation/feedback.parquet",
        ],
        report="<run>/fresh/labels.json",
    log:
        "<logs>/label_round/{dataset}/{model}/{method}/{run}.log",
    benchmark:
        "<runtime>/label_round/{dataset}/{model}/{method}/{run}.tsv"
    wildcard_constraints:
        method=patterns.online_methods,
        run=patterns.round,


use rule tokenize as tokenize_round with:
    """A round's sequence store."""
    input:
        choices=inputs.choices,
        config="<tokens>/config.yaml",
        train="<run>/fresh/train/feedback.parquet",
        validation=inputs.round_validation,
        model="<base>/model",
    output:
        store=directory("<run>/fresh/store"),
        report="<run>/fresh/report.json",
    log:
        "<logs>/tokenize_round/{dataset}/{model}/{method}/{run}.log",
    benchmark:
        "<runtime>/tokenize_round/{dataset}/{model}/{method}/{run}.tsv"
    wildcard_constraints:
        method=patterns.online_methods,
        run=patterns.round,


use rule reference as reference_round with:
    """The reference's log-probabilities of a round's sequences."""
    input:
        choices=inputs.choices,
        config=inputs.reference_config,
        model=inputs.reference_model,
        manifest=inputs.reference_manifest,
        store="<run>/fresh/store",
        vocabulary=inputs.vocabulary,
    output:
        "<run>/fresh/reference/{part}.safetensors",
    log:
        "<logs>/reference_round/{dataset}/{model}/{method}/{run}/{part}.log",
    benchmark:
        "<runtime>/reference_round/{dataset}/{model}/{method}/{run}/{part}.tsv"
    wildcard_constraints:
        method=patterns.online_methods,
        run=patterns.round,


use rule train_cell as train_round with:
    """A round's model, trained from the policy of the round before."""
    input:
        choices=inputs.choices,
        config="<run>/config.yaml",
        parent=inputs.parent_model,
        manifest=inputs.parent_manifest,
        store="<run>/fresh/store",
        labels="<run>/fresh/labels.json",
        reference=inputs.round_reference,
        reference_of=inputs.reference_manifest,
        scores=[],
        adapters=inputs.adapters,
        resumed=[],
    output:
        model=directory("<run>/model"),
        log="<run>/train.jsonl",
        manifest="<run>/manifest.json",
    log:
        "<logs>/train_round/{dataset}/{model}/{method}/{run}.log",
    benchmark:
        "<runtime>/train_round/{dataset}/{model}/{method}/{run}.tsv"
    wildcard_constraints:
        method=patterns.online_methods,
        run=patterns.round,


rule join:
    """An online cell's model, log and manifest, from its rounds."""
    input:
        choices=inputs.choices,
        config="<run>/config.yaml",
        model=inputs.last_model,
        rounds=inputs.round_manifests,
    output:
        model=directory("<run>/model"),
        log="<run>/train.jsonl",
        manifest="<run>/manifest.json",
    log:
        "<logs>/join/{dataset}/{model}/{method}/{run}.log",
    wildcard_constraints:
        method=patterns.online_methods,
        run=patterns.seed,
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
