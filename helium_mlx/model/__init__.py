"""transformers' Helium in MLX: decoder and heads, RoPE, loading and saving, its `generate`."""
