"""What arguments of several scripts have in common."""

import json
import re
from collections.abc import Collection

MOST_CHARACTERS = 10_000  # of overrides: more than any config has


def parse_overrides(
    text: str | None,
    allowed: Collection[str] | None = None,
    *,
    strings: bool = True,
    named: str = "config_overrides",
) -> dict:
    """`"batch_norm=false, depths=[2,2]"` -> values as JSON reads them (true and false in any case), or as strings.

    Args:
        allowed: the names that may be set; None: any.
        strings: whether a value that is no JSON is a string.
        named: what errors call the text.

    Raises:
        ValueError: a part that is not `name=value`, a value that is no JSON where it must be, or another name.
    """
    text = text or ""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"{named} must have at most {MOST_CHARACTERS} characters; got {len(text)}")
    overrides = {}
    for part in re.split(r",(?![^\[]*\])", text):  # commas outside brackets
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not part.strip():
            continue
        if not equals:
            raise ValueError(f"{named} must be name=value,...; got {part[:80]!r}")
        try:
            overrides[name] = json.loads(value.lower() if value.lower() in ("true", "false") else value)
        except (ValueError, RecursionError):  # also whole numbers of more digits than Python reads
            if not strings:
                raise ValueError(f"{named} must be name=value,...; got {part[:80]!r}") from None
            overrides[name] = value
        if allowed is not None and name not in allowed:
            raise ValueError(f"{named} may set {sorted(allowed)}; got {name[:80]!r}")
    return overrides
