"""/v1/models and /v1/models/ID, with what the clients of OpenAI and of Mistral require."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from mixq.server.engine_host import EngineHost
from mixq.server.replies import json_reply


def _model(host: EngineHost, name: str) -> dict[str, Any]:
    model = host.engine.model
    chat = model.folder.tokenizer_path is not None and model.is_chat
    return {
        "id": name,
        "object": "model",
        "created": int(host.loaded_at),
        "owned_by": "mixq",
        "type": "base",  # Mistral's client raises without it, and without capabilities
        "capabilities": {
            "completion_chat": chat,
            "completion_fim": False,
            "function_calling": False,
            "fine_tuning": False,
            "vision": False,
        },
        "max_context_length": model.context,
        "root": host.name,
    }


async def listed(host: EngineHost, _http: HttpRequest) -> Response:
    """List the model, once for each of its names."""
    return json_reply({"object": "list", "data": [_model(host, name) for name in (host.name, *host.aliases)]})


async def one(host: EngineHost, http: HttpRequest) -> Response:
    """Describe one name."""
    name = http.path_params["name"]
    host.check_name(name)
    return json_reply(_model(host, name))
