"""What `gpu.py` found, as Markdown: the machine, what is wrong, and tables. Knows neither torch nor mixq."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.accept.tables import markdown

MEMORY = ("promised", "account_peak", "driver_used", "driver_besides_torch")


def report(found: Mapping[str, Any]) -> str:
    """Return the whole page; of a section that has not run there is nothing."""
    sections = found["sections"]
    parts = ["# mixq on a GPU\n"]
    if found["arguments"]["device"] == "sim":
        parts.append("Made without a GPU: the figures try the script, and say nothing.\n")
    for name, make in MAKERS.items():
        if name in sections:
            parts += [f"## {name}\n", *make(sections[name])]
            parts += [f"- error: `{' '.join(error.split())[-400:]}`\n" for error in sections[name]["errors"]]
    return "\n".join(parts)


def _machine(section: Mapping[str, Any]) -> list[str]:
    card, host = section.get("card") or {}, section.get("host") or {}
    lines = [
        f"{card.get('name', 'no card')}, driver {card.get('driver')}, CUDA {card.get('cuda')}, "
        f"link {card.get('link')}; {host.get('cpu')}, {host.get('threads')} threads of {host.get('cores')}; "
        + ", ".join(f"{name} {version}" for name, version in (section.get("versions") or {}).items())
        + "\n"
    ]
    names = {
        "gpu_read": "GPU memory, read",
        "ram_read": "RAM, read by the CPU",
        "copy": "RAM to GPU, registered, chunks of 4 MiB",
        "copy_in_one": "RAM to GPU, registered, in one",
        "pageable_copy": "RAM to GPU, not registered",
        "copy_while_cpu_reads": "RAM to GPU while the CPU reads",
        "ram_read_while_copying": "RAM, read by the CPU during copies",
        "register": "registering memory",
    }
    rows = [
        [title, f"{section[f'{name}_bytes_per_second'] / 1e9:.1f}"]
        for name, title in names.items()
        if section.get(f"{name}_bytes_per_second")
    ]
    if "row_to_gpu_and_back_seconds" in section:
        rows.append(["a row to the GPU and back, us", f"{section['row_to_gpu_and_back_seconds'] * 1e6:.0f}"])
    return [*lines, markdown(["", "GB/s"], rows)]


def _operations(section: Mapping[str, Any]) -> list[str]:
    cases = section.get("cases", [])
    ran = [case for case in cases if not case.get("left_out")]
    wrong = [case for case in ran if not case["right"]]
    text = f"{len(ran)} comparisons, {len(wrong)} wrong, {len(cases) - len(ran)} cases left out for want of time.\n"
    rows = [[c["what"], c["tokens"], c.get("error", c.get("same_bits")), c.get("allowed", "")] for c in wrong]
    return [text, markdown(["wrong", "tokens", "found", "allowed"], rows)] if wrong else [text]


def _demo(section: Mapping[str, Any]) -> list[str]:
    logits = [row for row in section.get("logits", []) if not row.get("left_out")]
    worst = max((row["relative_l2"] for row in logits), default=0.0)
    texts = section.get("texts", [])
    text = (
        f"Logits: {len(logits)} combinations, relative L2 to the CPU at most {worst:.1e}. "
        f"Texts: {sum(t['same'] for t in texts)} of {len(texts)} agree up to a near-tie.\n"
    )
    rows = [
        [_gb(row["promised_bytes"]), row["slots"], _gb(row["account_peak_bytes"]), _gb(row.get("driver_used_bytes"))]
        for row in section.get("promises", [])
    ]
    return [text, markdown(["promised, GB", "slots", "counted, GB", "by the driver, GB"], rows)]


def _speed(section: Mapping[str, Any]) -> list[str]:
    rows = []
    for row in section.get("rows", []):
        known = ("what", "seconds", "bytes_per_second", "share_of_bandwidth")
        details = ", ".join(f"{key} {value}" for key, value in row.items() if key not in known)
        rows.append([row["what"], details, f"{row['seconds'] * 1e6:.1f}", _share(row.get("share_of_bandwidth"))])
    return [markdown(["kernel", "", "us", "of the read bandwidth"], rows)]


def _model(section: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            row["vram"],
            row["miss"],
            row.get("routing", ""),
            f"{row['decode_tokens_per_second']:.1f}",
            _share(row.get("hit_rate")),
            _share(row.get("share_of_limit")),
            row.get("limited_by", ""),
            f"{row['prefill_tokens_per_second']:.0f}" if "prefill_tokens_per_second" in row else "",
        ]
        for row in section.get("rows", [])
    ]
    header = ["GPU memory", "misses", "routing", "decode, tok/s", "hits", "of the limit", "bound by", "prefill, tok/s"]
    memory = [
        [name, b["slots"], *[_gb(b.get(f"{key}_bytes")) for key in MEMORY], f"{b['seconds_to_load']:.1f}"]
        for name, b in section.get("budgets", {}).items()
    ]
    promise = ["", "slots", "promised, GB", "counted, GB", "by the driver, GB", "besides torch, GB", "loaded in, s"]
    tables = [markdown(header, rows), markdown(promise, memory)]
    for name in ("profile", "profile_resident"):
        tables += _profile(name, section[name]) if "top" in section.get(name, {}) else []
    return tables


def _profile(name: str, profile: Mapping[str, Any]) -> list[str]:
    what = "everything on the GPU" if name == "profile_resident" else "12 GB"
    text = (
        f"A decode step with {what}: {profile['step_seconds'] * 1e3:.1f} ms, GPU busy "
        f"{profile['gpu_busy_seconds'] * 1e3:.1f} ms, {profile['kernels_per_layer']:.1f} kernels and "
        f"{profile['copies_per_layer']:.1f} copies a layer.\n"
    )
    rows: Sequence[Sequence[object]] = [
        [f"`{row['kernel']}`", row["calls"], f"{row['microseconds']:.0f}"] for row in profile["top"]
    ]
    return [text, markdown(["kernel", "calls", "us"], rows)]


def _transformers(section: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            name,
            f"{row['decode_tokens_per_second']:.2f}",
            f"{row['prefill_tokens_per_second']:.1f}",
            row.get("offload", f"--vram {row.get('vram')}"),
        ]
        for name, row in section.items()
        if isinstance(row, dict) and "decode_tokens_per_second" in row
    ]
    return [markdown(["4 layers, bf16", "decode, tok/s", "prefill, tok/s", ""], rows)]


def _gb(nbytes: float | None) -> str:
    return "" if nbytes is None else f"{nbytes / 1e9:.2f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


MAKERS = {
    "machine": _machine,
    "operations": _operations,
    "demo": _demo,
    "speed": _speed,
    "model": _model,
    "transformers": _transformers,
}
