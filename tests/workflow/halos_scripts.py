"""The scripts of HALOs (github.com/ContextualAI/HALOs, commit 4831988) as data: what each trains, how, and on what.

Settings have this project's names. Where a script leaves one out, it is that of HALOs' config/. What changes no result
(GPUs, ports, intervals of evaluations and checkpoints) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CALL = "an argument of the script"
BASE, INSTRUCT = "meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"
ARMORM, GEMMA = "ultrafeedback_armorm", "ultrafeedback_armorm_gemma"
REASONING = ["arc_easy", "arc_challenge", "winogrande", "bbh_cot_fewshot", "gsm8k_cot"]

DEFAULTS: dict[str, Any] = {  # config/config.yaml, config/model/base_model.yaml
    "lr": 5e-6, "optimizer": "AdamW", "weight_decay": 0.01, "betas": [0.9, 0.999], "eps": 1e-5, "scheduler": "constant",
    "warmup": 0.1, "epochs": 1, "batch_size": 32, "max_grad_norm": 1.0, "lora": None, "humanline": False,
    "keep_desirable": 1.0, "keep_undesirable": 1.0, "max_length": 1250, "max_prompt_length": 625, "precision": "bf16",
    "seeds": [1],
}  # fmt: skip

LOSSES: dict[str, dict[str, Any]] = {  # config/loss
    "sft": {"scheduler": "cosine"},
    "dpo": {"beta": 0.1},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "grpo": {"beta": 0.01, "epsilon": 0.01},
    "simpo": {"beta": 10.0, "gamma_beta_ratio": 0.3},
    "ppo": {"inner_epochs": 1, "clip": 0.5, "gae_lambda": 0.95, "gamma": 0.99, "value_weight": 0.01, "kl_weight": 0.1,
            "value_max_grad_norm": 0.1},
}  # fmt: skip

SAMPLED = {  # the defaults of train/sample.py; each call is for AlpacaEval
    "samples.temperature": 0.7, "samples.top_p": 0.95, "samples.max_new_tokens": 2048, "samples.max_prompt_length": 512,
}  # fmt: skip
JUDGED = {**SAMPLED, "judge": "gpt-4.1"}

ROUNDS = {"temperature": 0.7, "top_p": 0.95, "max_new_tokens": 2048, "warmup": "first round", "whole_sentences": True}
FRESH = {  # the same in all online scripts of DPO, KTO and GRPO from the instruction-tuned model
    **ROUNDS, "rounds": CALL, "prompts_per_round": CALL, "samples_per_prompt": 8, "reference": "previous",
    "scorer": "RLHFlow/ArmoRM-Llama3-8B-v0.1", "feedback": "pairwise", "pairs": "max", "min_margin": 0.01,
}  # fmt: skip


@dataclass(frozen=True)
class Script:
    """A script.

    Attributes:
        arguments: those of a call, in their order.
        grid: the grid of config.yaml that has its counterpart.
        cell: its counterpart: dataset/model/method.
        settings: those that the script names; `CALL` for its arguments.
        rounds: of an online script.
    """

    name: str
    arguments: str
    grid: str
    cell: str
    model: str
    data: str
    loss: str
    settings: dict[str, Any]
    rounds: dict[str, Any] | None = None
    start: str = "base"

    @property
    def all_settings(self) -> dict[str, Any]:
        """All settings, those of config/ included, without the arguments of a call."""
        rounds = {f"online.{name}": value for name, value in (self.rounds or {}).items()}
        held_out = {} if self.data is None else {"held_out": self.data}
        both = {**DEFAULTS, **LOSSES[self.loss], **held_out, **self.settings, **rounds}
        named = {"model": self.model, "data": self.data, "loss": self.loss, "start": self.start}
        return {name: value for name, value in {**named, **both}.items() if value != CALL}


CALLED = {"beta": CALL, "lr": CALL}
LIVE = {"humanline": True, "log_eps_p": CALL, "log_eps_r": CALL, "max_grad_norm": CALL}
KTO = {"desirable_weight": 1.1, "batch_size": 64}
GROUPS = {"batch_size": 32}  # 64 responses, in groups of two
PPO: dict[str, Any] = {
    "lr": CALL, "kl_weight": CALL, "clip": CALL, "weight_decay": 0.0, "betas": [0.9, 0.95], "gamma": 1.0,
    "value_weight": 0.1, "batch_size": 8, "max_length": 2048, "max_prompt_length": 1024, "held_out": "ultrabin",
}  # fmt: skip
PPO_TASKS = ["mmlu", "gsm8k_cot", "bbh_cot_fewshot", "humaneval_plus", "mbpp_plus", "truthfulqa_mc1", "toxigen",
             "ifeval", "arc_easy", "arc_challenge", "winogrande"]  # fmt: skip
PPO_ROUNDS = {
    **ROUNDS, "rounds": 2, "prompts_per_round": 512, "samples_per_prompt": 4, "reference": "fixed",
    "scorer": "RLHFlow/ArmoRM-Llama3-8B-v0.1", "feedback": "binary", "threshold": "median",
}  # fmt: skip


def _instruct(
    name: str, arguments: str, method: str, settings: dict[str, Any], rounds: dict[str, Any] | None = None
) -> Script:
    cell = f"ultrafeedback_armorm/llama-3-8b-instruct/{method}"
    return Script(name, arguments, "llama3", cell, INSTRUCT, ARMORM, method.split("_")[0], settings, rounds)


def _base(name: str, arguments: str, method: str, settings: dict[str, Any]) -> Script:
    start, _, last = method.rpartition("-")
    cell = f"ultrafeedback/llama-3-8b/{method}"
    return Script(name, arguments, "llama3_base", cell, BASE, "ultrabin", last, settings, start=start or "base")


def _ppo(name: str, method: str, settings: dict[str, Any], rounds: dict[str, Any] | None = None) -> Script:
    return _instruct(name, "KL_COEF LR CLIP_RANGE", method, {**PPO, **settings}, rounds)


SCRIPTS = (
    _base("launch_llama_sft.sh", "", "sft", {"lr": 1e-6, **SAMPLED, "tasks": REASONING}),
    _base("launch_llama_dpo.sh", "BETA LR", "dpo", {**CALLED, **SAMPLED, "tasks": REASONING}),
    _base("launch_llama_kto.sh", "BETA LR", "kto", {**CALLED, **SAMPLED, "tasks": REASONING}),
    _base("launch_llama_sft_kto.sh", "BETA LR", "sft-kto", {**CALLED, **SAMPLED, "tasks": REASONING}),
    Script(
        "launch_llama_dpo_online.sh", "BETA LR", "llama3_base", "ultrafeedback/llama-3-8b/sft-dpo_online", BASE,
        "alpacaeval", "dpo", {**CALLED, "batch_size": 16, "held_out": ARMORM},
        {**ROUNDS, "rounds": 4, "prompts_per_round": 512, "samples_per_prompt": 4, "reference": "fixed",
         "scorer": "bradley_terry", "feedback": "pairwise", "pairs": "max"},
        start="sft",
    ),
    _instruct("launch_llama_instruct_dpo.sh", "BETA LR", "dpo", {**CALLED, "examples": 10000, **JUDGED}),
    _instruct("launch_llama_instruct_dpo_humanline.sh", "BETA LR L U NORM", "dpo_humanline",
              {**CALLED, **LIVE, "examples": 10000, **JUDGED}),
    _instruct("launch_llama_instruct_dpo_online.sh", "BETA LR TOTAL_PROMPTS PROMPTS_PER_ROUND", "dpo_online",
              {**CALLED, "max_grad_norm": 0.5, **JUDGED}, FRESH),
    _instruct("launch_llama_instruct_dpo_online_humanline.sh", "BETA LR TOTAL_PROMPTS PROMPTS_PER_ROUND L U NORM",
              "dpo_online_humanline", {**CALLED, **LIVE, **JUDGED}, FRESH),
    _instruct("launch_llama_instruct_kto.sh", "BETA LR", "kto", {**CALLED, **KTO, "examples": 20000, **JUDGED}),
    _instruct("launch_llama_instruct_kto_humanline.sh", "BETA LR L U NORM", "kto_humanline",
              {**CALLED, **KTO, **LIVE, "examples": 20000, **JUDGED}),
    Script(
        "launch_llama_instruct_kto_humanline_gemma.sh", "BETA LR L U NORM", "llama3_gemma",
        "ultrafeedback_armorm_gemma/llama-3-8b-instruct/kto_humanline", INSTRUCT, GEMMA, "kto",
        {**CALLED, **KTO, **LIVE, "examples": 20000, **JUDGED},
    ),
    _instruct("launch_llama_instruct_kto_online.sh", "BETA LR TOTAL_PROMPTS PROMPTS_PER_ROUND", "kto_online",
              {**CALLED, **KTO, "max_grad_norm": 0.5, **JUDGED}, FRESH),
    _instruct("launch_llama_instruct_kto_online_humanline.sh", "BETA LR TOTAL_PROMPTS PROMPTS_PER_ROUND L U NORM",
              "kto_online_humanline", {**CALLED, **KTO, **LIVE, **JUDGED}, FRESH),
    # 20,000 responses
    _instruct("launch_llama_instruct_grpo.sh", "BETA EPS LR", "grpo",
              {**CALLED, **GROUPS, "epsilon": CALL, "examples": 10000, **JUDGED}),
    _instruct("launch_llama_instruct_grpo_humanline.sh", "BETA EPS LR L U NORM", "grpo_humanline",
              {**CALLED, **GROUPS, **LIVE, "epsilon": CALL, "examples": 10000, **JUDGED}),
    _instruct("launch_llama_instruct_grpo_online.sh", "BETA EPS LR NORM TOTAL_PROMPTS PROMPTS_PER_ROUND", "grpo_online",
              {**CALLED, **GROUPS, "epsilon": CALL, "max_grad_norm": CALL, **JUDGED}, FRESH),
    _instruct("launch_llama_instruct_grpo_online_humanline.sh", "BETA LR TOTAL_PROMPTS PROMPTS_PER_ROUND L U NORM",
              "grpo_online_humanline", {**CALLED, **GROUPS, **LIVE, "epsilon": 0.15, **JUDGED}, FRESH),
    _ppo("launch_llama_ppo.sh", "ppo", {"tasks": PPO_TASKS}),
    _ppo("interactive_ppo.sh", "ppo", {}),
    _ppo("launch_llama_ppo_online.sh", "ppo_online", {"tasks": PPO_TASKS}, PPO_ROUNDS),
    _ppo("interactive_ppo_online.sh", "ppo_online", {}, PPO_ROUNDS),
    _base("launch_multinode_batch.sh", "", "kto", {"lr": 1e-6}),
    Script(
        "launch_multinode_interactive.sh", "", "", "ultrafeedback/llama-3-8b-instruct/simpo", INSTRUCT, "ultrabin",
        "simpo", {"lr": 1e-6, "batch_size": 16, "max_grad_norm": 100.0},
    ),
    Script(
        "launch_singlenode_batch.sh", "WEIGHTD", "qwen", "ultrafeedback/qwen2.5-3b-instruct/kto",
        "Qwen/Qwen2.5-3B-Instruct", "ultrabin", "kto",
        {"lr": 5e-6, "desirable_weight": CALL, **SAMPLED, "tasks": REASONING},
    ),
)  # fmt: skip

SETTINGS = (
    # config/config.yaml
    "seed", "exp_name", "train_datasets", "test_datasets", "debug", "wandb.enabled", "wandb.entity", "wandb.project",
    "cache_dir", "local_run_dir", "do_first_eval", "minimum_log_interval_secs", "intermediate_checkpoints", "trainer",
    "template_tokens", "lr", "n_epochs", "n_examples", "n_eval_examples", "eval_every", "save_every",
    "step_scheduler_with_optimizer", "optimizer", "weight_decay", "beta1", "beta2", "eps", "warmup",
    "cache_reference_logprobs", "load_reference_logprobs", "humanline", "log_epsilon_P", "log_epsilon_R", "online",
    "frac_unique_desirable", "frac_unique_undesirable",
    # config/model/base_model.yaml
    "model.name_or_path", "model.tokenizer_name_or_path", "model.load_from", "model.from_checkpoint",
    "model.block_name", "model.policy_dtype", "model.reference_dtype", "model.max_grad_norm",
    "model.v_head_max_grad_norm", "model.max_length", "model.max_prompt_length", "model.activation_checkpointing",
    "model.batch_size", "model.microbatch_size", "model.gradient_accumulation_steps", "model.eval_batch_size",
    "model.eval_microbatch_size", "model.attn_implementation", "model.use_peft", "model.load_lora_from",
    "model.peft.lora_r", "model.peft.lora_alpha", "model.peft.lora_dropout", "model.peft.target_modules",
    "model.reward_model.path", "model.reward_model.model_class", "model.reward_model.dtype",
    "model.reward_model.attn_implementation",
    # config/loss
    "loss.trainer", "loss.dataloader", "loss.sync_reference", "loss.beta", "loss.epsilon",
    "loss.control_tokens.chosen", "loss.control_tokens.rejected", "loss.sequence_level", "loss.tau",
    "loss.desirable_weight", "loss.undesirable_weight", "loss.ppo_epochs", "loss.cliprange", "loss.lam", "loss.gamma",
    "loss.critic_coef", "loss.KL_coef", "loss.gamma_beta_ratio", "loss.lambda_coef",
    # train/sample.py
    "model_path", "--datasets", "--output_file", "--gpu_count", "--temperature", "--top_p", "--max_tokens",
    "--max_prompt_length", "--batch_size", "--seed", "--split", "--num_samples_per_prompt", "--stop_token", "--mode",
    "--num_prompts", "--num_skip", "--num_epochs",
    # train/label.py
    "samples_path", "output_path", "--reward_model_path", "--api_type", "--api_key", "--api_model", "--system_prompt",
    "--label_prompt", "--batch_size", "--max_length", "--max_prompt_length", "--feedback_type", "--feedback_mode",
    "--threshold", "--seed", "--split",
)  # fmt: skip
"""Every setting of HALOs' configs and every option of its two programs beside the trainer."""
