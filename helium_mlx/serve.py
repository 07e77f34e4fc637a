"""The command `serve`: completions over HTTP, as OpenAI's legacy API has them, and a page to write on.

`python -m helium_mlx.serve --help`; docs/serve.md has the clients.
"""

import re
import sys
from pathlib import Path

from helium_mlx.errors import HeliumError, UsageError
from helium_mlx.progress import note
from helium_mlx.terminal import CommandParser, add_repository_options


def build_parser() -> CommandParser:
    """Return the parser."""
    parser = CommandParser(
        "serve",
        "Serve completions to programs of this machine, and a page to write on.",
        examples={
            "--model helium-2b-4bit": "at http://127.0.0.1:8080/, for this machine only",
            "--model demo --host 0.0.0.0 --api-key-file key.txt": "for the network, with a key",
        },
        instead={"--temp": "each request says its own", "--draft-model": "give prompt_lookup in requests"},
    )
    parser.add_argument("--model", required=True, help="checkpoint directory, Hub repository or 'demo'")
    add_repository_options(parser)
    parser.add_argument("--dtype", help="dtype to compute in (default: the checkpoint's)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port to listen at; 0 picks one (default: %(default)s)")
    key = parser.add_mutually_exclusive_group()
    key.add_argument("--api-key", metavar="KEY", help="key that clients must send; other hosts than this need one")
    key.add_argument("--api-key-file", metavar="FILE", help="file that holds the key, which others then cannot see")
    parser.add_argument(
        "--allow-origin", action="append", default=[], metavar="URL",
        help="page that may ask from a browser, such as http://localhost:3000 (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--max-concurrent", type=int, default=16, metavar="N",
        help="completions that run together; four times as many requests wait (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--memory-limit", metavar="SIZE", help="weights and caches, such as 6GB (default: none)")
    parser.add_argument(
        "--max-tokens-limit", type=int, metavar="N", help="the most max_tokens of a request (default: the context)"
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="the most a request takes (default: 600)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return build_parser().run(argv, _serve)


def _serve(
    *,
    model: str,
    revision: str | None,
    subfolder: str | None,
    dtype: str | None,
    host: str,
    port: int,
    api_key: str | None,
    api_key_file: str | None,
    allow_origin: list[str],
    max_concurrent: int,
    memory_limit: str | None,
    max_tokens_limit: int | None,
    timeout: float,
) -> None:
    import asyncio

    try:
        from helium_mlx.server.access import Access, is_loopback
    except ModuleNotFoundError as error:
        if error.name != "h11":
            raise
        raise HeliumError("serve needs h11; install it with: pip install '.[serve]'") from None
    from helium_mlx.checkpoint.weight_files import parse_size
    from helium_mlx.engine.engine import HeliumEngine
    from helium_mlx.option_values import require_number, require_whole
    from helium_mlx.server.app import Service
    from helium_mlx.server.running import Address, serve

    require_whole("port", port, 0, 65535)
    require_whole("max_concurrent", max_concurrent, 1, 1024)
    require_number("timeout", timeout, 0, 1e6, "a number of seconds above 0", above=0)
    if max_tokens_limit is not None:
        require_whole("max_tokens_limit", max_tokens_limit, 1, 2**30)
    key = _key(api_key, api_key_file)
    if not is_loopback(host) and key is None:
        raise UsageError(
            f"host is {host}, which other machines reach; give an --api-key-file too, or leave the host out"
        )
    for origin in allow_origin:
        _require_origin(origin)
    access = Access(key, frozenset(allow_origin), is_loopback(host))
    with HeliumEngine(
        model,
        revision=revision,
        subfolder=subfolder,
        dtype=dtype,
        batch_size=max_concurrent,
        memory_limit=None if memory_limit is None else parse_size(memory_limit, "memory_limit"),
    ) as engine:
        limit = engine.config.max_position_embeddings if max_tokens_limit is None else max_tokens_limit
        service = Service(_name_of(model), max_concurrent, limit, timeout)
        address = Address(host, port)
        asyncio.run(serve(engine, service, access, address, on_ready=_say_ready))


def _say_ready(address: str) -> None:
    note(f"Ready at {address} (the page) and {address}v1 (for programs); Ctrl-C ends it")


def _key(given: str | None, file: str | None) -> str | None:
    if file is not None:
        from helium_mlx.files.text import read_text
        from helium_mlx.files.untrusted import FileProblem

        try:
            given = read_text(file, 10_000).text.strip()
        except FileProblem as problem:
            raise UsageError(f"api_key_file {file}: {problem}") from None
    if given is None:
        return None
    if len(given) < 8 or not given.isascii() or not given.isprintable() or " " in given:
        raise UsageError("api_key must have 8 characters or more, printable ASCII without spaces")
    return given


def _require_origin(origin: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9._:\[\]-]+", origin):
        raise UsageError(f"allow_origin is {origin}; name one page's origin, such as http://localhost:3000")


def _name_of(model: str) -> str:
    """Return what clients see as the model's name: a repository's whole, of a path the last folder."""
    return Path(model).resolve().name if Path(model).exists() else model


if __name__ == "__main__":
    sys.exit(main())
