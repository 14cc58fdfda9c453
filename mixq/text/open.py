"""Opens the tokenizer of a model folder, of either kind.

Contract: tokenizer.model (sentencepiece) is used if there is one, else tokenizer.json. Of the other files only
those of `mixq.text.tokenizer_config` are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mixq.errors import ModelFileError, printable
from mixq.formats.folder import SENTENCEPIECE, TOKENIZERS, tokenizer_file
from mixq.text.sentencepiece_tokenizer import SentencePieceTokenizer
from mixq.text.tokenizer import Tokenizer
from mixq.text.tokenizer_config import TokenizerConfig


def open_tokenizer(folder: Path | str, config: TokenizerConfig | None = None) -> Tokenizer:
    """Return the tokenizer of a model folder.

    Args:
        folder: a folder with tokenizer.model or tokenizer.json.
        config: the files next to it; None reads them.

    Raises:
        ModelFileError: the folder has no tokenizer, or one that is damaged or of a kind that mixq does not read; or
            it has tokenizer.json alone, and the tokenizers library is not installed.
        StorageError: a file cannot be read.
    """
    folder = Path(folder)
    path = tokenizer_file(folder)
    if path is None:
        raise ModelFileError(
            f"{printable(folder)} has neither tokenizer.model nor tokenizer.json.",
            hint="Copy tokenizer.model from the original checkpoint into the folder.",
        )
    return _open(path, None, TokenizerConfig.read(folder) if config is None else config)


def tokenizer_of(files: Mapping[str, bytes]) -> Tokenizer | None:
    """Return the tokenizer among files, by name; None if there is none.

    Raises:
        ModelFileError: as for `open_tokenizer`.
    """
    name = next((name for name in TOKENIZERS if name in files), None)
    return None if name is None else _open(Path(name), files[name], TokenizerConfig.of(files))


def _open(path: Path, content: bytes | None, config: TokenizerConfig) -> Tokenizer:
    if path.name == SENTENCEPIECE:
        return SentencePieceTokenizer(path, content, config)
    from mixq.text.json_tokenizer import JsonTokenizer

    return JsonTokenizer(path, content, config)
