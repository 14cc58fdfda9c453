"""Nothing in the README that is not so: its tables, links, commands, flags and code."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

import mixq
from mixq.cli.main import app
from mixq.quantize import quantize
from mixq.system import paths
from tests.server.running import running

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
LONG = 40  # rows from which on a table is linked rather than quoted
RESULTS = sorted((ROOT / "tests" / "accept" / "results").glob("*.md"))


@pytest.mark.parametrize("result", RESULTS, ids=lambda path: path.stem)
def test_measured_tables_are_quoted_as_they_were_written(result: Path) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", result.read_text(), re.MULTILINE)
    assert tables
    for table in tables:
        if table.count("\n") > LONG:
            assert f"(tests/accept/results/{result.name})" in README, f"{result.name} is long: link to it"
            continue
        assert table in README, f"{result.name} was measured again: copy its tables into the README"


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def commands() -> list[str]:
    """Every `mixq ...` line of the README's blocks and inline code, without what the shell adds."""
    lines = re.findall(r"^\$ (mixq .*)$", README, re.MULTILINE)
    inline = re.findall(r"`(mixq [a-z][^`]*)`", README)
    return sorted({re.split(r" (?:&&|\||<|>) ", line)[0] for line in lines + inline})


@pytest.mark.parametrize("line", commands())
def test_commands_and_flags_exist(line: str) -> None:
    command = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for word in words:
        if word.startswith("-") and len(word) > 1:
            assert word.split("=")[0] in known, f"{line}: {word}"


def test_every_command_is_in_the_readme() -> None:
    names = typer.main.get_command(app).commands
    for name in names:
        assert f"mixq {name}" in README, name


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run_script(code: str, folder: Path, **environment: str) -> str:
    """Run a script of the README; return what it prints."""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_python_examples_run(mixq_home: Path, tmp_path: Path) -> None:
    """All but those that need a server."""
    quantize(paths.demo_source(), paths.store() / "mixtral-nl4")
    said = [run_script(code, tmp_path, MIXQ_HOME=str(mixq_home)) for code in python_blocks() if "127.0.0.1" not in code]
    assert len(said) == 2
    assert any("= 20" in text for text in said)
    assert any(text.startswith("Hello my name is") for text in said)


def test_scripts_for_a_server_run(tmp_path: Path) -> None:
    """Mistral's client, with the address changed: a chat, then the same streamed."""
    [code] = [code for code in python_blocks() if "127.0.0.1" in code]
    with running(mixq.load()) as server:
        said = run_script(code.replace("http://127.0.0.1:8080", server.url), tmp_path)
    first, second = said.rstrip().rsplit("\n", 1) if "\n" in said.rstrip() else ("", said)
    assert first.strip()
    assert second.strip()
