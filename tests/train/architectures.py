"""Small mixtures of experts, hybrids and multimodal shells: `architecture:` of a base model, without its type."""

from __future__ import annotations

from typing import Any

SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2, "max_position_embeddings": 256}  # fmt: skip
TEXT = {**SIZES, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 256}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip
MAMBA = {"mamba_n_groups": 1, "mamba_d_state": 8}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "mixtral": {**SIZES, "num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 0.1},
    "ernie4_5_moe": {**SIZES, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16,
                     "moe_layer_start_index": 0},
    "jamba": {**SIZES, "num_experts": 4, "attn_layer_offset": 0, "attn_layer_period": 2, "expert_layer_offset": 1,
              "use_mamba_kernels": False, "mamba_d_state": 4},
    "bamba": {**SIZES, **MAMBA, "attn_layer_indices": [0], "mamba_n_heads": 4, "mamba_d_head": 16},
    "falcon_h1": {**SIZES, **MAMBA, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
    "gemma3": {"text_config": {**TEXT, "model_type": "gemma3_text", "vocab_size": 512}, "mm_tokens_per_image": 4,
               "vision_config": {**VISION, "model_type": "siglip_vision_model"}},
    "gemma3n_text": {**TEXT, "intermediate_size": [32, 32], "vocab_size_per_layer_input": 512, "laurel_rank": 4,
                     "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0,
                     "activation_sparsity_pattern": [0.0, 0.0]},
    "opt": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32,
            "word_embed_proj_dim": 32, "dropout": 0.0, "layerdrop": 0.5},
}  # fmt: skip
