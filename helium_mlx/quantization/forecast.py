"""How long calibrated work will take, in words; what measures it tells seconds, from its first layer on."""

from collections.abc import Callable

OnForecast = Callable[[float], None]
"""Called once, before most of the work, with the seconds that all of it will have taken."""


def told_in_words(on_forecast: Callable[[str], None] | None, what: str, weights: int) -> OnForecast | None:
    """Return what tells `on_forecast` a sentence in the place of seconds; None for None."""
    return None if on_forecast is None else lambda seconds: on_forecast(forecast(what, seconds, weights))


def forecast(what: str, seconds: float, weights: int) -> str:
    """Return the sentence about some work on a model of so many weights."""
    size = f"{weights / 1e9:.1f} billion" if weights >= 1e8 else f"{weights / 1e6:.1f} million"
    return f"{what} takes {_in_words(seconds)} for {size} weights"


def _in_words(seconds: float) -> str:
    if seconds < 10:
        return "less than 10 seconds"
    if seconds < 90:
        return f"about {round(seconds, -1):.0f} seconds"
    if seconds < 90 * 60:
        return f"about {seconds / 60:.0f} minutes"
    hours = seconds / 3600
    return f"about {hours:.0f} hours" if hours >= 10 else f"about {round(2 * hours) / 2:g} hours"
