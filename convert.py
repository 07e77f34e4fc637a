"""Convert Hugging Face weights to MLX: a thin front of `helium_mlx.convert`."""

import sys

from helium_mlx.convert import main

if __name__ == "__main__":
    sys.exit(main())
