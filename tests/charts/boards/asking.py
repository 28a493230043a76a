"""PromQL that several panels share."""

from charts.grafana import Asked


def quantile(q: float, histogram: str, window: str, *, of: str = "", together: str = "sum") -> str:
    """A quantile of what was observed within ``window``."""
    function = "rate" if window == "$__rate_interval" else "increase"
    return f"histogram_quantile({q}, {together} by (le) ({function}({histogram}_bucket{{{of}}}[{window}])))"


def spread(histogram: str, window: str, *, of: str = "", together: str = "sum") -> tuple[Asked, ...]:
    """Median and tail of a histogram."""
    return (
        Asked(quantile(0.5, histogram, window, of=of, together=together), "half"),
        Asked(quantile(0.9, histogram, window, of=of, together=together), "9 of 10"),
    )
