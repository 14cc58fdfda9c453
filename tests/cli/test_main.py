"""The console script: cheap to start, one exit code for each kind of failure, no traceback."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mixq import errors
from mixq.cli.main import exit_code
from mixq.system import paths
from tests.cli.conftest import RunCli

HEAVY = ("torch", "numpy", "rich", "sentencepiece", "safetensors", "mixq.engine.model", "mixq.quantize")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], ["chat", "--bad-flag"]])
def test_what_runs_no_model_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys; from mixq.cli.main import exit_code; exit_code(sys.argv[1:]); "
        f"print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_version(cli: RunCli) -> None:
    outcome = cli("--version")
    assert (outcome.code, outcome.out.split()[0]) == (0, "mixq")


def test_help_names_every_command(cli: RunCli) -> None:
    outcome = cli("--help")
    assert outcome.code == 0
    for command in ("chat", "run", "quantize", "show", "verify", "eval", "bench", "doctor"):
        assert f"\n  {command} " in outcome.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shwo"], "Did you mean 'show'"),
        (["run", "--tempratur", "1"], "--temperature"),
        (["run", "--context", "many"], "--context"),
        (["show"], "Missing argument"),
        (["run", "-p", "hi", "--device", "cdua"], "Did you mean 'cuda'"),
        (["run", "-p", "hi", "--vram", "lots"], "is not a size"),
        (["run", "-p", "hi", "--context", "0"], "context is 0; it must be"),
        (["eval", "ppl", "--text", "/no/such/file"], "does not exist"),
    ],
)
def test_usage_errors_end_with_2(cli: RunCli, arguments: list[str], words: str) -> None:
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert words in outcome.err


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (errors.MixqError("broken"), 1),
        (errors.UsageError("broken"), 2),
        (errors.PromptError("broken"), 2),
        (errors.ModelFileError("broken", hint="mend it"), 3),
        (errors.DoesNotFitError("broken"), 4),
        (MemoryError(), 4),
        (errors.StorageError("broken"), 5),
        (OSError(errno.ENOSPC, "No space left on device", "some/file"), 5),
        (PermissionError(errno.EACCES, "Permission denied", "a\x1b[31mfile"), 5),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=repr,
)
def test_each_failure_has_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, cli: RunCli, failure: BaseException, code: int
) -> None:
    def fail(_: str) -> Path:
        raise failure

    monkeypatch.setattr(paths, "resolve_model", fail)
    outcome = cli("show", "anything")
    assert (outcome.code, outcome.out) == (code, "")
    assert "\x1b" not in outcome.err
    if isinstance(failure, errors.MixqError):
        assert "Error: broken" in outcome.err
        assert failure.hint is None or failure.hint in outcome.err
    if isinstance(failure, OSError) and not isinstance(failure, BrokenPipeError):
        assert "file: " in outcome.err


def test_with_json_an_error_is_the_one_document(cli: RunCli) -> None:
    outcome = cli("show", "/no/such/folder", "--json")
    document = json.loads(outcome.out)
    assert outcome.code == 3
    assert document["error"]["kind"] == "ModelFileError"
    assert document["error"]["message"] in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--tempratur", "1"], "No such option: --tempratur"),
        (["show"], "Missing argument 'DIR'"),
        (["eval", "ppl", "--text", "/no/such/file"], "'/no/such/file' does not exist"),
    ],
)
def test_with_json_a_usage_error_is_the_one_document(cli: RunCli, arguments: list[str], message: str) -> None:
    outcome = cli(*arguments, "--json")
    error = json.loads(outcome.out)["error"]
    assert (outcome.code, error["kind"], error["exit_code"]) == (2, "UsageError", 2)
    assert message in error["message"]
    assert error["message"] in outcome.err
    assert outcome.err.startswith("Usage: ")


def test_with_json_a_variable_of_the_wrong_kind_is_the_one_document(
    cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIXQ_CONTEXT", "abc")
    outcome = cli("run", "-p", "hi", "--json")
    assert outcome.code == 2
    assert "valid integer" in json.loads(outcome.out)["error"]["message"]


def shell(line: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a line of sh in which $MIXQ is the command and $1, $2 are `arguments`."""
    line = line.replace("$MIXQ", '"$0" -m mixq')
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = ["sh", "-c", line, sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=buffered, timeout=120, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["written at once", "buffered to the end"])
def test_full_disk_under_standard_output(quantized: Path, flags: tuple[str]) -> None:
    done = shell('exec $MIXQ show "$@" > /dev/full', quantized, *flags)
    assert done.returncode == 5
    assert done.stderr == "Error: No space left on device.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_under_standard_error_keeps_the_exit_code() -> None:
    assert shell("exec $MIXQ show /no/such/folder 2> /dev/full").returncode == 3
    assert shell("exec $MIXQ show 2> /dev/full").returncode == 2


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_empty_ones(quantized: Path, closed: str) -> None:
    shown = shell(f'exec $MIXQ show "$1" {closed}', quantized)
    assert (shown.returncode, shown.stderr) == (0, "")
    refused = shell(f"exec $MIXQ run {closed}")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    assert "2>&-" in closed or "The prompt is empty" in refused.stderr


def test_control_characters_of_a_name_are_spelled_out(cli: RunCli) -> None:
    outcome = cli("show", "\x1b]0;owned\x07")
    assert outcome.code == 3
    assert "\x1b" not in outcome.err
    assert r"\x1b" in outcome.err


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["written at once", "buffered to the end"])
def test_reader_that_goes_away_is_no_failure_to_talk_about(quantized: Path, flags: tuple[str]) -> None:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mixq", "show", str(quantized), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=buffered,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


def test_console_script_and_module_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run([sys.executable, "-m", "mixq", "nonsense"], capture_output=True, check=False)
    assert done.returncode == exit_code(["nonsense"]) == 2
