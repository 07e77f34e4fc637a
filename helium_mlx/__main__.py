"""`python -m helium_mlx COMMAND`: the same as the script `helium-mlx`."""

import sys

from helium_mlx.cli import main

sys.exit(main())
