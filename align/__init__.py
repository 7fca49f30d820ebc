"""Post-training of Hugging Face causal language models."""
