"""A loaded model, as the terminal chat, the server, the benches and Python programs use it.

Contract: `load` opens a folder and returns a `Model`. Answers are iterators of the events of `mixq.engine.events`: one
at a time, in a `Session` that keeps its KV cache, or several at once through `mixq.engine.batching`.
"""

from __future__ import annotations

import os
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from mixq.config import PREFILL_CHUNK, ModelConfig, RuntimeOptions, format_size
from mixq.engine.answer import check_prompt
from mixq.engine.events import Done, Event, Log
from mixq.engine.loading import place
from mixq.engine.progress import Progress, choose_progress
from mixq.engine.prompting import Messages, Prompting
from mixq.engine.session import Session
from mixq.errors import DoesNotFitError, printable
from mixq.experts.own_policy import own_policy
from mixq.formats.folder import ModelFolder
from mixq.formats.weights import Weights
from mixq.model.attention import Chunk
from mixq.model.kv_cache import KVCache
from mixq.model.mixtral import Mixtral
from mixq.system import paths
from mixq.system.cores import physical_cores
from mixq.system.memory import resident_memory, total_memory
from mixq.text.chat_template import ChatTemplate
from mixq.text.tokenizer import Tokenizer

SMALL_MATRIX = 1 << 20
"""Weights of a feed-forward matrix below which one thread is as fast as two."""


def load(
    path: str | os.PathLike[str] | None = None, *, progress: bool | Progress | None = None, **options: Any
) -> Model:
    """Open a model folder, quantized or not.

    Args:
        path: a folder, or a name in the model store; None is the shipped demo model in bfloat16.
        progress: True shows the progress of a load of more than a second on stderr; None does so in a notebook only. A
            function is called with the kind of work and the share of it that is done, 0 to 1.
        options: fields of `RuntimeOptions`: device, vram ("8GB"), context, threads, kv, exact, cache_policy (a name,
            or your own class: `mixq.experts.own_policy`), ...

    Returns:
        A `Model`. On the CPU alone, weights that fit into memory have been read; small models, and experts that do not
        fit, are read as they are used.

    Raises:
        ModelFileError: no such folder, or one that is damaged or of an unknown kind.
        UsageError: an unknown option or value.
        DoesNotFitError: the context needs more memory than there is.
        StorageError: the disk failed.
    """
    checked = RuntimeOptions.from_kwargs(**options)
    folder = paths.demo_source() if path is None else paths.resolve_model(os.fspath(path))
    return Model(folder, checked, progress=choose_progress(progress, folder.name))


class Model:
    """A model that answers.

    Attributes:
        folder: the open model folder, or synthetic weights in memory.
        config: its shape.
        options: as given to `load`.
        context: positions of a conversation: the option, at most the model's maximum.
        notes: one line for each option that has no effect, with the reason.
        kv_cache_bytes: of the KV caches of all sequences.
        network: runs token ids.
        prompting: turns text into token ids.
        encode, encode_chat: its methods for a text and for a conversation.
        log: notices for the user, and the last answer.
    """

    def __init__(
        self,
        folder: Path | Weights,
        options: RuntimeOptions | None = None,
        *,
        progress: Progress = lambda what, share: None,
    ) -> None:
        options = options or RuntimeOptions()
        if options.own_policy is not None:  # checked before anything is opened
            options = replace(options, own_policy=own_policy(options.own_policy))
        self.options = options
        self.folder: Weights = ModelFolder.open(folder) if isinstance(folder, Path) else folder
        self.config: ModelConfig = self.folder.config
        self.context = min(self.options.context, self.config.max_position_embeddings)
        self.threads = self.options.threads or _default_threads(self.config)
        self._kv_dtype = (
            torch.float32 if self.options.exact else {"bf16": torch.bfloat16, "int8": torch.int8}[self.options.kv]
        )
        sequence_bytes = self.context * KVCache.bytes_per_position(self.config, self._kv_dtype)
        self.kv_cache_bytes = self.options.sequences * sequence_bytes
        _check_memory(self.kv_cache_bytes)
        self.log = Log()
        self.prompting = Prompting(self.folder, self.context, self.options.template, self.log.say)
        self.encode, self.encode_chat = self.prompting.encode, self.prompting.encode_chat
        self.placement = place(
            self.folder,
            self.options,
            threads=self.threads,
            kv_cache=self.kv_cache_bytes,
            rows=min(PREFILL_CHUNK, self.context),
            say=self.log.say,
            progress=progress,
        )
        if self.placement.tier is not None:
            weakref.finalize(self, self.placement.tier.close)  # its thread keeps it alive
        self.notes = tuple(self.placement.notes)
        if options.context > self.context and options.context != RuntimeOptions().context:
            self.notes += (f"context {options.context} is more than the model's maximum; it is {self.context}.",)
        self.kernels = self.placement.kernels
        self.use_this_thread()
        self.network = Mixtral(
            self.placement.weights,
            self.kernels,
            positions=self.context,
            experts=self.placement.experts,
            give_back=self.placement.give_back,
            captures=self.placement.captures(),
        )
        if self.placement.offload is not None:
            self.placement.offload.warm(lambda share: progress("experts into slots", share))
        self._gap_reported = False
        progress("", 1.0)

    @property
    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer; raises PromptError where it has none."""
        return self.prompting.tokenizer

    @property
    def template(self) -> ChatTemplate:
        """The chat template; `none` for a base model."""
        return self.prompting.template

    @property
    def is_chat(self) -> bool:
        """False for a base model, which continues texts and has no chat template."""
        return self.prompting.is_chat

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return self.prompting.eos_token_ids

    @property
    def vocab_size(self) -> int:
        """Tokens that may be drawn: the tokenizer's."""
        return self.prompting.vocab_size

    def new_kv_cache(self) -> KVCache:
        """Return an empty KV cache of this model's context.

        Raises:
            DoesNotFitError: no memory is left for it.
        """
        return KVCache(self.config, self.context, self._kv_dtype, self.placement.allocate_rows)

    def new_session(self) -> Session:
        """Start a conversation whose KV cache is kept between turns."""
        telemetry, seed = self.placement.telemetry, self.options.seed
        return Session(self.network, self.prompting, self.new_kv_cache, log=self.log, telemetry=telemetry, seed=seed)

    def use_this_thread(self) -> None:
        """Prepare the calling thread to run the model; needed in every thread but the one that loaded it."""
        torch.set_num_threads(self.threads if self.placement.host_kernels.uses_torch_threads else 1)

    def notices(self) -> Iterator[str]:
        """Yield the lines for the user since the last call."""
        return self.log.lines()

    def memory_gap(self) -> str | None:
        """Return a warning, once, when the process has taken more RAM than planned; else None.

        For programs with one model and little else: other data, as in a notebook, would be counted too.
        """
        gap = None if self._gap_reported else self.placement.gap(resident_memory())
        self._gap_reported = self._gap_reported or gap is not None
        return gap

    def forward(self, ids: Sequence[int], *, kv_cache: KVCache | None = None) -> Tensor:
        """Return float32 logits [len(ids), vocabulary] after each of the tokens `ids`.

        Args:
            ids: token ids; they follow what `kv_cache` holds.
            kv_cache: of an earlier call, to continue it; None starts with an empty one.

        Raises:
            PromptError: no ids, too many for the context, or one outside the vocabulary.
        """
        cache = self.new_kv_cache() if kv_cache is None else kv_cache
        check_prompt(ids, cache.capacity - cache.length, self.config.vocab_size)
        tokens = torch.tensor(list(ids), dtype=torch.long)
        return torch.cat(
            [self.network.forward([Chunk(part, cache)], all_logits=True) for part in torch.split(tokens, PREFILL_CHUNK)]
        )

    @overload
    def generate(
        self, prompt: str | Sequence[int], *, stream: Literal[True] = ..., **sampling: Any
    ) -> Iterator[Event]: ...
    @overload
    def generate(self, prompt: str | Sequence[int], *, stream: Literal[False], **sampling: Any) -> Done: ...
    def generate(self, prompt: str | Sequence[int], *, stream: bool = True, **sampling: Any) -> Iterator[Event] | Done:
        """Continue a text or token ids.

        Args:
            prompt: text (tokenized with the BOS token in front) or the exact ids.
            stream: True gives an iterator of events, False waits and gives the last of them, `Done`.
            sampling: fields of `SamplingParams`, and `cancel`, a `threading.Event` that ends the answer.

        Raises:
            PromptError: empty, too long for the context, or text for a model without a tokenizer.
            UsageError: an unknown parameter or a value out of bounds.
        """
        events = self.new_session().answer(self.encode(prompt), continues_text=True, **sampling)
        if stream:
            return events
        *_, done = events  # in this frame, to keep the frames of decode few
        assert isinstance(done, Done), "an answer ends with Done"
        return done

    @overload
    def chat(self, messages: Messages, *, stream: Literal[True] = ..., **sampling: Any) -> Iterator[Event]: ...
    @overload
    def chat(self, messages: Messages, *, stream: Literal[False], **sampling: Any) -> Done: ...
    def chat(self, messages: Messages, *, stream: bool = True, **sampling: Any) -> Iterator[Event] | Done:
        """Answer a conversation in the model's chat template (`template`).

        Args:
            messages: `Message`s or dicts with role (system, user, assistant) and content, a user's last.
            stream, sampling: as for `generate`.

        Raises:
            PromptError: roles out of order, an empty message, a conversation too long for the context, or a base model,
                which does not chat.
        """
        events = self.new_session().chat(messages, **sampling)
        if stream:
            return events
        *_, done = events
        assert isinstance(done, Done), "an answer ends with Done"
        return done

    def close(self) -> None:
        """End the threads that copy and read experts; the model cannot be used afterwards."""
        self.placement.close()

    def stats(self) -> dict[str, Any]:
        """Return sizes, and the statistics of the last answer, as plain data.

        Returns:
            A dict of
            * model, context (positions), weights_bytes, kv_cache_bytes, device, kernels, threads;
            * on the CPU alone, if the weights fit into memory, weights_mapped_huge_bytes and weights_copied_huge_bytes:
              in huge pages of the page cache and of anonymous memory;
            * on an accelerator vram_promised_bytes, vram_taken_bytes, vram_peak_bytes, what it is taken for
              (vram_kv_cache_bytes, vram_trunk_bytes, vram_workspace_bytes), expert_slots and miss;
            * last: None before the first answer, then its fields of `mixq.Stats`: prompt_tokens, decode_tokens,
              decode_tokens_per_second and so on, and on an accelerator experts: requests, hits, hit_rate, waits,
              fetches, on_cpu, bytes and seconds of each place, recall, as `mixq.experts.stats` explains.
        """
        return {
            "model": str(self.folder.path),
            "context": self.context,
            "weights_bytes": self.folder.nbytes,
            "kv_cache_bytes": self.kv_cache_bytes,
            **self.placement.as_dict(),
            "kernels": self.kernels.name,
            "threads": self.threads,
            "last": self.log.last.stats.as_dict() if self.log.last is not None else None,
        }

    def __repr__(self) -> str:
        kind = f"{self.config.num_local_experts} experts" if self.config.is_moe else "dense"
        plan = self.placement.plan
        slots = f", {plan.slots} expert slots" if plan is not None and self.config.is_moe else ""
        return (
            f"<mixq.Model {printable(self.folder.path.name)}: {self.config.num_hidden_layers} layers, {kind}, "
            f"{format_size(self.folder.nbytes)}, context {self.context}, on {self.placement.device}{slots}>"
        )

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows; text from files and paths is escaped."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(what)}</th>"
            f"<td style='text-align:left'>{escape(printable(where))}</td>"
            f"<td style='text-align:right'>{escape(size)}</td></tr>"
            for what, where, size in self._table()
        )
        notes = "".join(f"<li>{escape(printable(note))}</li>" for note in self.notes)
        return f"<table>{rows}</table>" + (f"<ul>{notes}</ul>" if notes else "")

    def _table(self) -> Iterator[tuple[str, str, str]]:
        """Yield what is in memory, where or how, and its size."""
        config, placement = self.config, self.placement
        device, plan, offload = placement.device, placement.plan, placement.offload
        yield "model", self.folder.path.name, format_size(self.folder.nbytes)
        experts = f"{config.num_local_experts} experts, {config.num_experts_per_tok} for each token"
        block = experts if config.is_moe else "one feed-forward block"
        yield "layers", f"{config.num_hidden_layers}, each with {block}", ""
        yield "computed by", f"{self.kernels.name}, {_count(self.threads, 'CPU thread')}", ""
        yield "KV cache", f"{self.context} positions, {self.options.kv}", format_size(self.kv_cache_bytes)
        if plan is None:
            yield "weights", placement.weights_are, format_size(self.folder.nbytes)
        else:
            yield "GPU memory", f"on {device}, limit", format_size(plan.budget)
            yield "trunk", f"on {device}: attention, router, norms and head", format_size(plan.trunk)
            yield "workspace", f"on {device}", format_size(plan.workspace + plan.staging)
        if plan is not None and offload is not None:
            quotas = sorted(Counter(offload.cache.quotas).items())
            each = ", ".join(f"{slots} in {_count(layers, 'layer')}" for slots, layers in quotas)
            policy = self.options.own_policy or self.options.cache_policy
            name = getattr(policy, "__name__", policy)
            total = config.num_hidden_layers * config.num_local_experts
            where = f"{offload.slots} of {total} in slots on {device} ({each}; {name}), all in host memory"
            yield "experts", where, format_size(offload.slots * plan.slot_bytes)
        if placement.tier is not None:
            yield "RAM", "kept experts; the others are read from the disk", format_size(placement.tier.budget)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _check_memory(kv_bytes: int) -> None:
    """Refuse a KV cache larger than physical memory; pages are taken only as they fill."""
    total = total_memory()
    if total is not None and kv_bytes > total:
        raise DoesNotFitError(
            f"The KV cache of this context needs {format_size(kv_bytes)}; the machine has {format_size(total)}.",
            hint="Use a smaller --context, or --kv int8.",
        )


def _default_threads(config: ModelConfig) -> int:
    """Return the number of physical cores, or 1 if the matrices are too small to share.

    On the demo model a second thread gains nothing on idle cores, and a step waits for it when a core is busy.
    """
    small = config.hidden_size * config.intermediate_size < SMALL_MATRIX
    return 1 if small else physical_cores()
