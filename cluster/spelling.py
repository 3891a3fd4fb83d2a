"""What somebody may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(word: object, known: Sequence[str]) -> str:
    """Return "; did you mean …?" for the known word that comes close, or nothing."""
    as_known = {each.lower(): each for each in known}
    begun = [each for each in as_known if len(str(word)) > 2 and each.startswith(str(word).lower())]
    close = sorted(begun, key=len)[:1] or difflib.get_close_matches(str(word).lower(), as_known, n=1, cutoff=0.6)
    return f"; did you mean {as_known[close[0]]}?" if close else ""
