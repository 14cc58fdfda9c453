"""The quality of nl4 and llama.cpp's formats per bit, on the demo model; and whether exported files agree.

llama.cpp runs in an interpreter of its own that has llama-cpp-python: the one that MIXQ_LLAMA_PYTHON names, else this.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import mixq
from mixq.formats.architecture import parameters
from mixq.formats.packed import PackedLinear
from mixq.models.world import questions
from mixq.quantize import quantize
from mixq.quantize.export.gguf_file import GgufExport
from mixq.quantize.export.gguf_layout import plan
from mixq.quantize.sources.open import open_source
from mixq.system import paths
from tests.accept.tables import markdown, write
from tests.accept.test_demo_model import COUNT, SEED

pytestmark = pytest.mark.accept

SCRIPT = Path(__file__).parents[1] / "bench" / "llama_cpp_logits.py"
LLAMA_PYTHON = os.environ.get("MIXQ_LLAMA_PYTHON", sys.executable)
LLAMA_TYPES = {"Q4_0": 2, "IQ4_XS": 30, "Q4_K": 14, "Q8_0": 7}
MIXQ_MIXES = {f"nl4, groups of {g}": f"nl4:{g}" for g in (64, 32, 16)} | {"w4, groups of 32": "w4:32"}
EXPORTED = "llama.cpp Q4_0, exported by mixq"
BETTER = (
    ("mixq nl4, groups of 32", "llama.cpp IQ4_XS"),
    ("mixq nl4, groups of 32", "llama.cpp Q4_0"),
    ("mixq nl4, groups of 16", "llama.cpp Q4_K"),
)
"""What must lose less than what: in the weights and over the answers; over every position no more, within the noise."""

ROUNDING = {"bf16": 0.01, "q8_0": 0.03, "q4_0": 0.03}
"""Relative L2 distance of logits that llama.cpp's own rounding (bfloat16 or 8-bit activations) may make."""

Sequences = list[tuple[list[int], int]]
Figure = tuple[float, float]
"""A mean and its standard error."""


def llama(*arguments: object) -> None:
    command = [LLAMA_PYTHON, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def of_llama(path: Path, sequences: Sequences) -> Tensor:
    (path.parent / "tokens.json").write_text(json.dumps(sequences))
    llama("logprobs", path, path.parent / "tokens.json", path.with_suffix(".npy"))
    return torch.from_numpy(np.load(path.with_suffix(".npy")))


def of_mixq(path: Path, sequences: Sequences, *, exact: bool = False) -> Tensor:
    model = mixq.load(path, context=1024, exact=exact)
    return torch.cat([model.forward(ids)[first:].float().log_softmax(-1) for ids, first in sequences])


def divergence(reference: Tensor, found: Tensor) -> Tensor:
    """Return KL(reference || found) at each position, in nats."""
    expected = reference.double()
    return (expected.exp() * (expected - found.double())).sum(-1)


def figure(values: Tensor) -> Figure:
    """Return the mean and its standard error."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def centred(logprobs: Tensor) -> Tensor:
    """Return logits with the constant that log_softmax leaves open taken out."""
    return logprobs - logprobs.mean(-1, keepdim=True)


def gguf_bits(path: Path) -> float:
    """Return the bits a weight of the linear layers takes, which are all matrices but embedding and routers."""
    linears = [t for t in gguf.GGUFReader(path).tensors if len(t.shape) > 1 and "ffn_gate_inp" not in t.name]
    linears = [tensor for tensor in linears if tensor.name != "token_embd.weight"]
    return 8 * sum(int(t.n_bytes) for t in linears) / sum(int(t.n_elements) for t in linears)


def mixq_bits(path: Path) -> float:
    model = mixq.load(path, context=64)
    linears = [model.folder.linear(p.module) for p in parameters(model.folder.config) if p.quantizable]
    assert all(isinstance(linear, PackedLinear) for linear in linears)
    return 8 * sum(linear.nbytes for linear in linears) / sum(int(np.prod(linear.shape)) for linear in linears)


def float32_folder(weights: dict[str, Tensor], path: Path) -> Path:
    """Write weights as a folder of float32, so that two formats meet in one arithmetic."""
    path.mkdir()
    save_file({name: tensor.float().contiguous() for name, tensor in weights.items()}, path / "model.safetensors")
    config = json.loads((paths.demo_source() / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    return path


def gguf_weights(path: Path) -> dict[str, Tensor]:
    """Return a file's weights in Hugging Face's names and order of rows."""
    source = open_source(paths.demo_source())
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    heads = {"q": source.config.num_attention_heads, "k": source.config.num_key_value_heads}
    weights = {}
    for tensor in plan(source, "bf16")[0]:
        on_disk = stored[tensor.name]
        values = torch.from_numpy(gguf.quants.dequantize(on_disk.data, on_disk.tensor_type).copy())
        parts = values.reshape(len(tensor.parameters), *tensor.parameters[0].shape).unbind()
        for parameter, own in zip(tensor.parameters, parts, strict=True):
            if parameter.role in heads:
                own = own.view(heads[parameter.role], -1, 2, own.shape[-1]).transpose(1, 2).reshape(own.shape)
            weights[parameter.name] = own.clone()
    return weights


def mixq_weights(path: Path) -> dict[str, Tensor]:
    source = open_source(path, mixq_folders=True)
    return {parameter.name: source.tensor(parameter.name) for parameter in parameters(source.config)}


def squared_error(weights: dict[str, Tensor]) -> float:
    """Return the squared error of the Linears' weights, relative to each linear layer's own, in the mean over
    weights."""
    source = open_source(paths.demo_source())
    linears = [parameter for parameter in parameters(source.config) if parameter.quantizable]
    errors = 0.0
    for linear in linears:
        expected = source.tensor(linear.name).double()
        error = (weights[linear.name].double() - expected).square().sum() / expected.square().sum()
        errors += float(error) * linear.numel
    return errors / sum(linear.numel for linear in linears)


@pytest.fixture(scope="module", autouse=True)
def _llama_cpp() -> None:
    probe = subprocess.run([LLAMA_PYTHON, "-c", "import llama_cpp, numpy"], check=False, capture_output=True)
    if probe.returncode:
        pytest.skip(f"no llama-cpp-python in {Path(LLAMA_PYTHON).name}; name an interpreter: MIXQ_LLAMA_PYTHON")


@pytest.fixture(scope="module")
def sequences() -> Sequences:
    """Right answers to the questions, each with the place of the first logits that predict the answer."""
    model = mixq.load(paths.demo_source(), context=64)
    found = []
    for turn in questions(COUNT, SEED):
        prompt = model.encode_chat([{"role": "user", "content": turn.user}])
        found.append(([*prompt, *model.tokenizer.encode(turn.assistant)], len(prompt) - 1))
    return found


def test_peers_quality(sequences: Sequences, tmp_path: Path) -> None:
    source = paths.demo_source()
    bf16_file = tmp_path / "bf16.gguf"
    GgufExport(open_source(source), bf16_file, "bf16").run()
    whole = [(ids, 0) for ids, _ in sequences]
    answers = torch.cat([torch.arange(len(ids)) >= first for ids, first in sequences])
    llama_reference, mixq_reference = of_llama(bf16_file, whole), of_mixq(source, whole)
    exact_reference = of_mixq(source, whole, exact=True)
    bits: dict[str, float] = {}
    errors: dict[str, float] = {}
    own: dict[str, Tensor] = {}
    of_weights: dict[str, Tensor] = {}

    def add(name: str, size: float, kl: Tensor, weights: dict[str, Tensor]) -> None:
        dense = float32_folder(weights, tmp_path / f"dense-{len(bits)}")
        bits[name], own[name], errors[name] = size, kl, squared_error(weights)
        of_weights[name] = divergence(exact_reference, of_mixq(dense, whole, exact=True))

    files = [(f"llama.cpp {name}", tmp_path / f"{name}.gguf") for name in LLAMA_TYPES]
    for (_, path), file_type in zip(files, LLAMA_TYPES.values(), strict=True):
        llama("quantize", bf16_file, path, file_type)
    files.append((EXPORTED, tmp_path / "exported.gguf"))
    GgufExport(open_source(source), tmp_path / "exported.gguf", "q4_0").run()
    for name, path in files:
        add(name, gguf_bits(path), divergence(llama_reference, of_llama(path, whole)), gguf_weights(path))
    for name, scheme in MIXQ_MIXES.items():
        out = tmp_path / scheme.replace(":", "-")
        quantize(source, out, mix=f"experts={scheme},attention={scheme},lm_head={scheme}")
        add(f"mixq {name}", mixq_bits(out), divergence(mixq_reference, of_mixq(out, whole)), mixq_weights(out))

    columns = [
        {name: figure(kl[answers]) for name, kl in own.items()},
        {name: figure(kl[answers]) for name, kl in of_weights.items()},
        {name: figure(kl) for name, kl in own.items()},
        {name: figure(kl) for name, kl in of_weights.items()},
    ]
    header = ["format", "bits/weight", "squared error", "answers", "answers, weights alone", "every position"]
    header.append("every position, weights alone")
    rows = [
        [name, f"{bits[name]:.2f}", f"{1000 * errors[name]:.2f}", *(_shown(column[name]) for column in columns)]
        for name in bits
    ]
    difference = {pair: figure(of_weights[pair[0]] - of_weights[pair[1]]) for pair in BETTER}
    pairs = [[*pair, _shown(found)] for pair, found in difference.items()]
    how = (
        "The demo model, every linear layer in one format (embedding, routers and norms are not quantized). Squared "
        "error of the weights, relative, in 1000ths. Mean KL to bf16 in 1000ths of a nat a token, ± its standard "
        f"error, over {COUNT} held-out questions with right answers: the {int(answers.sum()):,} tokens of the "
        f"answers, and all {len(answers):,} positions. KL is measured twice: with each program's own arithmetic, "
        "against the same program's bf16 (llama.cpp rounds activations to 8 bits); and with the dequantized weights "
        "of both in mixq's float32 arithmetic. The mean depends on few tokens with a large KL: where a difference is "
        "within its standard error, the formats cannot be told apart. Made by `make accept` with MIXQ_LLAMA_PYTHON "
        "naming an interpreter that has llama-cpp-python."
    )
    differences = markdown(["format", "compared with", "KL difference at every position, weights alone"], pairs)
    write("peers_quality", "Quality of formats, mixq and llama.cpp", how, markdown(header, rows), differences)
    for better, worse in BETTER:
        assert errors[better] < errors[worse], (better, worse)
        for column in columns[:2]:
            assert column[better][0] < column[worse][0], (better, worse)
        mean, standard_error = difference[better, worse]
        assert mean < 2 * standard_error, (better, worse)


def _shown(figure: Figure) -> str:
    return f"{1000 * figure[0]:.3f} ± {1000 * figure[1]:.3f}"


@pytest.mark.parametrize("type", list(ROUNDING))
def test_exported_file_gives_the_logits_of_its_weights(type: str, sequences: Sequences, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    GgufExport(open_source(paths.demo_source()), path, type).run()
    some = sequences[:50]
    dense = float32_folder(gguf_weights(path), tmp_path / "dense")
    theirs, ours = centred(of_llama(path, some)), centred(of_mixq(dense, some, exact=True))
    distance = float((theirs - ours).norm() / ours.norm())
    print(f"{type}: relative L2 distance of logits {distance:.5f}")
    assert distance < ROUNDING[type]
