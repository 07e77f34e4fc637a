"""Completions over HTTP, and the page to write on; see docs/serve.md."""
