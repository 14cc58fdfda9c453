"""The notebook is one, is committed without outputs, runs from top to bottom, and finds what its text says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from mixq.system import paths

NOTEBOOK = paths.demo_source().parent / "experiments.ipynb"

# Cells one after the other, as a notebook's kernel runs them; then what they found.
RUN = """
import json, sys
found = {}
for cell in json.load(open(sys.argv[1], encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {cell['id']}", "exec"), found)
page = found["model"]._repr_html_() + found["on_gpu"]._repr_html_()
kept = ("french", "costs", "languages", "alone", "whole", "quality", "rates", "hit_rates", "speeds", "by_memory")
found["costs"] = found["costs"].tolist()
json.dump({"page": page, **{name: found[name] for name in kept}}, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def notebook() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the notebook's cells found, run in a process of their own."""
    folder = tmp_path_factory.mktemp("notebook")
    environment = {**os.environ, "MPLBACKEND": "Agg", "MIXQ_HOME": str(folder / "home"), "TMPDIR": str(folder)}
    run = subprocess.run(
        [sys.executable, "-c", RUN, str(NOTEBOOK), str(folder / "found.json")],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert not list(folder.glob("mixq-experiments-*")), "the models it made are still there"
    content: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return content


def test_it_is_a_notebook_of_version_4(notebook: dict[str, Any]) -> None:
    """By the format's schema (nbformat 4.5), of which these are the fields that a notebook must have."""
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"] == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in names)
    for cell in notebook["cells"]:
        fields = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            fields |= {"execution_count", "outputs"}
        assert cell["cell_type"] in ("code", "markdown")
        assert set(cell) == fields
        assert isinstance(cell["metadata"], dict)
        assert all(isinstance(line, str) for line in cell["source"])
        assert all(line.endswith("\n") for line in cell["source"][:-1])


def test_it_is_committed_without_outputs(notebook: dict[str, Any]) -> None:
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_the_french_expert_is_the_one_that_french_misses_most(found: dict[str, Any]) -> None:
    layer, expert = found["french"]["French"]
    assert (layer, expert) == (0, 3)
    french = found["languages"].index("French")
    of_french = [costs[french] for costs in found["costs"]]
    assert of_french.index(max(of_french)) == expert
    assert found["costs"][expert][french] == max(found["costs"][expert])  # and no language misses it more
    assert all(cost > 0 for cost in found["costs"][expert])
    assert all(found["alone"][language] >= found["whole"][language] for language in found["languages"])


def test_four_bits_cost_what_it_says(found: dict[str, Any]) -> None:
    kl = {scheme: divergence for scheme, (divergence, _) in found["quality"].items()}
    right = {scheme: answers for scheme, (_, answers) in found["quality"].items()}
    assert kl["bf16"] == pytest.approx(0, abs=1e-6)
    assert 0 < kl["w8"] < 0.001 < min(kl["nl4"], kl["w4"]) < max(kl["nl4"], kl["w4"]) < 0.01
    assert right["bf16"] >= 50
    assert min(right.values()) >= right["bf16"] - 4


def test_more_gpu_memory_pays(found: dict[str, Any]) -> None:
    rates = list(found["rates"].values())
    assert rates == sorted(rates)
    assert rates[0] < 0.1
    assert rates[-1] == 1.0
    for name, by_slots in found["hit_rates"].items():
        assert by_slots == sorted(by_slots)
        assert all(rate <= best + 1e-9 for rate, best in zip(by_slots, found["hit_rates"]["belady"], strict=True)), name
    assert found["hit_rates"]["Clinging"] != found["hit_rates"]["lru"]
    speeds = found["speeds"]
    assert speeds["cpu-laptop"] < speeds["laptop-8gb"] < speeds["rtx-4090"]
    by_memory = list(found["by_memory"].values())
    assert by_memory[0] < by_memory[-1]


def test_the_models_show_what_lies_where(found: dict[str, Any]) -> None:
    assert "mapped from the disk" in found["page"]
    assert "40 of 40 in slots on sim" in found["page"]
