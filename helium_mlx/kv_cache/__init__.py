"""What attention has seen: growing, rotating, quantized, batched; what a cache costs; a cache as a file."""
