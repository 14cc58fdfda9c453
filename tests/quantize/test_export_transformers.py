"""An exported compressed-tensors folder computes, in transformers, what its dequantized weights compute.

In two versions of compressed-tensors: the newest, and the one that vLLM pins (`make` installs it beside the rest).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mixq.quantize import quantize
from mixq.quantize.export.folders import compressed_tensors_job
from mixq.quantize.job import Job
from mixq.quantize.sources.open import open_source
from tests.checkpoints import write_tiny_mixtral

pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

OLDER = Path(sys.prefix) / "compressed-tensors-0.17"
PROGRAM = """
import sys
import compressed_tensors, torch, transformers
from safetensors.torch import save_file
logits = {}
for name in ("packed", "dense"):
    model = transformers.AutoModelForCausalLM.from_pretrained(f"{sys.argv[1]}/{name}", dtype=torch.bfloat16).eval()
    with torch.no_grad():
        logits[name] = model(torch.tensor([[1, 5, 17, 33, 2, 60, 8, 8, 41, 3]])).logits
save_file(logits, f"{sys.argv[1]}/logits.safetensors")
print(compressed_tensors.__file__)
print(compressed_tensors.__version__)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A default nl4 folder exported, as `packed`, and what the export holds, unquantized, as `dense`."""
    path = tmp_path_factory.mktemp("exported")
    write_tiny_mixtral(path / "source", tokenizer=False)
    quantize(path / "source", path / "nl4")
    for _ in compressed_tensors_job(open_source(path / "nl4", mixq_folders=True), path / "packed").run():
        pass
    for _ in Job(open_source(path / "packed", mixq_folders=True), path / "dense", format="bf16").run():
        pass
    assert "quantization_config" in json.loads((path / "packed" / "config.json").read_text())
    assert "quantization_config" not in json.loads((path / "dense" / "config.json").read_text())
    return path


@pytest.mark.parametrize("version", ["installed", "0.17"])
def test_logits_equal_in_two_versions_of_compressed_tensors(version: str, exported: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if version != "installed":
        if not (OLDER / "compressed_tensors").is_dir():
            pytest.skip(f"{OLDER.name} is not installed beside this interpreter; make test does")
        environment["PYTHONPATH"] = str(OLDER)
    command = [sys.executable, "-c", PROGRAM, str(exported)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    place, found = done.stdout.split()[-2:]
    assert Path(place).is_relative_to(OLDER) == (version != "installed")
    assert version == "installed" or found.startswith("0.17.")
    logits = load_file(exported / "logits.safetensors")
    assert logits["dense"].float().std() > 0.01
    torch.testing.assert_close(logits["packed"], logits["dense"], rtol=0, atol=0)
