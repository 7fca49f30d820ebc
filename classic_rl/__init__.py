"""Classic reinforcement learning: pure functions of tensors, and small agents on Gymnasium that use them."""
