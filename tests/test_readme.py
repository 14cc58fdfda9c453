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

from mixq import paths
from mixq.cli.main import app
from mixq.quantize import quantize

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


def test_python_example_runs(mixq_home: Path, tmp_path: Path) -> None:
    quantize(paths.demo_source(), paths.store() / "mixtral-nl4")
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    environment = {**os.environ, "MIXQ_HOME": str(mixq_home)}
    ran = subprocess.run(
        [sys.executable, "-c", code[1]], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "20" in ran.stdout.split("\n")[0]
