"""A model for threads and asyncio: who runs next, on one thread that owns everything of MLX."""
