"""Configs and a card of the published family, for the tests of cards."""

from helium_mlx.checkpoint.config import HeliumConfig

TINY = HeliumConfig(64, 64, 64, 2, 2, dtype="bfloat16")
HELIUM_1_2B = HeliumConfig(64000, 2048, 8192, 28, 16, num_key_value_heads=8, model_type="llama", dtype="bfloat16")
PREVIEW = HeliumConfig(48000, 2560, 7040, 24, 20, dtype="bfloat16")

# The metadata and the sentences about terms of kyutai/helium-1-2b, shortened.
CARD_OF_1_2B = """---
library_name: transformers
license: cc-by-sa-4.0
language:
- bg
- cs
pipeline_tag: text-generation
---
# Helium-1-2b
- **License:** CC-BY-SA 4.0
- **Terms of use:** Distilled from Gemma 2, so subject to the Gemma Terms of Use
"""
