"""Convert Hugging Face weights to MLX: a thin front of `helium_mlx.convert`."""

import sys

try:
    from helium_mlx.convert import main
except ModuleNotFoundError as error:
    # Run from a checkout by a Python that has not installed it.
    sys.exit(
        f"error: the package {error.name} is not installed for {sys.executable}; in this folder run: pip install ."
    )

if __name__ == "__main__":
    sys.exit(main())
