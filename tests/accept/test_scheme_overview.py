"""Every scheme at a glance: bits, Mixtral's size, divergence of the demo model with and without calibrating, speed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import mixq
from mixq.config import ModelConfig, format_size
from mixq.formats.mix import Mix
from mixq.measure.speed.measure import Bench
from mixq.measure.speed.synthetic import synthetic_model
from mixq.measure.speed.workload import Workload
from mixq.models.presets import PRESETS
from mixq.models.world import questions
from mixq.quantize import quantize
from mixq.quantize.layout import all_items, plan_shards
from mixq.quantize.report import sizes_of_items
from mixq.system import paths
from tests.accept.tables import markdown, write
from tests.accept.test_demo_model import COUNT, SEED, calibration_text, divergence

pytestmark = pytest.mark.accept
LAYERS, BANDWIDTH = 4, 60e9

# What to type after `mixq quantize SRC`, the job's settings, and the same as a mix of `mixq bench --synthetic`.
ROWS: list[tuple[str, dict[str, object], str | None]] = [
    ("(default)", {}, "default"),
    ("--group 16", {"group": 16}, "experts=nl4:16"),
    ("--group 64", {"group": 64}, "experts=nl4:64,q=nl4:64,o=nl4:64"),
    ("--mix all-nl4", {"mix": "all-nl4"}, "all-nl4"),
    ("--format w4", {"format": "w4"}, "w4"),
    ("--format w4 --group 128", {"format": "w4", "group": 128}, "experts=w4:128,attention=w8,lm_head=bf16"),
    ("--format w8", {"format": "w8"}, "w8"),
    ("--format nf4", {"format": "nf4"}, None),
]


def share_of_bandwidth(mix: str | None) -> float | None:
    """Return the share of the read bandwidth that decoding reaches with synthetic weights of Mixtral's sizes."""
    if mix is None:
        return None
    bench = Bench(synthetic_model("mixtral-8x7b", layers=LAYERS, mix=mix, seed=0), [Workload(0, 48, 0)], repeats=7)
    for _ in bench.samples():
        pass
    (row,) = bench.rows()
    return row.share_of_limit


def test_schemes_at_a_glance(tmp_path: Path) -> None:
    turns = questions(COUNT, SEED)
    source, text = paths.demo_source(), calibration_text(turns)
    reference = mixq.load(source, context=1024)
    config = ModelConfig.from_dict(PRESETS["mixtral-8x7b"])
    rows, ratios = [], {}
    for i, (flags, settings, mix) in enumerate(ROWS):
        sizes = sizes_of_items(config, all_items(plan_shards(config, Mix.resolve(config, **settings))))  # type: ignore[arg-type]
        kl = {}
        for calibrate in (None, text) if settings.get("format") != "nf4" else (None,):
            out = tmp_path / f"{i}-{calibrate is not None}"
            result = quantize(source, out, calibrate=calibrate, **settings)
            kl[calibrate is not None] = divergence(reference, mixq.load(out, context=1024), turns).mean_kl
        if True in kl:
            ratios[flags] = kl[True] / kl[False]
        share = share_of_bandwidth(mix)
        bits = 8 * result.sizes.nbytes / result.sizes.weights
        rows.append(
            [
                f"`{flags}`",
                f"{8 * sizes.nbytes / sizes.weights:.2f}",
                format_size(sizes.nbytes),
                format_size(sizes.token_bytes),
                f"{share:.0%}" if share else "-",
                f"{share * BANDWIDTH / sizes.token_bytes:.1f}" if share else "-",
                f"{bits:.2f}",
                f"{1000 * kl[False]:.3f}",
                f"{1000 * kl[True]:.3f}" if True in kl else "-",
            ]
        )
    how = (
        "Bits per weight, size and bytes per token are those of the whole of Mixtral 8x7B, unquantized parts "
        f"included. The share of the read bandwidth is measured while decoding {LAYERS} layers and the head with "
        f"random weights; tokens/s are computed from it for {BANDWIDTH / 1e9:.0f} GB/s, as in a laptop with DDR5. Of "
        "the demo model: bits per weight, and mean KL divergence to its bf16 in nats per token, times 1000, over the "
        f"right answers of {COUNT} unseen questions; then KL after `--calibrate` on other questions. Made by `make "
        "accept`."
    )
    header = ["`mixq quantize SRC`", "bits/weight", "Mixtral 8x7B", "read per token", "share of bandwidth", "tokens/s"]
    header += ["demo bits/weight", "demo KL", "calibrated"]
    write("scheme_overview", "All schemes compared", how, markdown(header, rows))
    print(f"KL calibrated / uncalibrated: {ratios}")
    assert ratios["(default)"] < 1
    assert math.exp(sum(map(math.log, ratios.values())) / len(ratios)) < 1, ratios
