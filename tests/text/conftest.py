"""The real Mixtral tokenizer, as mistral-common ships it, and the demo model's own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mixq.system import paths
from mixq.text.sentencepiece_tokenizer import SentencePieceTokenizer as Tokenizer

MIXTRAL_SHA256 = "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055"


@pytest.fixture(scope="session")
def mixtral_tokenizer_path() -> Path:
    mistral_common = pytest.importorskip("mistral_common")
    path = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == MIXTRAL_SHA256
    return path


@pytest.fixture(scope="session", params=["mixtral", "demo"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Both of them, one after the other: their byte pieces begin at id 3, their control ids are 1 and 2."""
    if request.param == "mixtral":
        return Tokenizer(request.getfixturevalue("mixtral_tokenizer_path"))
    path = paths.demo_source() / "tokenizer.model"
    if not path.is_file():
        pytest.skip("no demo model here")
    return Tokenizer(path)


@pytest.fixture(scope="session")
def mixtral_tokenizer(mixtral_tokenizer_path: Path) -> Tokenizer:
    return Tokenizer(mixtral_tokenizer_path)
