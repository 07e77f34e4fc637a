"""The command `tokenize`: the tokens of a text, with their ids. `python -m helium_mlx.tokenize --help`."""

import sys

from helium_mlx.errors import one_line
from helium_mlx.json_writer import to_json
from helium_mlx.progress import note
from helium_mlx.terminal import CommandParser, add_repository_options


def build_parser() -> CommandParser:
    """Return the parser."""
    parser = CommandParser(
        "tokenize",
        "Print the tokens of a text, one a line: its id, and its piece, in which \u2581 is a space.",
        examples={
            '--model demo --text "Il \u00e9tait une fois"': "what a prompt becomes, BOS included",
            "--model demo --text - --json < story.txt": "a file, for programs",
        },
    )
    parser.add_argument("--model", required=True, help="checkpoint directory, Hub repository or 'demo'")
    add_repository_options(parser)
    parser.add_argument("--text", required=True, help="the text; - reads standard input")
    parser.add_argument("--json", action="store_true", help="print one JSON object: ids and pieces")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return build_parser().run(argv, _tokenize)


def _tokenize(*, model: str, revision: str | None, subfolder: str | None, text: str, json: bool) -> None:
    from helium_mlx.files.hub import resolve
    from helium_mlx.files.text import read_standard_input
    from helium_mlx.tokenizer.tokenizer import HeliumTokenizer

    given = read_standard_input("--text") if text == "-" else text
    tokenizer = HeliumTokenizer.from_pretrained(resolve(model, revision=revision, subfolder=subfolder))
    ids = tokenizer.encode(given)
    pieces = [tokenizer.convert_ids_to_tokens(token) for token in ids]
    if json:
        print(to_json({"ids": ids, "pieces": pieces}))
        return
    width = len(str(tokenizer.vocab_size))
    for token, piece in zip(ids, pieces, strict=True):
        print(f"{token:>{width}}  {one_line(piece)}")
    note(f"{len(ids)} tokens")


if __name__ == "__main__":
    sys.exit(main())
