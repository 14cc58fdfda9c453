"""Makes text from models and files safe for a terminal.

Contract: `harmless` returns text without characters that a terminal obeys or that reorder their neighbours; line feeds
and tabs stay. The others are spelled out (`\\x1b`, `\\u202e`), one by one, so that it does not matter how the text was
cut. Markdown, plain text, loaded sessions and names all pass here before they are shown.
"""

from __future__ import annotations

# C0 (but line feed and tab), DEL and C1; line and paragraph separator; marks that override the direction of text;
# lone surrogates, which cannot be sent to a terminal.
_CODES = (
    *range(0x09),
    *range(0x0B, 0x20),
    *range(0x7F, 0xA0),
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
    *range(0xD800, 0xE000),
)
_SPELLED_OUT = {code: chr(code).encode("unicode_escape").decode() for code in _CODES}


def harmless(text: str) -> str:
    """Return `text` with control characters escaped, so that a terminal shows them instead of executing them."""
    return text.translate(_SPELLED_OUT)
