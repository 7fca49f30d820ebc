"""Tiny causal language models with random weights, one a common architecture."""

from __future__ import annotations

import torch
import transformers

SIZES = dict(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip

ARCHITECTURES: dict[str, tuple[str, dict]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 8, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"sliding_window": 8, "head_dim": 8}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 0.5, "query_pre_attn_scalar": 8},
    ),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48}),
    "gpt_neox": ("GPTNeoXConfig", {"rotary_pct": 0.5}),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "granite": ("GraniteConfig", {"logits_scaling": 3.0}),
}


def tiny_model(kind: str = "llama", *, seed: int = 0, **changes) -> transformers.PreTrainedModel:
    """Build a causal LM of a few thousand parameters, wide enough in its weights that tokens differ in probability."""
    name, extra = ARCHITECTURES[kind]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**{**SIZES, "initializer_range": 0.3, **extra, **changes})
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
