"""From weights to codes: nearest, fitted and GPTQ rounding, bits by sensitivity, recipes, calibration text."""
