"""Makes names and other texts of strangers safe to show.

A control character can clear a terminal or set its title, and a bidirectional override such as
U+202E shows `gnp.exe` as `exe.png`. Both are replaced by their escapes, `\\x1b` and `\\u202e`.
"""

from __future__ import annotations

import re

_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_CONTROL = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029{_BIDI}\ud800-\udfff]")


def visible(text: str) -> str:
    """Return the text with its control characters escaped; line breaks and tabs stay."""
    return _CONTROL.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
