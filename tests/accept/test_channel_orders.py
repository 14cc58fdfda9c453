"""nl4 and llama.cpp's types, averaged over orders of the model's channels so that chance cancels.

A model whose hidden channels, and each expert's inner ones, stand in another order is the same function, but its groups
of weights are others: each order is another throw of the dice of rounding. Means over orders tell apart what a single
order cannot. Weights alone: all in mixq's float32 arithmetic.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixq.models.world import questions
from mixq.quantize import quantize
from mixq.quantize.export.gguf_file import GgufExport
from mixq.quantize.sources.gguf import GgufSource
from mixq.quantize.sources.open import open_source
from mixq.system import paths
from tests.accept import test_peers_quality as peers
from tests.accept.tables import markdown, write
from tests.accept.test_demo_model import SEED, calibration_text

pytestmark = pytest.mark.accept
_llama_cpp = peers._llama_cpp
ORDERS, COUNT = 8, 120
LLAMA = ("Q4_0", "IQ4_XS", "Q4_K")
MIXES = {"mixq nl4, groups of 32": "nl4:32", "mixq nl4, groups of 16": "nl4:16"}
CALIBRATED = "mixq nl4, groups of 32, calibrated"
PAIRS = (
    ("mixq nl4, groups of 32", "llama.cpp IQ4_XS"),
    ("mixq nl4, groups of 32", "llama.cpp Q4_0"),
    ("mixq nl4, groups of 16", "llama.cpp Q4_K"),
    (CALIBRATED, "mixq nl4, groups of 32"),
)


def reordered(tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Return the same model with its channels in another order."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randperm(tensors["model.norm.weight"].shape[0], generator=generator)
    inner: dict[str, Tensor] = {}
    made = {}
    for name, tensor in sorted(tensors.items()):
        if ".experts." in name:
            prefix, matrix = name.removesuffix(".weight").rsplit(".", 1)
            F = tensor.shape[1 if matrix == "w2" else 0]
            order = inner.setdefault(prefix, torch.randperm(F, generator=generator))
            made[name] = tensor[hidden][:, order] if matrix == "w2" else tensor[order][:, hidden]
        elif tensor.ndim == 1 or ".o_proj." in name:
            made[name] = tensor[hidden]
        else:
            made[name] = tensor[:, hidden]
    return {name: tensor.contiguous() for name, tensor in made.items()}


def test_channels_in_other_orders(tmp_path: Path) -> None:
    demo = paths.demo_source()
    tensors = load_file(demo / "model.safetensors")
    model = peers.mixq.load(demo, context=64)
    sequences: peers.Sequences = []
    turns = questions(COUNT, SEED)
    text = calibration_text(turns)
    for turn in turns:
        prompt = model.encode_chat([{"role": "user", "content": turn.user}])
        sequences.append(([*prompt, *model.tokenizer.encode(turn.assistant)], 0))
    reference = peers.of_mixq(demo, sequences, exact=True)
    found: dict[str, list[float]] = {}

    def add(name: str, weights: dict[str, Tensor], folder: Path) -> None:
        dense = peers.float32_folder(weights, folder)
        divergence = peers.divergence(reference, peers.of_mixq(dense, sequences, exact=True))
        found.setdefault(name, []).append(1000 * float(divergence.mean()))

    for order in range(ORDERS):
        work = tmp_path / str(order)
        source = work / "source"
        shutil.copytree(demo, source)
        save_file(reordered(tensors, order), source / "model.safetensors")
        same = peers.divergence(reference, peers.of_mixq(source, sequences, exact=True))
        assert float(same.mean()) < 1e-7  # it is the same function
        GgufExport(open_source(source), work / "bf16.gguf", "bf16").run()
        for type in LLAMA:
            path = work / f"{type}.gguf"
            peers.llama("quantize", work / "bf16.gguf", path, peers.LLAMA_TYPES[type])
            opened = GgufSource(path)
            weights = {name: opened.tensor(name) for name in tensors}
            add(f"llama.cpp {type}", weights, work / f"dense-{type}")
        for name, scheme in MIXES.items():
            for calibrate in (None, text) if scheme == "nl4:32" else (None,):
                out = work / f"{scheme.replace(':', '-')}-{calibrate is not None}"
                mix = f"experts={scheme},attention={scheme},lm_head={scheme}"
                quantize(source, out, mix=mix, calibrate=calibrate)
                add(CALIBRATED if calibrate else name, peers.mixq_weights(out), out.with_name(f"dense-{out.name}"))
        shutil.rmtree(work)
        print(order, json.dumps({name: round(values[-1], 3) for name, values in found.items()}), flush=True)

    rows = [[name, _shown(torch.tensor(values))] for name, values in found.items()]
    differences = {pair: torch.tensor(found[pair[0]]) - torch.tensor(found[pair[1]]) for pair in PAIRS}
    how = (
        f"The demo model with its channels permuted in {ORDERS} ways: it computes the same function each time, but "
        "other weights share a group. Mean KL to bf16 of the dequantized weights, in 1000ths of a nat a token, over "
        f"{COUNT} questions with right answers, ± the standard error over orders; calibrated on other questions. Made "
        "by `make accept` with MIXQ_LLAMA_PYTHON naming an interpreter that has llama-cpp-python."
    )
    pairs = [[*pair, _shown(values)] for pair, values in differences.items()]
    tables = (
        markdown(["format", "KL, mean over orders"], rows),
        markdown(["format", "compared with", "KL difference in the same order"], pairs),
    )
    write("channel_orders", "nl4 and llama.cpp over orders of the channels", how, *tables)
    for pair, values in differences.items():
        assert float(values.mean()) < 0, pair


def _shown(values: Tensor) -> str:
    return f"{float(values.mean()):.3f} ± {float(values.std()) / len(values) ** 0.5:.3f}"
