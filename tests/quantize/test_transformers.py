"""A w4 or w8 folder that `quantize` made opens in transformers and computes what our dequantized weights compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mixq.formats.architecture import parameters
from mixq.formats.folder import ModelFolder
from mixq.formats.packed import PackedLinear
from mixq.quantize.job import quantize
from tests.checkpoints import write_tiny_mistral, write_tiny_mixtral

transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")


def logits_of(path: Path) -> torch.Tensor:
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        return model(torch.tensor([[1, 5, 17, 33, 2, 60, 8, 8, 41, 3]])).logits


def write_dequantized(folder: ModelFolder, path: Path) -> None:
    path.mkdir()
    tensors = {}
    for parameter in parameters(folder.config):
        weight = folder.linear(parameter.module) if parameter.quantizable else folder.tensor(parameter.name)
        dense = weight.dequantize() if isinstance(weight, PackedLinear) else weight
        tensors[parameter.name] = dense.to(torch.bfloat16).clone()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = {key: value for key, value in folder.raw_config.items() if key != "quantization_config"}
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_tiny_mixtral, {"format": "w4"}),
        (write_tiny_mixtral, {"format": "w8", "mix": "o=w4:32"}),
        (write_tiny_mistral, {"format": "w4", "group": 64}),
    ],
)
def test_logits_equal_those_of_the_dequantized_folder(
    write: Callable[..., object], options: dict[str, object], tmp_path: Path
) -> None:
    write(tmp_path / "source", rope="nested")
    quantize(tmp_path / "source", tmp_path / "packed", **options)  # type: ignore[arg-type]
    write_dequantized(ModelFolder.open(tmp_path / "packed"), tmp_path / "dense")
    theirs, ours = logits_of(tmp_path / "packed"), logits_of(tmp_path / "dense")
    assert theirs.float().std() > 0.01
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0)
    assert not torch.equal(theirs, logits_of(tmp_path / "source"))
