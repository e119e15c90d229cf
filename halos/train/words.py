"""What the settings of a stage are called by users of TRL and transformers, and what to write here instead."""

from __future__ import annotations

from collections.abc import Collection

_BATCH = "`batch_size` counts the examples of an optimiser step, over all devices and microbatches"
_BETAS = "write `optimizer_args: {betas: [0.9, 0.999]}`"
_RATIO = "write `min_lr_ratio`, a fraction of lr"
_PRECISION = "write `precision: bf16` (the default) or `precision: fp32` to the model's entry"
_LENGTH = "write `max_length` and `max_prompt_length` to the dataset's entry"
_QUANTIZED = "write `quantization: nf4` (or int8) to the model's entry"
_RESOURCE = "it changes no result: set {} of the model's `resources`"
_EXAMPLES = "write `examples`, the number of steps times batch_size"
_TRACKED = "every step is logged, to train.jsonl in the run's folder"
_SAVED = "write `checkpoint_every` (steps between checkpoints to resume from) or `keep_every` (models to keep)"
_STRATEGY = "checkpoints and evaluations come every so many steps: `checkpoint_every`, `keep_every`, `eval_every`"
_NLL = "write `sft_weight`, of the negative log-likelihood of the chosen response, with a loss of pairs"
_OTHER = "write `loss`: what it chooses is a loss of its own (`python -m halos list losses`)"
_SEED = "seeds are of the grid (`grids: {...: {seeds: [1, 2]}}`), and the dataset has one for its draws"

MEANINGS = {
    "learning_rate": "write `lr`",
    "min_lr": _RATIO,
    "min_lr_rate": _RATIO,
    "min_lr_factor": _RATIO,
    "lr_scheduler_type": "write `scheduler`: constant, linear, cosine or wsd",
    "lr_scheduler": "write `scheduler`: constant, linear, cosine or wsd",
    "lr_scheduler_kwargs": "write `min_lr_ratio` or `decay`",
    "warmup_ratio": "write `warmup`: below 1 it is a fraction of all steps",
    "warmup_steps": "write `warmup`: from 1 on it is a number of steps",
    "num_decay_steps": "write `decay`, with `scheduler: wsd`",
    "optim": "write `optimizer`: a class of torch.optim, AdamW8bit or PagedAdamW8bit",
    "load_in_4bit": _QUANTIZED,
    "load_in_8bit": _QUANTIZED,
    "quantization": _QUANTIZED,
    "quantization_config": _QUANTIZED,
    "fsdp_offload_params": _RESOURCE.format("offload"),
    "optim_args": "write `optimizer_args`",
    "weight_decay": "write `optimizer_args: {weight_decay: 0.1}`",
    "momentum": "write `optimizer_args: {momentum: 0.9}`",
    "eps": "write `optimizer_args: {eps: 1.e-8}`",
    "betas": _BETAS,
    "adam_beta1": _BETAS,
    "adam_beta2": _BETAS,
    "adam_epsilon": "write `optimizer_args: {eps: 1.e-8}`",
    "gradient_clipping": "write `max_grad_norm`; 0 is no clipping",
    "max_steps": _EXAMPLES,
    "total_steps": _EXAMPLES,
    "num_train_epochs": "write `epochs`",
    "num_epochs": "write `epochs`",
    "num_iterations": "write `inner_epochs`, the optimiser steps on each global batch",
    "train_batch_size": _BATCH,
    "per_device_train_batch_size": _BATCH,
    "gradient_accumulation_steps": _BATCH,
    "per_device_eval_batch_size": "evaluations are cut into microbatches by the same budget of tokens as training",
    "logging_steps": _TRACKED,
    "report_to": _TRACKED,
    "run_name": "write `label` for tables and figures",
    "save_steps": _SAVED,
    "save_total_limit": _SAVED,
    "save_strategy": _STRATEGY,
    "eval_strategy": _STRATEGY,
    "evaluation_strategy": _STRATEGY,
    "eval_steps": "write `eval_every`",
    "early_stopping_patience": "write `early_stopping: {patience: 3}`",
    "early_stopping_threshold": "write `early_stopping: {patience: 3, min_delta: 0.01}`",
    "load_best_model_at_end": "write `early_stopping: {patience: 3}`, which publishes the best evaluation's weights",
    "metric_for_best_model": "write `early_stopping: {patience: 3, metric: loss}`",
    "greater_is_better": "write `early_stopping: {patience: 3, goal: highest}`",
    "ema_decay": "write `average: {kind: ema, decay: 0.99}`",
    "eval_on_start": "write `eval_first`, which is true by default",
    "seed": _SEED,
    "data_seed": _SEED,
    "resume_from_checkpoint": "a stopped run goes on by itself; `resume_from: STAGE` goes on from a finished one",
    "output_dir": "results lie in a folder by dataset, model, method and seed",
    "bf16": _PRECISION,
    "fp16": _PRECISION,
    "torch_dtype": _PRECISION,
    "dtype": _PRECISION,
    "attn_implementation": "write `attention` to the model's entry",
    "use_liger_kernel": "write `liger: true` to the model's entry",
    "torch_compile": "write `compile: true` to the model's entry",
    "gradient_checkpointing": _RESOURCE.format("gradient_checkpointing"),
    "max_length": _LENGTH,
    "max_seq_length": _LENGTH,
    "max_prompt_length": _LENGTH,
    "max_completion_length": _LENGTH,
    "packing": "rows are packed wherever a model gives the same log-probabilities so, and the log says where not",
    "padding_free": "rows are packed wherever a model gives the same log-probabilities so, and the log says where not",
    "completion_only_loss": "losses are of responses alone",
    "assistant_only_loss": "losses are of responses alone: `every_turn` of the source makes each assistant turn one",
    "train_on_inputs": "losses are of responses alone",
    "use_peft": "write `lora: {r: 64}`",
    "peft_config": "write `lora: {r: 64}`",
    "lora_r": "write `lora: {r: 64}`",
    "lora_alpha": "write `lora: {alpha: 256}`",
    "lora_dropout": "write `lora: {dropout: 0.05}`",
    "lora_target_modules": "write `lora: {target_modules: all-linear}`",
    "disable_dropout": "dropout is off for a loss with a reference; write `dropout: 0` for any other",
    "router_aux_loss_coef": "write `router_weight`",
    "output_router_logits": "write `router_weight`, the weight of the loss that they are for",
    "ref_model": "write `reference`, a method or a model; by default it is the method before: of `a-b` it is `a`",
    "precompute_ref_log_probs": "a fixed reference is always computed once, before training",
    "sync_ref_model": "write `sync_reference`, the steps between two syncs",
    "ref_model_sync_steps": "write `sync_reference`, the steps between two syncs",
    "num_generations": "write `online: {samples_per_prompt: 4}`",
    "ref_model_mixup_alpha": "write `sync_weight`, the share of the policy in a sync, with `sync_reference`",
    "loss_type": "write `loss`: each kind of loss is one of its own (`python -m halos list losses`)",
    "loss_weights": "write `loss: {a: 0.8, b: 0.2, sft: 1}`, each loss with its weight",
    "rpo_alpha": _NLL,
    "nll_weight": _NLL,
    "use_weighting": _OTHER,
    "ld_alpha": _OTHER,
    "f_divergence_type": _OTHER,
    "f_alpha_divergence_coef": _OTHER,
    "label_smoothing": "write `epsilon`, with a loss that has one (`python -m halos list losses`)",
    "center_rewards_coefficient": "write `centre_weight`, with the loss of a reward model",
    "beta": "this loss has none, nor anything like it: take it out",
}  # fmt: skip
"""Word -> what to do, where no setting and no hyperparameter of the loss has that name."""
LORA = {
    "rank": "r",
    "lora_r": "r",
    "lora_rank": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_target_modules": "target_modules",
    "lora_modules_to_save": "modules_to_save",
    "use_dora": "dora",
    "use_rslora": "rslora",
}
"""Word of peft and TRL -> the setting of `lora` that it is."""
SYNONYMS = {
    "beta": ("tau", "kl_weight"),
    "tau": ("beta",),
    "label_smoothing": ("epsilon",),
    "epsilon": ("clip",),
    "kl_coef": ("beta", "kl_weight"),
    "cliprange": ("clip",),
    "vf_coef": ("value_weight",),
    "lam": ("gae_lambda",),
    "gamma": ("gamma_beta_ratio",),
    "rpo_alpha": ("sft_weight",),
    "ld_alpha": ("alpha",),
    "f_divergence_type": ("divergence",),
    "lambda": ("odds_ratio_weight",),
}
"""Word -> hyperparameters by which losses call what others call so."""


def lora_meaning(word: str) -> str | None:
    """The end of a message about a word that is no setting of `lora`; None for one that is not known."""
    return f"; it is called `{LORA[word]}` here" if word in LORA else None


def meaning(word: str, known: Collection[str]) -> str | None:
    """What to write instead of a word of other libraries; None for one that is not known.

    Args:
        word: a setting that neither a stage nor its loss has.
        known: the settings of a stage, and the hyperparameters of its loss.
    """
    for name in SYNONYMS.get(word, ()):
        if name in known:
            return f"this loss calls it `{name}`"
    return MEANINGS.get(word)
