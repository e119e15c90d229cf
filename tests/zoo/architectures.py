"""Small configs of the causal model types of transformers, as a user writes them under `architecture:`.

One recipe makes them: the sizes that a config class has by name are set to small ones (`SIZES`), in nested configs too,
and a model with several kinds of layers gets one of each kind. `EXCEPTIONS` holds what a type needs besides.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

CAUSAL = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""The types that `AutoModelForCausalLM` makes."""
SHELLS = (
    "aria", "aya_vision", "cohere2_vision", "glm4v", "idefics3", "internvl", "lfm2_vl", "llava", "llava_next",
    "llava_onevision", "mistral3", "mistral4", "ovis2", "paligemma", "qwen2_5_vl", "qwen2_vl", "qwen3_vl",
    "qwen3_vl_moe", "smolvlm", "step3p7",
)  # fmt: skip
"""Types of language models with a tower for pictures that it does not make, though they read text alone as well."""
VARIANTS: dict[str, dict[str, Any]] = {
    "opt-projected": {"model_type": "opt", "word_embed_proj_dim": 16},
    "phi3-longrope": {
        "model_type": "phi3",
        "original_max_position_embeddings": 45,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 45,
            "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0],
        },
    },
}  # fmt: skip
"""Name -> a type and fields that make it compute otherwise: embeddings narrower than the layers, as OPT 350M has, and
rotary positions whose scale depends on the length, as those of Phi-3 128k."""

WINDOWS = (
    "sliding_window", "attention_chunk_size", "local_attention", "attention_window_size", "sliding_window_size",
    "window_size",
)  # fmt: skip
SIZES: dict[str, Any] = {
    # width
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "embedding_dim", "emb_dim", "embedding_size", "word_embed_proj_dim",
         "lru_width", "attention_hidden_size", "input_embedding_size", "output_embedding_size"),
        32,
    ),
    **dict.fromkeys(
        ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size",
         "moe_shared_expert_intermediate_size", "dense_intermediate_size", "intermediate_size_mlp", "ffn_hidden_size",
         "expert_ffn_hidden_size", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_dim", "dff", "dim_ff", "n_inner",
         "d_inner", "feed_forward_size", "shared_experts_intermediate_size"),
        48,
    ),
    # layers
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers",
         "num_decoder_layers", "num_encoder_layers", "depth", "num_blocks"),
        2,
    ),
    # attention
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads",
         "num_decoder_attention_heads", "num_encoder_attention_heads", "attention_heads",
         "swa_num_attention_heads"),
        4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "num_query_groups"), 2),
    **dict.fromkeys(
        ("head_dim", "swa_head_dim", "kv_channels", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "dim_head",
         "d_head", "d_kv", "index_head_dim", "attention_head_dim", "attention_head_size", "query_pre_attn_scalar",
         "rotary_dim", "linear_head_dim", "linear_key_head_dim", "linear_value_head_dim", "mamba_head_dim",
         "projection_dim", "hidden_size_per_layer_input"),
        8,
    ),
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "index_n_heads": 16,  # of fewer, all may give a position nothing: which ones are attended to is then arbitrary
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "index_topk"), 16),
    # experts
    **dict.fromkeys(
        ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "zero_expert_num"), 4
    ),
    **dict.fromkeys(("n_group", "num_expert_group", "topk_group"), 1),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    # recurrent states
    **dict.fromkeys(
        ("mamba_d_state", "state_size", "ssm_state_size", "mamba_n_heads", "n_mamba_heads", "mamba_num_heads"), 8
    ),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size", "block_size"), 16),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "mamba_ngroups"), 2),
    "mamba_d_ssm": 64,
    # lengths
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions",
                     "max_source_positions", "context_length", "model_max_length"), 256),
    **dict.fromkeys(WINDOWS, 24),
    # pictures and sound
    "image_size": 16,
    **dict.fromkeys(("vision_hidden_size", "adapter_in_dim", "out_hidden_size", "projector_hidden_size", "mlp_dim",
                     "projection_hidden_size", "qformer_hidden_size", "output_channels"), 32),
    "patch_size": 8,
    # of random weights: so large that what a token follows shows in its probability
    **dict.fromkeys(("initializer_range", "init_std"), 0.2),
}  # fmt: skip
"""Name of a config's field -> its small value."""
KINDS = ("layer_types", "mlp_layer_types", "layers_block_type", "block_types")
"""Fields that list the kind of each layer."""
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")
VOCABULARIES = ("vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input")
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
"""Rotary positions of text, height and width, in parts of a head of 8."""

EXCEPTIONS: dict[str, dict[str, Any]] = {
    "axk2": {"gated_norm_rank": 8},
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "blt_local_decoder": {"hidden_size_global": 32},
    "blt_local_encoder": {"hidden_size_global": 32},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32, "downsample_hidden_size": 8},
    "dots3_note_text": {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 16,
                        "swa_kv_lora_rank": 16, "swa_head_dim": 16, "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8},
    "dots3_note_vision_encoder": {"adapter_in_dim": 32, "adapter_out_dim": 32},
    "gemma3n_text": {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
                     "num_kv_shared_layers": 2, "laurel_rank": 8},
    "gemma4_text": {"global_head_dim": 16},
    "gemma4_unified_text": {"global_head_dim": 16},
    "glm4v_text": MROPE,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "qwen2_5_vl_text": MROPE,
    "qwen2_vl_text": MROPE,
    "qwen4_exp_text": {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16,
                       "indexer_compress_ratio": 4, "hc_lowrank": 8},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"], "num_buckets": 4},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
              "attention_hidden_size": 64, "attention_head_dim": 16},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}  # fmt: skip
"""Type of a config -> fields that the recipe does not know, or that must be others for it."""


IMPOSSIBLE = {
    "gemma3n": "its vision tower needs the package timm",
    "gemma4_assistant": "drafts tokens from the keys and values of another model",
    "gemma4_unified_assistant": "drafts tokens from the keys and values of another model",
    "musicgen": "its language model, which reads codes of sound, is not made from its config",
    "musicgen_melody": "its language model, which reads codes of sound, is not made from its config",
}
"""The types that no config can make here, and why."""


def tiny(name: str, vocab_size: int) -> dict[str, Any]:
    """The `architecture:` of a small model: `model_type` and the fields that make it small.

    Args:
        name: a type of `CAUSAL` or `SHELLS`, or a variant of one.
        vocab_size: rows of the embeddings of a config within the config; that of the model itself is its tokenizer's.
    """
    variant = VARIANTS.get(name, {"model_type": name})
    fields = {**_small(AutoConfig.for_model(variant["model_type"]), vocab_size), **variant}
    return {name: value for name, value in fields.items() if name not in {"vocab_size", *SPECIAL}}


def _small(config: PreTrainedConfig, vocab_size: int) -> dict[str, Any]:
    """The type and the small values of a config's fields, and of those of the configs within it."""
    content, stored = config.to_dict(), config.attribute_map
    values = {field.name: content.get(stored.get(field.name, field.name)) for field in dataclasses.fields(config)}
    fields = {name: SIZES[name] for name in values if name in SIZES}
    fields = {name: size for name, size in fields.items() if values[name] is not None or name not in WINDOWS}
    fields |= {name: vocab_size for name in VOCABULARIES if name in values}
    if "vocab_size" in values:
        special = {name: values.get(name) for name in SPECIAL}
        fields |= {name: 0 for name, value in special.items() if isinstance(value, int) and value >= vocab_size}
    if "mrope_section" in (rope := values.get("rope_parameters") or {}):
        fields["rope_parameters"] = {**rope, **MROPE["rope_parameters"]}
    if values.get("is_decoder") is False:
        fields["is_decoder"] = True
    if "kv_lora_rank" in fields and "num_key_value_heads" in fields:  # keys and values are of each head
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    kinds = {name: list(dict.fromkeys(values[name])) for name in KINDS if values.get(name)}
    if kinds:
        layers = max(2, *map(len, kinds.values()))
        fields |= {name: layers for name in LAYERS if name in fields}
        fields |= {name: [some[k % len(some)] for k in range(layers)] for name, some in kinds.items()}
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(inner := getattr(config, name), PreTrainedConfig):
            fields[name] = _small(inner, vocab_size)
    kind = {"model_type": config.model_type} if config.model_type else {}
    return {**kind, **fields, **EXCEPTIONS.get(config.model_type, {})}
