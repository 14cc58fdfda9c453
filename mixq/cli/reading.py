"""Text from files and standard input, as UTF-8 or not at all."""

from __future__ import annotations

from mixq.errors import PromptError


def utf8(data: bytes, name: str) -> str:
    """Return `data` as text without a byte order mark; PromptError says where it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{name} is not UTF-8 text: byte {data[error.start]:#04x} at {error.start}.",
            hint="Convert it, for example with `iconv -f LATIN1 -t UTF-8`.",
        ) from None
