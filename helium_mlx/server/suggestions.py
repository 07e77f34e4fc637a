"""`/v1/suggestions`: what could be typed next, as `HeliumEngine.suggest` finds it, whole or a word an event."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from helium_mlx.engine.engine import HeliumEngine
from helium_mlx.engine.suggestions import Suggestions, SuggestionStream
from helium_mlx.json_writer import to_json
from helium_mlx.server.completions import DONE, reported
from helium_mlx.server.http import Events
from helium_mlx.server.metrics import Metrics
from helium_mlx.server.parameters import SUGGESTION
from helium_mlx.server.schema import read


@dataclass(frozen=True)
class SuggestionCall:
    """A request to `/v1/suggestions`, checked. `options` are the engine's."""

    text: str
    streams: bool
    options: Mapping[str, object]

    @classmethod
    def of_body(cls, body: bytes) -> "SuggestionCall":
        """Return the request that a body holds. Raises ApiError, which names the parameter that is wrong."""
        given = read(body, SUGGESTION, {})
        names = ("max_words", "time_budget_ms", "n", "threshold", "handle")
        options = {name: given[name] for name in names if given[name] is not None}
        return cls(cast(str, given["prompt"]), cast(bool, given["stream"]), options)


class Suggesting:
    """Answers requests to `/v1/suggestions`. A newer one of the same handle ends the older, whoever sent it."""

    def __init__(self, engine: HeliumEngine, metrics: Metrics) -> None:
        self.engine = engine
        self.metrics = metrics

    async def whole(self, call: SuggestionCall) -> str:
        """Return all suggestions, once there are no more."""
        async with await self._begin(call) as stream:
            return self._object(await stream)

    async def events(self, call: SuggestionCall) -> Events:
        """Yield a word an event, and then the whole; an error on the way is an event too."""
        async with await self._begin(call) as stream:
            try:
                async for word in stream:
                    yield to_json({"index": word.index, "text": word.text, "probability": word.probability})
                yield self._object(await stream)
            except Exception as error:
                yield reported(error).text()
        yield DONE

    async def _begin(self, call: SuggestionCall) -> SuggestionStream:
        # Tokenizing a long text takes a while.
        return await asyncio.to_thread(self.engine.suggest, call.text, **call.options)  # pyright: ignore[reportArgumentType]

    def _object(self, found: Suggestions) -> str:
        usage = self.metrics.used(
            prompt=found.prompt_tokens, cached=found.cached_tokens, generated=found.generated_tokens
        )
        return to_json(
            {
                "object": "suggestions",
                "suggestions": [
                    {"text": one.text, "probability": one.probability, "index": one.index} for one in found.suggestions
                ],
                "ended": found.ended,
                "usage": usage,
            }
        )
