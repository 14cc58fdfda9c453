"""What there is to say of the served model, for the lists of three interfaces and the page's status."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from mixq.config import ModelConfig
from mixq.engine.model import Model
from mixq.formats.folder import ModelFolder
from mixq.server.engine_host import EngineHost
from mixq.system import memory

VERSION = version("mixq")


@dataclass(frozen=True, slots=True)
class Facts:
    """A model's shape and size.

    Attributes:
        modified_at: of config.json, as a time stamp.
        quantization: the method, or the weights' type.
    """

    name: str
    config: ModelConfig
    nbytes: int
    modified_at: float
    quantization: str
    parameters: int

    @classmethod
    def of(cls, name: str, model: Model) -> Facts:
        """Return the facts of a loaded model."""
        folder = model.folder
        stored = folder.path / "config.json"
        modified = stored.stat().st_mtime if stored.is_file() else 0.0
        quantized = folder.quantization.method if isinstance(folder, ModelFolder) and folder.quantization else None
        return cls(
            name, model.config, folder.nbytes, modified, quantized or "not quantized", parameter_count(model.config)
        )

    @property
    def family(self) -> str:
        """The kind of model, as Ollama calls it."""
        return "mixtral" if self.config.is_moe else "mistral"

    @property
    def parameter_size(self) -> str:
        """Weights in billions or millions."""
        count = self.parameters
        return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"

    def model_info(self) -> dict[str, Any]:
        """Return the model's shape with the keys that Ollama uses."""
        config = self.config
        shape = {
            "block_count": config.num_hidden_layers,
            "context_length": config.max_position_embeddings,
            "embedding_length": config.hidden_size,
            "feed_forward_length": config.intermediate_size,
            "attention.head_count": config.num_attention_heads,
            "attention.head_count_kv": config.num_key_value_heads,
            "vocab_size": config.vocab_size,
            "expert_count": config.num_local_experts,
            "expert_used_count": config.num_experts_per_tok,
        }
        general = {"general.architecture": self.family, "general.parameter_count": self.parameters}
        return {**general, **{f"{self.family}.{key}": value for key, value in shape.items()}}


def parameter_count(config: ModelConfig) -> int:
    """Return how many weights a model of this shape has."""
    from math import prod

    from mixq.formats.architecture import parameters

    return sum(prod(parameter.shape) for parameter in parameters(config))


def status(host: EngineHost) -> dict[str, Any]:
    """Return what the page shows: the model, its split, and what it is doing."""
    model, state = host.model, host.batcher_state()
    about: dict[str, Any] = dict.fromkeys(
        ("path", "layers", "experts", "experts_per_token", "context", "is_chat", "template", "device", "vram")
    )
    about |= {"ram_planned": None, "vram_total": None, "vram_used": None}
    if model is not None:
        about |= _about(model)
    return {
        "model": host.name,
        "loading": host.state == "loading",
        "ready": host.state == "ready",
        "notes": list(host.notes),
        **about,
        "ram_used": memory.resident_memory(),
        "queued": state.queued if state is not None else 0,
        "running": state.running if state is not None else 0,
        "decode_tokens_per_second": state.decode_tokens_per_second if state is not None else None,
        "expert_hit_rate": state.expert_hit_rate if state is not None else None,
        "version": VERSION,
    }


def _about(model: Model) -> dict[str, Any]:
    config, placed = model.config, model.placement.as_dict()
    has_text = model.folder.tokenizer_path is not None
    return {
        "path": str(model.folder.path),
        "layers": config.num_hidden_layers,
        "experts": config.num_local_experts if config.is_moe else 0,
        "experts_per_token": config.num_experts_per_tok if config.is_moe else 0,
        "context": model.context,
        "is_chat": has_text and model.is_chat,
        "template": model.template.name,
        "device": model.placement.device,
        "ram_planned": placed.get("ram_planned_bytes"),
        "vram": placed.get("vram_promised_bytes"),
        "vram_total": _device_memory(model.placement.device),
        "vram_used": placed.get("vram_taken_bytes"),
    }


def _device_memory(device: str) -> int | None:
    """Return all the memory of the accelerator; of the simulated one what the machine has."""
    if device == "cpu":
        return None
    if device == "sim":
        return memory.total_memory()
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)
