"""Tiny causal language models with random weights, one a common architecture."""

from __future__ import annotations

import torch
import transformers

SIZES = dict(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip

MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
MAMBA = dict(mamba_n_heads=8, mamba_d_head=8, mamba_d_state=4, mamba_n_groups=1, mamba_chunk_size=8)

ARCHITECTURES: dict[str, tuple[str, dict]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 8, "tie_word_embeddings": True}),
    "qwen3_moe": ("Qwen3MoeConfig", {"head_dim": 8, **MOE}),
    "gpt_oss": ("GptOssConfig", {"head_dim": 8, "sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
                                 "layer_types": ["sliding_attention", "full_attention"]}),
    "deepseek_v3": ("DeepseekV3Config", {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16,
                                         "v_head_dim": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
                                         "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
                                         "first_k_dense_replace": 1, "moe_intermediate_size": 16}),
    "mistral": ("MistralConfig", {"sliding_window": 8, "head_dim": 8}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 0.5, "attn_logit_softcapping": 2.0,
         "query_pre_attn_scalar": 8},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8, "num_hidden_layers": 4,
         "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]},
    ),
    "phi3": ("Phi3Config", {"sliding_window": 8}),
    "phi": ("PhiConfig", {}),
    "olmo2": ("Olmo2Config", {}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48}),
    "gpt_neox": ("GPTNeoXConfig", {"rotary_pct": 0.5}),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 16}),
    "falcon": ("FalconConfig", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4}),
    "cohere": ("CohereConfig", {"logit_scale": 0.25}),
    "granite": ("GraniteConfig", {"logits_scaling": 3.0}),
}  # fmt: skip
"""Those whose cached prompts can be expanded to a group, with a head that runs alone: the fast way of everything."""

STATE_SPACE: dict[str, tuple[str, dict]] = {
    "mamba": ("MambaConfig", {"state_size": 4}),
    "jamba": ("JambaConfig", {"mamba_d_state": 4, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
                              "num_experts": 2}),
    "bamba": ("BambaConfig", {"attn_layer_indices": [1], **MAMBA}),
    "falcon_h1": ("FalconH1Config", {**MAMBA, "mamba_n_heads": 4, "mamba_d_ssm": 32, "lm_head_multiplier": 0.25}),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}),
    "qwen3_next": ("Qwen3NextConfig", {"head_dim": 8, "shared_expert_intermediate_size": 16, "linear_key_head_dim": 8,
                                       "linear_value_head_dim": 8, "linear_num_key_heads": 2,
                                       "linear_num_value_heads": 4, **MOE,
                                       "layer_types": ["linear_attention", "full_attention"],
                                       "initializer_range": 0.05}),
    "qwen3_5": ("Qwen3_5TextConfig", {"head_dim": 8, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
                                      "linear_num_key_heads": 2, "linear_num_value_heads": 4,
                                      "layer_types": ["linear_attention", "full_attention"],
                                      "initializer_range": 0.05}),
}  # fmt: skip
"""Those that keep a state beside, or in place of, the keys and values of every token.

The wide weights of the others would make the two forms of Qwen's gated delta rule, by chunks and by tokens,
differ by 1e-4 in float32.
"""

WITHOUT_CACHE: dict[str, tuple[str, dict]] = {
    "recurrent_gemma": ("RecurrentGemmaConfig", {"lru_width": 32, "attention_window_size": 8, "head_dim": 8,
                                                 "num_hidden_layers": 3}),
}  # fmt: skip
"""Those that hide their state, so that every token forwards its whole completion again."""

WHOLE_HEAD: dict[str, tuple[str, dict]] = {
    "llama4": ("Llama4TextConfig", {"head_dim": 8, "intermediate_size_mlp": 32, "num_local_experts": 2,
                                    "attention_chunk_size": 8}),
}  # fmt: skip
"""Those whose head cannot be run apart from their trunk."""

EVERY = ARCHITECTURES | STATE_SPACE | WITHOUT_CACHE | WHOLE_HEAD


def tiny_model(kind: str = "llama", *, seed: int = 0, **changes) -> transformers.PreTrainedModel:
    """Build a causal LM of a few thousand parameters, wide enough in its weights that tokens differ in probability."""
    name, extra = EVERY[kind]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**{**SIZES, "initializer_range": 0.3, **extra, **changes})
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def stirred_model(kind: str, **changes) -> transformers.PreTrainedModel:
    """Build one whose vectors are not as they are initialised: biases are not 0, nor is the embedding of padding."""
    model = tiny_model(kind, **changes)
    generator = torch.Generator().manual_seed(0)
    vectors = [p for p in model.parameters() if p.dim() == 1] + [model.get_input_embeddings().weight[:1]]
    with torch.no_grad():
        for vector in vectors:
            vector += 0.2 * torch.randn(vector.shape, generator=generator)
    return model
