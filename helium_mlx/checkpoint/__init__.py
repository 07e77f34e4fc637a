"""What a checkpoint says and holds: config, RoPE parameters, tensor names and shapes, rows at a time."""
