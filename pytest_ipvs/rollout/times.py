"""Times as the API writes them."""

from __future__ import annotations

import datetime


def age_of(time_text: str) -> float:
    """Seconds since a time of the API; 0 for one that can't be read: it counts as new."""
    try:
        then = datetime.datetime.fromisoformat(time_text)
    except ValueError:
        return 0.0
    if then.tzinfo is None:
        return 0.0
    return (datetime.datetime.now(datetime.UTC) - then).total_seconds()
