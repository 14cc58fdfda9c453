"""Four layers of Mixtral in bfloat16: mixq beside transformers, whose layers are copied to the GPU one after the other.

Contract: both have synthetic weights and the same GPU memory to use. transformers offloads by accelerate's
`cpu_offload` where that is installed; else by hooks that do the same: a layer's weights go to the GPU before it runs,
and the host's copy is what stays. Sizes count; what either says means nothing.
"""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import torch
from torch import Tensor, nn

from mixq.config import RuntimeOptions
from mixq.engine.model import Model
from mixq.measure.speed.synthetic import SyntheticWeights
from mixq.model.attention import Chunk
from mixq.models.presets import PRESETS
from tests.bench.gpu_demo import close
from tests.bench.gpu_model import TINY
from tests.bench.gpu_section import Session

LAYERS = 4
VRAM = "5GB"
GEN, PROMPT = 16, 128


def run(session: Session) -> None:
    """Compare."""
    torch.set_grad_enabled(False)
    shape = {**(TINY if session.quick else PRESETS["mixtral-8x7b"])}
    layers = 2 if session.quick else LAYERS
    gen, prompt = (3, 12) if session.quick else (GEN, PROMPT)
    with session.trying("transformers"):
        session.found["transformers"] = _transformers(session, {**shape, "num_hidden_layers": layers}, gen, prompt)
    session.save()
    with session.trying("mixq"):
        weights = SyntheticWeights.make(shape, layers=layers, mix="bf16")
        for miss in ("auto", "fetch"):
            session.found[f"mixq, {miss}"] = _mixq(session, weights, miss, gen, prompt)


def _mixq(session: Session, weights: SyntheticWeights, miss: str, gen: int, prompt: int) -> dict[str, Any]:
    vram = "4MB" if session.quick else VRAM
    options = RuntimeOptions.from_kwargs(device=session.device, vram=vram, context=max(256, prompt + gen), miss=miss)
    model = Model(weights, options)
    cache = model.new_kv_cache()

    def forward(ids: Tensor) -> None:
        model.network.forward([Chunk(ids, cache)])

    found = _times(session, forward, lambda: cache.truncate(0), model.config.vocab_size, gen, prompt)
    found["vram"] = vram
    session.say(f"mixq, {miss}: {found}")
    close(model)
    return found


def _transformers(session: Session, raw: dict[str, Any], gen: int, prompt: int) -> dict[str, Any]:
    from transformers import DynamicCache, MixtralConfig, MixtralForCausalLM

    fields = {k: v for k, v in raw.items() if k not in ("architectures", "model_type", "torch_dtype")}
    config = MixtralConfig(**fields, dtype=torch.bfloat16)
    with torch.device("meta"):
        model = MixtralForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    block = torch.randn(4_194_301).mul_(0.02).bfloat16()  # repeated: random numbers cost more than what they fill
    for parameter in model.parameters():
        flat = parameter.data.view(-1)
        whole = len(flat) // len(block)
        flat[: whole * len(block)].view(-1, len(block)).copy_(block)
        flat[whole * len(block) :].copy_(block[: len(flat) - whole * len(block)])
    _rotary(model, config)
    model.eval()
    device = torch.device("cuda" if session.cuda else "cpu")
    if session.cuda and importlib.util.find_spec("accelerate") is not None:
        from accelerate import cpu_offload

        how = "accelerate, cpu_offload"
        cpu_offload(model, execution_device=device)
    else:
        how = "hooks: a layer's weights are copied before it runs"
        _offload(model, device)
    cache: list[Any] = [DynamicCache(config=config)]

    def forward(ids: Tensor) -> None:
        out = model(ids[None].to(device), past_key_values=cache[0], use_cache=True, logits_to_keep=1)
        out.logits.float().cpu()

    def begin() -> None:
        cache[0] = DynamicCache(config=config)

    found = _times(session, forward, begin, config.vocab_size, gen, prompt)
    found["offload"] = how
    if session.cuda:
        found["torch_peak_reserved_bytes"] = torch.cuda.max_memory_reserved()
    session.say(f"transformers: {found}")
    return found


def _rotary(model: nn.Module, config: Any) -> None:
    """Make the rotary frequencies again: buffers that were made without memory have none."""
    for name, module in list(model.named_modules()):
        if name.endswith("rotary_emb"):
            parent = model.get_submodule(name.rpartition(".")[0])
            parent.rotary_emb = type(module)(config)


def _offload(model: nn.Module, device: torch.device) -> None:
    """Keep weights on the host, and on the device those of the part that runs."""
    inner = model.model
    for part in (inner.embed_tokens, *inner.layers, inner.norm, model.lm_head):
        host = {name: parameter.data for name, parameter in part.named_parameters()}

        def bring(module: nn.Module, args: object, host: dict[str, Tensor] = host) -> None:
            for name, parameter in module.named_parameters():
                parameter.data = host[name].to(device)

        def leave(module: nn.Module, args: object, out: object, host: dict[str, Tensor] = host) -> None:
            for name, parameter in module.named_parameters():
                parameter.data = host[name]

        part.register_forward_pre_hook(bring)
        part.register_forward_hook(leave)
    inner.rotary_emb.to(device)


def _times(session: Session, forward: Any, begin: Any, vocabulary: int, gen: int, prompt: int) -> dict[str, Any]:
    """Return tokens a second of a prompt and of tokens one by one after it."""
    ids = torch.randint(vocabulary, (prompt + gen,), generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(2):
        begin()
        started = time.perf_counter()
        forward(ids[:prompt])
        times.append(time.perf_counter() - started)
    forward(ids[prompt : prompt + 1])
    started = time.perf_counter()
    done = 0
    for token in torch.split(ids[prompt + 1 :], 1):
        forward(token)
        done += 1
        if session.over():
            break
    seconds = time.perf_counter() - started
    return {
        "prefill_tokens_per_second": prompt / min(times),
        "prefill_tokens": prompt,
        "decode_tokens_per_second": done / seconds,
        "decode_tokens": done,
    }
