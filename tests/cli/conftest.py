"""A tiny random Mixtral with the real tokenizer, unquantized and quantized, and command lines run in this process."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mixq.cli.main import exit_code
from mixq.quantize import quantize
from tests.checkpoints import write_tiny_mixtral


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command line gave."""

    code: int
    out: str
    err: str


RunCli = Callable[..., Outcome]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mistral_common = pytest.importorskip("mistral_common")
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_mixtral(path, vocab=32000, ffn=128, tokenizer=False)
    shutil.copy(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1", path / "tokenizer.model")
    (path / "tokenizer_config.json").write_text('{"chat_template": "[INST] {{ messages[0].content }} [/INST]"}')
    return path


@pytest.fixture(scope="session")
def quantized(tiny: Path) -> Path:
    path = tiny.parent / "tiny-nl4"
    quantize(tiny, path)
    return path


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> RunCli:
    """Run `mixq ARGUMENTS` in this process; standard input is a pipe with `stdin`, never a terminal."""
    for name in list(os.environ):
        if name.startswith("MIXQ_") and name != "MIXQ_HOME":
            monkeypatch.delenv(name)

    def run(*arguments: object, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        code = exit_code([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return Outcome(code, captured.out, captured.err)

    return run
