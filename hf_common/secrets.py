"""Tokens of the Hub: checked where they come in, and never shown."""

import re

SHOWN = "hf_***"


def clean_token(token: str | None) -> str | None:
    """`token` without blanks around it, as reading a file gives them; None and blanks alone mean that there is none.

    Raises:
        ValueError: characters that no token has; the error does not show them.
    """
    if token is None:
        return None
    if not isinstance(token, str):
        raise TypeError(f"token must be a str; got {type(token).__name__}")
    cleaned = token.strip()
    if not cleaned.isascii() or not cleaned.isprintable() or " " in cleaned:
        raise ValueError("token must be one word of printable ASCII characters (it is not shown here)")
    return cleaned


def redacted(text: object, *tokens: str | None) -> str:
    """`str(text)` in which the given tokens, and whatever looks like one, are `hf_***`."""
    shown = str(text)
    for token in sorted((token for token in tokens if token), key=len, reverse=True):
        shown = shown.replace(token, SHOWN)
    return re.sub(r"(?<![A-Za-z0-9])(hf|api_org)_[A-Za-z0-9]{8,}", SHOWN, shown)
