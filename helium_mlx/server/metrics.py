"""What the server counts, in the text format of Prometheus. No texts, no addresses."""

import time
from collections import Counter

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds.
_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics:
    """Counters since the start, and how many requests are open."""

    def __init__(self) -> None:
        self.open_requests = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.hung_up = 0
        self._started = time.time()
        self._answers: Counter[tuple[str, int]] = Counter()
        self._buckets: Counter[float] = Counter()
        self._seconds = 0.0
        self._first_tokens = 0

    def answered(self, path: str, status: int) -> None:
        """Count an answer."""
        self._answers[path, status] += 1

    def first_token(self, seconds: float) -> None:
        """Count a completion by the time to its first token."""
        self._first_tokens += 1
        self._seconds += seconds
        self._buckets.update(bound for bound in _BUCKETS if seconds <= bound)

    def used(self, *, prompt: int, cached: int, generated: int) -> dict[str, object]:
        """Count the tokens of an answer, and return them as OpenAI's API states its `usage`."""
        self.prompt_tokens += prompt
        self.cached_tokens += cached
        self.completion_tokens += generated
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def text(self) -> str:
        """Return all of it."""
        lines = [
            *_metric("helium_mlx_requests_total", "counter", "Answers by path and status."),
            *(
                f'helium_mlx_requests_total{{path="{path}",status="{status}"}} {count}'
                for (path, status), count in sorted(self._answers.items())
            ),
        ]
        for name, kind, help_, value in (
            ("open_requests", "gauge", "Completions that run or wait.", self.open_requests),
            ("hung_up_total", "counter", "Completions whose client left before their end.", self.hung_up),
            ("prompt_tokens_total", "counter", "Tokens of prompts.", self.prompt_tokens),
            ("cached_tokens_total", "counter", "Tokens of prompts that were not computed again.", self.cached_tokens),
            ("completion_tokens_total", "counter", "Tokens generated.", self.completion_tokens),
            ("start_time_seconds", "gauge", "Unix time of the start.", self._started),
        ):
            lines += [*_metric(f"helium_mlx_{name}", kind, help_), f"helium_mlx_{name} {value:.17g}"]
        name = "helium_mlx_time_to_first_token_seconds"
        lines += _metric(name, "histogram", "Seconds from a request to its first token.")
        lines += [f'{name}_bucket{{le="{bound:g}"}} {self._buckets[bound]}' for bound in _BUCKETS]
        lines += [f'{name}_bucket{{le="+Inf"}} {self._first_tokens}', f"{name}_sum {self._seconds:.6f}",
                  f"{name}_count {self._first_tokens}"]  # fmt: skip
        return "\n".join(lines) + "\n"


def _metric(name: str, kind: str, help_: str) -> list[str]:
    return [f"# HELP {name} {help_}", f"# TYPE {name} {kind}"]
