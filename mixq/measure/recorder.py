"""Runs prompts and records what the routers do: choices, weights, what the routers ahead would have guessed, and times.

Contract: replies are those that the model gives anyway, on any device; looking changes none of them. The guesses are
made here: the routers of the next layers are asked on today's hidden state. On a pass of few tokens that is done when
it is over; on a prompt's, whose hidden states would take too much memory, at once, and the time is taken off the pass.
A GPU's captured steps are not used while it is recorded, so that a recorded token may take longer than others.

Axes: T tokens of a pass, L layers, A active experts, H layers looked ahead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixq.engine.answer import PREFILL_CHUNK, Answer, Task, pending_tensor
from mixq.engine.events import Done
from mixq.engine.model import Model
from mixq.engine.sampling import SamplingParams
from mixq.errors import PromptError, UsageError, printable
from mixq.experts.executor import Lookahead
from mixq.experts.memory_plan import workspace_bytes
from mixq.kernels.reference import DECODE_ROWS
from mixq.measure.prompt_file import Prompt
from mixq.model.attention import Chunk
from mixq.plan.recording import NOTHING, Facts, Recording, count_prompts
from mixq.plan.sizes import ModelSizes

LOOKAHEAD = 2
"""Layers ahead whose routers are asked, as the engine asks them."""


class Recorder:
    """Records a model.

    Args:
        model: whose experts.
        name: what to call it; None takes its folder's name.

    Raises:
        UsageError: a dense model, or one with more experts than a recording has numbers for.
    """

    def __init__(self, model: Model, name: str | None = None) -> None:
        config = model.config
        if not config.is_moe:
            raise UsageError(
                f"{printable(model.folder.path.name)} is dense: it has no experts to record.",
                hint="Name a model with experts, such as a Mixtral.",
            )
        if config.num_local_experts > NOTHING:
            raise UsageError(f"The model has {config.num_local_experts} experts a layer; {NOTHING} can be recorded.")
        self.model = model
        self.name = name or model.folder.path.name
        self._ahead = min(LOOKAHEAD, config.num_hidden_layers - 1)
        layers = model.network.layers
        routers = [(layer.post_attention_layernorm, layer.feed_forward.gate) for layer in layers]  # type: ignore[union-attr]
        self._lookaheads = [
            Lookahead(
                model.network.kernels,
                routers[i + 1 : i + 1 + self._ahead],
                config.rms_norm_eps,
                config.num_experts_per_tok,
            )
            for i in range(len(layers))
        ]
        self._names: list[str] = []
        self._passes: list[_Pass] = []
        self._pass = _Running()
        self._begun = datetime.now(UTC)

    def tasks(self, prompts: Sequence[Prompt], **sampling: Any) -> list[Task]:
        """Return what is to be run, every prompt checked before the first runs.

        Args:
            sampling: fields of `SamplingParams`.

        Raises:
            PromptError: a prompt is too long, or a conversation for a model without a chat format.
        """
        params = SamplingParams.from_kwargs(**sampling)
        return [self._task(prompt, params) for prompt in prompts]

    def _task(self, prompt: Prompt, params: SamplingParams) -> Task:
        model = self.model
        if model.is_chat:
            messages = prompt.messages or [{"role": "user", "content": prompt.text}]
            return model.task(model.encode_chat(messages), params, continues_text=False)
        if prompt.messages:
            raise PromptError(
                f"{printable(prompt.name)} is a conversation, and this model has no chat format: {model.template.why}.",
                hint="Give texts, or --template.",
            )
        ids = [*model.tokenizer.begin_ids, *model.tokenizer.encode(prompt.text)]
        return model.task(ids, params, continues_text=True)

    def run(
        self,
        name: str,
        task: Task,
        *,
        cancel: threading.Event | None = None,
        on_token: Callable[[int], None] = lambda tokens: None,
    ) -> Done:
        """Answer a prompt and record it; what has been recorded when it is broken off is kept.

        Args:
            cancel: ends the reply when set.
            on_token: called after each pass with the tokens of it.
        """
        model = self.model
        kv_cache = model.new_kv_cache()
        self._names.append(name)
        answer = Answer(task, kv_cache, experts=model.placement.offload)
        with model.network.hook_router(self._look):
            while not answer.finished:
                if cancel is not None and cancel.is_set():
                    return answer.end("cancelled")
                ids, in_prompt = pending_tensor(answer), answer.in_prompt
                begun = time.perf_counter()
                logits = model.network.forward([Chunk(ids, kv_cache)])
                seconds = time.perf_counter() - begun - self._pass.seconds
                self._passes.append(self._finished(ids, in_prompt=in_prompt, seconds=seconds))
                on_token(len(ids))
                for event in answer.take(logits):
                    if isinstance(event, Done):
                        model.note_answer(event)
                        return event
        raise AssertionError("an answer ends with Done")

    def recording(self) -> Recording | None:
        """Return what has been recorded so far; None for nothing."""
        if not self._passes:
            return None
        model, config = self.model, self.model.config
        prompt = np.concatenate([np.full(len(p.tokens), p.prompt, dtype=np.int32) for p in self._passes])
        is_prompt = np.concatenate([np.full(len(p.tokens), p.in_prompt) for p in self._passes])
        cost = ModelSizes.of_weights(model.folder, "").cost(model.options.kv)
        facts = Facts(
            model=self.name,
            layers=config.num_hidden_layers,
            experts=config.num_local_experts,
            active=config.num_experts_per_tok,
            lookahead=self._ahead,
            device=model.placement.device if model.placement.accelerator is None else model.options.device,
            mixq=metadata.version("mixq"),
            created=self._begun.isoformat(timespec="seconds"),
            prompts=count_prompts(self._names, prompt, is_prompt),
            expert_bytes=cost.expert_bytes,
            trunk_bytes=cost.trunk_bytes,
            head_bytes=cost.head_bytes,
            kv_bytes=cost.kv_bytes,
            expert_flops=cost.expert_flops,
            settings=self._settings(),
        )
        return Recording(
            facts,
            experts=np.concatenate([p.experts for p in self._passes]),
            weights=np.concatenate([p.weights for p in self._passes]),
            predicted=np.concatenate([p.predicted for p in self._passes]),
            tokens=np.concatenate([p.tokens for p in self._passes]),
            prompt=prompt,
            is_prompt=is_prompt,
            seconds=np.concatenate([np.full(len(p.tokens), p.seconds, dtype=np.float32) for p in self._passes]),
        )

    def _settings(self) -> dict[str, Any]:
        model, options = self.model, self.model.options
        offload = model.placement.offload
        return {
            "threads": model.threads,
            "kernels": model.kernels.name,
            "context": model.context,
            "kv": options.kv,
            "workspace_bytes": workspace_bytes(model.config, min(PREFILL_CHUNK, model.context)),
            **(
                {
                    "miss": options.miss,
                    "cache_policy": options.cache_policy,
                    "quotas": list(offload.cache.quotas),
                    "vram_bytes": model.placement.plan.promised if model.placement.plan is not None else None,
                }
                if offload is not None
                else {}
            ),
        }

    # One pass

    def _look(self, layer: int, residual: Tensor, ids: Tensor, weights: Tensor) -> None:
        """See `mixq.model.hooks`."""
        begun = time.perf_counter()
        if layer == 0:  # also of a pass that is run again because memory had run out
            self._pass = _Running()
        self._pass.ids.append(ids)
        self._pass.weights.append(weights)
        if len(ids) <= DECODE_ROWS:
            self._pass.residuals.append(residual)
        else:
            self._pass.guesses.append(self._guess(layer, residual))
            self._pass.seconds += time.perf_counter() - begun

    def _guess(self, layer: int, residual: Tensor) -> list[Tensor]:
        return [named for _, named in self._lookaheads[layer].predict(residual)]

    @torch.inference_mode()
    def _finished(self, ids: Tensor, *, in_prompt: bool, seconds: float) -> _Pass:
        """Bring the pass to the host."""
        running = self._pass
        for layer, residual in enumerate(running.residuals):
            running.guesses.append(self._guess(layer, residual))
        T, L, A = len(ids), len(running.ids), running.ids[0].shape[1]
        predicted = np.full((T, self._ahead, L, A), NOTHING, dtype=np.uint8)
        for layer, guesses in enumerate(running.guesses):
            for ahead, named in enumerate(guesses):
                predicted[:, ahead, layer + 1 + ahead] = named.cpu().numpy()
        self._pass = _Running()
        return _Pass(
            len(self._names) - 1,
            in_prompt,
            max(seconds, 0.0) / T,
            ids.numpy().astype(np.int32),
            torch.stack(running.ids, dim=1).cpu().numpy().astype(np.uint8),  # [T, L, A]
            torch.stack(running.weights, dim=1).cpu().numpy().astype(np.float16),
            predicted,
        )


class _Running:
    """What the layers of a pass have shown so far; `seconds` that looking has taken."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.residuals: list[Tensor] = []
        self.guesses: list[list[Tensor]] = []
        self.seconds = 0.0


class _Pass:
    """One pass as it is recorded; `seconds` of each token."""

    def __init__(
        self,
        prompt: int,
        in_prompt: bool,
        seconds: float,
        tokens: NDArray[np.int32],
        experts: NDArray[np.uint8],
        weights: NDArray[np.float16],
        predicted: NDArray[np.uint8],
    ) -> None:
        self.prompt, self.in_prompt, self.seconds, self.tokens = prompt, in_prompt, seconds, tokens
        self.experts, self.weights, self.predicted = experts, weights, predicted
