"""The conclusion of a comparison in one sentence: the best method, what it gains, what equals it."""

from __future__ import annotations

from canvas_fm.heads.compare.compare import Comparison
from canvas_fm.heads.compare.summary import CAME, OWN, POOLED, against, gains

_NAMED = 3  # methods that cannot be told apart are named up to here, then counted


def conclusion_of(comparison: Comparison) -> str:
    """Best F1 on held-out volumes, that of the unrefined candidates, and methods within its interval."""
    gained = gains(comparison, POOLED)
    if not gained.after:
        return "no method could be scored on all volumes"
    best = max(gained.after, key=lambda name: gained.after[name])
    f1 = gained.after[best]
    if gained.before >= f1:
        return (
            f"no method is better than the {CAME}, whose F1 is {gained.before:.3f}; the best one, "
            f"{best}, has {f1:.3f}"
        )
    sentence = f"{_article(best)} is best here: F1 {f1:.3f} on held-out volumes"
    if gained.over != best:
        sentence += f", where the {gained.over} has {gained.start:.3f}".replace(f"{CAME} has", f"{CAME} have")
    # A difference whose interval reaches 0 may be one of seeds and volumes.
    equal = [name for name, difference in against(comparison, best).items() if difference.high >= 0]
    if not equal:
        return f"{sentence}; the others are below it"
    named = ", ".join(_article(name) for name in equal[:_NAMED])
    more = f" and {len(equal) - _NAMED} more" if len(equal) > _NAMED else ""
    return f"{sentence}; not told apart from it: {named}{more}"


def _article(name: str) -> str:
    return f"the {name}" if name == OWN else name
