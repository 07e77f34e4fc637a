"""`/v1/suggestions`: what could be typed next, as `HeliumEngine.suggest` finds it, whole or a word an event."""

import asyncio
from collections.abc import AsyncIterator
from typing import cast

from helium_mlx.engine.engine import HeliumEngine
from helium_mlx.engine.suggestions import Suggestions, SuggestionStream
from helium_mlx.json_writer import to_json
from helium_mlx.server.completions import DONE, reported
from helium_mlx.server.metrics import Metrics
from helium_mlx.server.parameters import SUGGESTION
from helium_mlx.server.schema import read


class Suggesting:
    """Answers requests to `/v1/suggestions`. A newer one of the same handle ends the older, whoever sent it."""

    def __init__(self, engine: HeliumEngine, metrics: Metrics) -> None:
        self.engine = engine
        self.metrics = metrics

    async def begin(self, body: bytes) -> tuple[SuggestionStream, bool]:
        """Return what a body asks for, and whether it is to be streamed. Raises ApiError, which names what is wrong."""
        given = read(body, SUGGESTION, {})
        text, streams = cast(str, given["prompt"]), cast(bool, given["stream"])
        names = ("max_words", "time_budget_ms", "n", "threshold", "handle")
        options = {name: given[name] for name in names if given[name] is not None}
        try:
            # Tokenizing a long text takes a while.
            return await asyncio.to_thread(self.engine.suggest, text, **options), streams  # pyright: ignore[reportArgumentType]
        except Exception as error:
            raise reported(error) from None

    async def whole(self, stream: SuggestionStream) -> str:
        """Return all suggestions, once there are no more."""
        async with stream:
            try:
                return self._object(await stream)
            except Exception as error:
                raise reported(error) from None

    async def events(self, stream: SuggestionStream) -> AsyncIterator[str]:
        """Yield a word an event, and then the whole; an error is an event too."""
        async with stream:
            try:
                async for word in stream:
                    yield to_json({"index": word.index, "text": word.text, "probability": word.probability})
                yield self._object(await stream)
            except Exception as error:
                yield reported(error).text()
        yield DONE

    def _object(self, found: Suggestions) -> str:
        self.metrics.prompt_tokens += found.prompt_tokens
        self.metrics.cached_tokens += found.cached_tokens
        self.metrics.completion_tokens += found.generated_tokens
        return to_json(
            {
                "object": "suggestions",
                "suggestions": [
                    {"text": one.text, "probability": one.probability, "index": one.index} for one in found.suggestions
                ],
                "ended": found.ended,
                "usage": {
                    "prompt_tokens": found.prompt_tokens,
                    "completion_tokens": found.generated_tokens,
                    "total_tokens": found.prompt_tokens + found.generated_tokens,
                    "prompt_tokens_details": {"cached_tokens": found.cached_tokens},
                },
            }
        )
