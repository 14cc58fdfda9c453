"""The pages are true: their tables, figures, links, commands, flags, outputs and code.

A figure comes from a measured table (tests/accept/results), or is computed here from the model's shape or a constant.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

import mixq
from mixq.cli.main import app
from mixq.config import ModelConfig, format_size
from mixq.engine.host_weights import AT_ONCE, PART, SMALL
from mixq.experts.memory_plan import OWN_SHARE
from mixq.formats.architecture import parameters
from mixq.formats.header import MAX_HEADER_BYTES
from mixq.formats.mix import FORMATS
from mixq.models.presets import PRESETS
from mixq.plan.sizes import ModelSizes
from mixq.quantize import quantize
from mixq.system import paths
from mixq.system.huge_pages import HUGE_PAGE
from tests.accept.tables import PAGE, RESULTS, page
from tests.accept.worst_ratios import with_worst_ratios, worst_ratios
from tests.pages import FOLDERS, README, with_code_table
from tests.server.running import running

ROOT = Path(__file__).parents[1]
PAGES = [
    README,
    ROOT / "models" / "README.md",
    ROOT / "quantize" / "README.md",
    *sorted((ROOT / "mixq").rglob("README.md")),
    PAGE,
]
LINES = 170
RESULT_TEXTS = {path.stem: path.read_text() for path in sorted(RESULTS.glob("*.md"))}
UNITS = r"GB|MB|kB|MiB|GB/s|billion|million|%|positions|tokens/s|weights/s|generations"
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def prose(path: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def computed() -> dict[str, set[str]]:
    """Return the figures of Mixtral's shape, and of constants of the code, by what they say."""
    config = ModelConfig.from_dict(PRESETS["mixtral-8x7b"])
    weights = sum(p.numel for p in parameters(config))
    expert = sum(p.numel for p in parameters(config) if p.layer == 0 and p.expert == 0)
    experts = expert * config.num_hidden_layers * config.num_local_experts
    folders = [ModelSizes.of_format("", name, config) for name in FORMATS]
    return {
        "weights": {f"{weights / 1e9:.1f} billion", f"{expert / 1e6:.1f} million", f"{100 * experts / weights:.1f} %"},
        "unquantized": {format_size(2 * weights), f"{2 * weights / 1e9:.0f} GB"},
        "folders": {format_size(size) for folder in folders for size in (folder.total, folder.token)},
        "positions": {f"{config.max_position_embeddings:,} positions"},
        "bounds": {f"{nbytes >> 20} MiB" for nbytes in (MAX_HEADER_BYTES, HUGE_PAGE, SMALL, AT_ONCE * PART)},
        "shares": {f"{100 * OWN_SHARE:.0f} %"},
    }


def test_the_readme_is_short() -> None:
    assert README.read_text().count("\n") <= LINES


def test_the_page_of_tables_shows_every_result() -> None:
    assert PAGE.read_text() == page(), "make it again: python -m tests.accept.tables"
    for name, text in RESULT_TEXTS.items():
        assert text in PAGE.read_text(), f"{name} belongs to no section of tests/accept/tables.py"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_tables_of_files_are_current(folder: Path) -> None:
    assert (folder / "README.md").read_text() == with_code_table(folder), "make them again: python -m tests.pages"


def test_the_readme_states_the_lowest_ratios_of_all_tables() -> None:
    assert README.read_text() == with_worst_ratios(README.read_text()), "make it again: python -m tests.pages"


@each_page
def test_measured_rows_are_quoted_as_they_were_written(page: Path) -> None:
    """A row of a measured table, shortened by columns perhaps, has that table's figures."""
    results = [cells(line) for text in RESULT_TEXTS.values() for line in text.splitlines() if line.startswith("|")]
    for line in prose(page).replace(worst_ratios(), "").splitlines():
        if not line.startswith("|") or page == PAGE:
            continue
        first, *rest = cells(line)
        figures = {cell for cell in rest if re.fullmatch(rf"\d+([.,]\d+)*( ?({UNITS}))?", cell)}
        sources = [row for row in results if row[0] == first]
        if figures and page != ROOT / "models" / "README.md":
            assert any(figures <= set(row) for row in sources), f"{line}: no result has this row"


@pytest.mark.parametrize("path", [path for path in PAGES if path != PAGE and path.parent.name != "models"], ids=str)
def test_every_figure_has_a_source(path: Path) -> None:
    held = set().union(*computed().values())
    text = "\n".join(line for line in prose(path).splitlines() if not line.startswith("|")).replace("\n", " ")
    for figure in re.findall(rf"\d+(?:[.,]\d+)* (?:{UNITS})(?!\w)", text):
        measured = re.compile(rf"(?<![\d.,]){re.escape(figure)}")
        assert figure in held or any(measured.search(result) for result in RESULT_TEXTS.values()), figure


def slug(heading: str) -> str:
    """Return the anchor that Markdown viewers give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", "")).replace(" ", "-")


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", re.sub(r"\s+", " ", prose(page))):
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), target


def commands(path: Path) -> list[str]:
    """Return every `mixq ...` line of a page's blocks and inline code, without what the shell adds."""
    text = path.read_text()
    blocks = "\n".join(re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL))
    lines = re.findall(r"^(?:\$ )?(mixq [a-z].*)$", blocks, re.MULTILINE)
    inline = re.findall(r"`(mixq [a-z][^`]*)`", prose(path))
    found = [part for line in lines + inline for part in re.split(r" && ", line) if part.startswith("mixq ")]
    return sorted({re.split(r" (?:\||<|>|#) ", line)[0].rstrip() for line in found})


@pytest.mark.parametrize("line", sorted({line for path in PAGES for line in commands(path)}))
def test_commands_and_flags_exist(line: str) -> None:
    command = typer.main.get_command(app)
    words = shlex.split(line, comments=True)[1:]
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, line
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for word in words:
        if word.startswith("-") and len(word) > 1:
            assert word.split("=")[0] in known, f"{line}: {word}"


def test_every_command_is_in_the_readme() -> None:
    for name in typer.main.get_command(app).commands:
        assert f"mixq {name}" in README.read_text(), name


@each_page
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def console(path: Path) -> dict[str, str]:
    """Return the output shown for each command of a page's console blocks."""
    found = {}
    for block in re.findall(r"```console\n(.*?)```", path.read_text(), re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found[command] = output
    return found


def test_the_plan_is_printed_as_shown() -> None:
    command = "mixq plan mixtral-8x7b --hardware laptop-8gb"
    ran = CliRunner().invoke(app, shlex.split(command)[1:])
    assert ran.exit_code == 0, ran.output
    printed = "".join(line.rstrip() + "\n" for line in ran.stdout.splitlines())
    assert console(ROOT / "mixq" / "plan" / "README.md")[command] == printed
    assert printed.endswith(console(README)[command])


def test_a_budget_that_is_too_small_is_refused_as_shown(tmp_path: Path) -> None:
    quantize(paths.demo_source(), tmp_path / "OUT")
    shown = console(ROOT / "mixq" / "experts" / "README.md")
    [refused] = [command for command in shown if "--vram 10MB" in command]
    said = run(["-m", "mixq", *shlex.split(refused)[1:]], tmp_path, expect=4)
    assert shown[refused] == said


def python_blocks() -> list[str]:
    return [code for path in PAGES for code in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)]


def run(arguments: list[str], folder: Path, *, expect: int = 0, **environment: str) -> str:
    """Run Python in a folder; return what it prints, errors last."""
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == expect, ran.stderr
    return ran.stdout + (ran.stderr if expect else "")


def test_python_examples_run(mixq_home: Path, tmp_path: Path) -> None:
    """All but those that need a server."""
    quantize(paths.demo_source(), paths.store() / "mixtral-nl4")
    said = [
        run(["-c", code], tmp_path, MIXQ_HOME=str(mixq_home)) for code in python_blocks() if "127.0.0.1" not in code
    ]
    assert len(said) == 3
    assert sum("= 20" in text for text in said) == 2
    assert any(text.startswith("Hello my name is") for text in said)


def test_scripts_for_a_server_run(tmp_path: Path) -> None:
    """Mistral's client, with another address: a chat, then the same streamed."""
    [code] = [code for code in python_blocks() if "127.0.0.1" in code]
    with running(mixq.load()) as server:
        said = run(["-c", code.replace("http://127.0.0.1:8080", server.url)], tmp_path)
    first, second = said.rstrip().rsplit("\n", 1) if "\n" in said.rstrip() else ("", said)
    assert first.strip()
    assert second.strip()
