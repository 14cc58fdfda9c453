"""Runs prompts and records the routers: choices, weights, predictions of the next layers' choices, and times.

Contract: recording does not change a reply, on any device. The predictions are made here: the routers of the next
layers are applied to the hidden state of this one. In a forward pass of few tokens this is done after it; in a
pass of many, whose hidden states would need too much memory, at once, and its time is subtracted. A GPU's captured
steps are not used while recording, so a recorded token may take longer than others.

Axes: T tokens of a pass, L layers, A active experts, H layers looked ahead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixq.config import PREFILL_CHUNK
from mixq.engine.answer import Answer, Pass, Request, Task, step
from mixq.engine.events import Done, Failed
from mixq.engine.model import Model
from mixq.engine.placement import LOOKAHEAD
from mixq.engine.sampling import SamplingParams
from mixq.engine.sequences import KeptSequence
from mixq.errors import PromptError, UsageError, printable
from mixq.experts.memory_plan import workspace_bytes
from mixq.kernels.reference import DECODE_ROWS
from mixq.measure.prompt_file import NamedPrompt
from mixq.plan.recording import NOTHING, Facts, Recording, count_prompts
from mixq.plan.sizes import ModelSizes


class Recorder:
    """Records a model.

    Args:
        model: the model to record.
        name: of the model in the recording; None: its folder's name.

    Raises:
        UsageError: a dense model, or one with more experts than a recording can have.
    """

    def __init__(self, model: Model, name: str | None = None) -> None:
        config = model.config
        if not config.is_moe:
            raise UsageError(
                f"{printable(model.folder.path.name)} is dense, so it has no experts to record.",
                hint="Name a model with experts, such as a Mixtral.",
            )
        if config.num_local_experts > NOTHING:
            raise UsageError(
                f"The model has {config.num_local_experts} experts per layer; at most {NOTHING} can be recorded."
            )
        self.model = model
        self.name = name or model.folder.path.name
        self._ahead = min(LOOKAHEAD, config.num_hidden_layers - 1)
        self._lookaheads = [model.placement.lookahead(layer) for layer in range(config.num_hidden_layers)]
        self._names: list[str] = []
        self._passes: list[dict[str, NDArray[Any]]] = []
        self._layers = _Layers()
        self._begun = datetime.now(UTC)

    def tasks(self, prompts: Sequence[NamedPrompt], **sampling: Any) -> list[Task]:
        """Return the tasks of prompts; all are checked before the first runs.

        Args:
            sampling: fields of `SamplingParams`.

        Raises:
            PromptError: a prompt is too long, or a conversation for a model without a chat template.
        """
        params = SamplingParams.from_kwargs(**sampling)
        return [self._task(prompt, params) for prompt in prompts]

    def _task(self, prompt: NamedPrompt, params: SamplingParams) -> Task:
        model = self.model
        if model.is_chat:
            messages = prompt.messages or [{"role": "user", "content": prompt.text}]
            return model.prompting.task(Request(model.encode_chat(messages), params))
        if prompt.messages:
            raise PromptError(
                f"{printable(prompt.name)} is a conversation, and this model has no chat template: "
                f"{model.template.why}.",
                hint="Use texts instead, or set --template.",
            )
        return model.prompting.task(Request(model.encode(prompt.text), params, continues_text=True))

    def run(
        self,
        name: str,
        task: Task,
        *,
        cancel: threading.Event | None = None,
        on_token: Callable[[int], None] = lambda tokens: None,
    ) -> Done:
        """Answer a prompt and record it; of an interrupted answer, the tokens so far are recorded.

        Args:
            cancel: ends the reply when set.
            on_token: called after each forward pass with the number of its tokens.
        """
        model = self.model
        sequence = KeptSequence(model.new_kv_cache())
        sequence.begin(task.prompt_ids, 0)
        answer = Answer(task, sequence, telemetry=model.placement.telemetry)
        self._names.append(name)
        with model.network.hook_router(self._look):
            while not answer.finished:
                if cancel is not None and cancel.is_set():
                    return answer.end("cancelled")
                in_prompt = answer.in_prompt
                run = step(model.network, [answer])
                self._passes.append(self._finished(run, in_prompt=in_prompt))
                on_token(len(run.chunks[0].token_ids))
        last = run.events[0][-1]
        if isinstance(last, Failed):
            raise last.error
        assert isinstance(last, Done), "an answer ends with Done or Failed"
        model.log.last = last
        return last

    def recording(self) -> Recording | None:
        """Return what has been recorded so far; None before the first pass."""
        if not self._passes:
            return None
        model = self.model
        arrays = {name: np.concatenate([one[name] for one in self._passes]) for name in self._passes[0]}
        facts = Facts(
            model=self.name,
            lookahead=self._ahead,
            device=model.placement.device if model.placement.accelerator is None else model.options.device,
            mixq=metadata.version("mixq"),
            created=self._begun.isoformat(timespec="seconds"),
            prompts=count_prompts(self._names, arrays["prompt"], arrays["is_prompt"]),
            settings=self._settings(),
            **asdict(ModelSizes.of_weights(model.folder, "").cost(model.options.kv)),
        )
        return Recording(facts, **arrays)

    def _settings(self) -> dict[str, Any]:
        model, options = self.model, self.model.options
        offload, plan = model.placement.offload, model.placement.plan
        settings: dict[str, Any] = {
            "threads": model.threads,
            "kernels": model.kernels.name,
            "context": model.context,
            "kv": options.kv,
            "workspace_bytes": workspace_bytes(model.config, min(PREFILL_CHUNK, model.context)),
        }
        if offload is not None and plan is not None:
            settings["miss"] = options.miss
            settings["cache_policy"] = options.cache_policy
            settings["quotas"] = list(offload.cache.quotas)
            settings["vram_bytes"] = plan.budget
        return settings

    # One pass

    def _look(self, layer: int, residual: Tensor, ids: Tensor, weights: Tensor) -> None:
        """Record a layer's routing: a router hook of `mixq.model.hooks`."""
        begun = time.perf_counter()
        if layer == 0:  # also of a forward pass that is repeated because memory had run out
            self._layers = _Layers()
        layers = self._layers
        layers.ids.append(ids)
        layers.weights.append(weights)
        if len(ids) <= DECODE_ROWS:
            layers.residuals.append(residual)
        else:
            layers.predictions.append(self._predict(layer, residual))
            layers.seconds += time.perf_counter() - begun

    def _predict(self, layer: int, residual: Tensor) -> list[Tensor]:
        return [ids for _, ids in self._lookaheads[layer].predict(residual)]

    @torch.inference_mode()
    def _finished(self, run: Pass, *, in_prompt: bool) -> dict[str, NDArray[Any]]:
        """Return a forward pass as arrays of a recording, whose first axis is T."""
        layers, self._layers = self._layers, _Layers()
        for layer, residual in enumerate(layers.residuals):
            layers.predictions.append(self._predict(layer, residual))
        token_ids = run.chunks[0].token_ids
        T, L, A = len(token_ids), len(layers.ids), layers.ids[0].shape[1]
        predicted = np.full((T, self._ahead, L, A), NOTHING, dtype=np.uint8)
        for layer, predictions in enumerate(layers.predictions):
            for ahead, ids in enumerate(predictions):
                predicted[:, ahead, layer + 1 + ahead] = ids.cpu().numpy()
        return {
            "experts": torch.stack(layers.ids, dim=1).cpu().numpy().astype(np.uint8),  # [T, L, A]
            "weights": torch.stack(layers.weights, dim=1).cpu().numpy().astype(np.float16),
            "predicted": predicted,
            "tokens": token_ids.numpy().astype(np.int32),
            "prompt": np.full(T, len(self._names) - 1, dtype=np.int32),
            "is_prompt": np.full(T, in_prompt),
            "seconds": np.full(T, max(run.seconds - layers.seconds, 0.0) / T, dtype=np.float32),
        }


@dataclass(slots=True)
class _Layers:
    """The routing of a forward pass so far; `seconds` spent on recording it."""

    ids: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)
    predictions: list[list[Tensor]] = field(default_factory=list)
    seconds: float = 0.0
