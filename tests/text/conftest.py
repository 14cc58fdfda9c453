"""The real Mixtral tokenizer, as mistral-common ships it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mixq.text.tokenizer import Tokenizer

MIXTRAL_SHA256 = "dadfd56d766715c61d2ef780a525ab43b8e6da4de6865bda3d95fdef5e134055"


@pytest.fixture(scope="session")
def mixtral_tokenizer_path() -> Path:
    mistral_common = pytest.importorskip("mistral_common")
    path = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == MIXTRAL_SHA256
    return path


@pytest.fixture(scope="session")
def tokenizer(mixtral_tokenizer_path: Path) -> Tokenizer:
    return Tokenizer(mixtral_tokenizer_path)
