"""Facts about the model and the server: /v1/models, /health, and the page's /mixq/status."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from mixq.engine.model import Model
from mixq.server.engine_host import EngineHost
from mixq.server.errors import json_reply
from mixq.system import memory

VERSION = version("mixq")


async def models(host: EngineHost, _http: HttpRequest) -> Response:
    """List the model, once per name."""
    return json_reply({"object": "list", "data": [_model(host, name) for name in (host.name, *host.aliases)]})


async def model(host: EngineHost, http: HttpRequest) -> Response:
    name = http.path_params["name"]
    host.check_name(name)
    return json_reply(_model(host, name))


def _model(host: EngineHost, name: str) -> dict[str, Any]:
    served = host.engine.model
    absent = dict.fromkeys(("completion_fim", "function_calling", "fine_tuning", "vision"), False)
    return {
        "id": name,
        "object": "model",
        "created": int(host.loaded_at),
        "owned_by": "mixq",
        "type": "base",  # Mistral's client raises without it, and without capabilities
        "capabilities": {"completion_chat": served.is_chat, **absent},
        "max_context_length": served.context,
        "root": host.name,
    }


async def health(host: EngineHost, _http: HttpRequest) -> Response:
    """Return whether the server is ready for requests."""
    ready = host.state == "ready"
    return json_reply({"status": "ok" if ready else host.state}, 200 if ready else 503)


async def status(host: EngineHost, _http: HttpRequest) -> Response:
    """Return what the page shows."""
    return json_reply(status_of(host))


def status_of(host: EngineHost) -> dict[str, Any]:
    """Return the model, its placement, and what the engine is doing."""
    model, state = host.model, host.batcher_state()
    return {
        "model": host.name,
        "loading": host.state == "loading",
        "ready": host.state == "ready",
        "notes": list(host.notes),
        **{key: None if model is None else figure(model) for key, figure in _PLACED.items()},
        "ram_used": memory.resident_memory(),
        "queued": state.queued if state is not None else 0,
        "running": state.running if state is not None else 0,
        "decode_tokens_per_second": state.decode_tokens_per_second if state is not None else None,
        "expert_hit_rate": state.expert_hit_rate if state is not None else None,
        "version": VERSION,
    }


_PLACED: dict[str, Callable[[Model], Any]] = {
    "path": lambda model: str(model.folder.path),
    "layers": lambda model: model.config.num_hidden_layers,
    "experts": lambda model: model.config.num_local_experts,
    "experts_per_token": lambda model: model.config.num_experts_per_tok,
    "context": lambda model: model.context,
    "is_chat": lambda model: model.is_chat,
    "template": lambda model: model.template.name,
    "device": lambda model: model.placement.device,
    "ram_planned": lambda model: model.placement.as_dict()["ram_planned_bytes"],
    "vram": lambda model: model.placement.as_dict().get("vram_promised_bytes"),
    "vram_total": lambda model: _device_memory(model.placement.device),
    "vram_used": lambda model: model.placement.as_dict().get("vram_taken_bytes"),
}
"""The model's part of the status; null while there is none."""


def _device_memory(device: str) -> int | None:
    """Return the accelerator's whole memory; for the simulated one, the computer's."""
    if device == "cpu":
        return None
    if device == "sim":
        return memory.total_memory()
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)
