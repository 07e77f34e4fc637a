"""lm-eval's own command, which knows our class of models, `--model helium_mlx`: `python -m helium_mlx.evaluation`."""

import sys

from helium_mlx.errors import HeliumError


def main() -> None:
    """Register the class, and hand over."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        print(f"error: lm-eval is not there ({error}): pip install lm-eval sacrebleu datasets", file=sys.stderr)
        sys.exit(1)
    import helium_mlx.evaluation.language_model  # noqa: F401

    try:
        cli_evaluate()
    except HeliumError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
