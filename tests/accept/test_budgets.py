"""Memory budgets against what the process takes: RAM as the system counts it, GPU memory as the allocator does."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixq.config import RuntimeOptions, format_size
from mixq.formats.folder import ModelFolder
from mixq.measure.speed.write_folder import FolderJob
from mixq.models.presets import PRESETS
from mixq.plan.shares import GPU, RAM, share_out
from mixq.plan.sizes import ModelSizes
from tests.accept.tables import markdown, write

pytestmark = pytest.mark.accept
SETTINGS, SEED = 20, 7
SHAPE = {
    **PRESETS["mixtral-8x7b"],
    "hidden_size": 1536,
    "intermediate_size": 5376,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 8000,
}


def settings(draw: random.Random, folder: Path) -> dict[str, Any]:
    """Return options at random: a model that fits, or fits in part."""
    device = draw.choice(["cpu", "sim"])
    options: dict[str, Any] = {
        "device": device,
        "context": draw.choice([600, 1024, 2048, 4096]),
        "kv": draw.choice(["bf16", "int8"]),
        "sequences": draw.choice([1, 1, 2]),
        "threads": draw.choice([1, 2]),
    }
    sizes = ModelSizes.of_weights(ModelFolder.open(folder), "nl4")
    vram = 8 << 30 if device == "sim" else None
    shares = share_out(sizes, RuntimeOptions(**options), device, None, vram)
    least = shares.total(RAM) - shares.experts_in_ram * sizes.expert + 4 * sizes.expert
    options["ram"] = draw.randrange(least, int(1.05 * shares.total(RAM)))
    if shares.memory is not None:
        fixed = shares.total(GPU) - shares.memory.slots * shares.memory.slot_bytes
        options["vram"] = draw.randrange(fixed, int(1.05 * shares.total(GPU)))
    return options


def test_planned_budgets_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "budget", SHAPE)
    folder = tmp_path / "model"
    FolderJob(folder, "budget", mix="all-nl4", seed=0).run()
    draw, rows, worst = random.Random(SEED), [], 0.0
    for number in range(1, SETTINGS + 1):
        options = settings(draw, folder)
        command = [sys.executable, "-m", "tests.accept.budget_child", str(folder), json.dumps(options)]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found = json.loads(said)
        assert "refused" not in found, (options, found)
        arena = found["vram_peak"] if options["device"] == "sim" else 0
        shares = [(found["peak"] - arena) / options["ram"]]
        shares += [found["vram_peak"] / options["vram"]] if "vram" in options else []
        worst = max(worst, *shares)
        rows.append(
            [
                number,
                options["device"],
                f"{options['context']} x {options['sequences']}, {options['kv']}",
                format_size(options["ram"]),
                f"{shares[0]:.1%}",
                format_size(options["vram"]) if "vram" in options else "",
                f"{shares[1]:.1%}" if "vram" in options else "",
            ]
        )
        print(rows[-1], flush=True)
    write(
        "budgets",
        "Memory budgets: planned and used",
        f"{SETTINGS} random settings (seed {SEED}) of a synthetic Mixtral of whose experts only a part fits into the "
        "memory allowed. The context is filled, and all sequences stay in the KV cache. Peak: the most that the "
        "process used, as a share of --ram and --vram. The simulated GPU's memory counts as GPU memory. Made by `make "
        "accept`.",
        markdown(["", "device", "context, KV", "--ram", "peak", "--vram", "peak"], rows),
    )
    assert worst <= 1.05
