"""A loaded model: what the terminal chat, the benches and Python users hold.

Contract: `load` opens a folder and gives a `Model`; a `Session` is one conversation whose KV cache is kept between its
turns. Both answer with the events of `mixq.generate`. This module knows tensors only by passing them on.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from mixq import paths
from mixq.config import ModelConfig, RuntimeOptions, format_size
from mixq.errors import DoesNotFitError, PromptError, UsageError, printable
from mixq.formats.folder import ModelFolder
from mixq.formats.weights import Weights
from mixq.generate import PREFILL_CHUNK, Done, Event, Notice, Token, check_prompt, generate
from mixq.kernels.cores import physical_cores
from mixq.memory import total_memory
from mixq.model.attention import Chunk
from mixq.model.kv_cache import KVCache
from mixq.model.mixtral import Mixtral
from mixq.placement import place
from mixq.sampling import SamplingParams
from mixq.text.chat_template import Message, encode_chat
from mixq.text.stream import StreamDecoder
from mixq.text.tokenizer import Tokenizer

Messages = Sequence[Message | Mapping[str, Any]]


SMALL_MATRIX = 1 << 20
"""Weights of a feed-forward matrix below which one thread is as fast as two."""


def load(path: str | os.PathLike[str] | None = None, **options: Any) -> Model:
    """Open a model folder, quantized or not.

    Args:
        path: a folder, or a name in the model store; None is the shipped demo model in bfloat16.
        options: fields of `RuntimeOptions`: device, vram ("8GB"), context, threads, kv, exact, ...

    Returns:
        A `Model`; its weights are mapped, not read.

    Raises:
        ModelFileError: no such folder, or one that is damaged or of an unknown kind.
        UsageError: an unknown option or value.
        DoesNotFitError: the context asked for needs more memory than there is.
    """
    checked = RuntimeOptions.from_kwargs(**options)
    folder = paths.demo_source() if path is None else paths.resolve_model(os.fspath(path))
    return Model(folder, checked)


class Model:
    """A model that answers.

    Attributes:
        folder: the open model folder, or weights made up in memory.
        config: its shape.
        options: as given to `load`.
        context: positions of a conversation: what was asked for, at most the model's own maximum.
        notes: one line for each option that could not be followed, and why.
    """

    def __init__(self, folder: Path | Weights, options: RuntimeOptions | None = None) -> None:
        self.options = options or RuntimeOptions()
        self.folder: Weights = ModelFolder.open(folder) if isinstance(folder, Path) else folder
        self.config: ModelConfig = self.folder.config
        self.context = min(self.options.context, self.config.max_position_embeddings)
        self.threads = self.options.threads or _default_threads(self.config)
        self._kv_dtype = (
            torch.float32 if self.options.exact else {"bf16": torch.bfloat16, "int8": torch.int8}[self.options.kv]
        )
        self._kv_bytes = self.context * KVCache.bytes_per_position(self.config, self._kv_dtype)
        _check_memory(self._kv_bytes)
        self._said: deque[str] = deque()
        self.placement = place(
            self.folder,
            self.options,
            threads=self.threads,
            kv_cache=self._kv_bytes,
            rows=min(PREFILL_CHUNK, self.context),
            say=self._said.append,
        )
        if self.placement.tier is not None:
            weakref.finalize(self, self.placement.tier.close)  # its thread keeps it alive
        self.notes = (*self.placement.notes, *_notes(self.options, self.context))
        self.kernels = self.placement.kernels
        torch.set_num_threads(self.threads if self.placement.host_kernels.uses_torch_threads else 1)
        self.network = Mixtral(
            self.placement.weights,
            self.kernels,
            positions=self.context,
            experts=self.placement.experts,
            give_back=self.placement.give_back,
            captures=self.placement.captures(),
        )
        if self.placement.offload is not None:
            self.placement.offload.warm()
        self._tokenizer: Tokenizer | None = None
        self._last: Done | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer.

        Raises:
            PromptError: the folder has none; such a model takes token ids only.
        """
        if self._tokenizer is None:
            if self.folder.tokenizer_path is None:
                raise PromptError(
                    f"{printable(self.folder.path)} has no tokenizer.model, so it takes token ids, not text.",
                    hint="Copy tokenizer.model from the original checkpoint into the folder.",
                )
            self._tokenizer = Tokenizer(self.folder.tokenizer_path)
        return self._tokenizer

    def new_kv_cache(self) -> KVCache:
        """Return an empty KV cache of this model's context.

        Raises:
            DoesNotFitError: no memory is left for it.
        """
        return KVCache(self.config, self.context, self._kv_dtype, self.placement.allocate_rows)

    def new_session(self) -> Session:
        """Begin a conversation whose KV cache is kept between turns."""
        return Session(self)

    def forward(self, ids: Sequence[int], *, kv_cache: KVCache | None = None) -> Tensor:
        """Return float32 logits [len(ids), vocabulary] after each of the tokens `ids`.

        Args:
            ids: token ids; they follow what `kv_cache` holds.
            kv_cache: of an earlier call, to go on from; None begins anew.

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
        """Go on from a text or from token ids.

        Args:
            prompt: text (tokenized with the begin token in front) or the exact ids.
            stream: True gives an iterator of events, False waits and gives the last of them, `Done`.
            sampling: fields of `SamplingParams`, and `cancel`, a `threading.Event` that ends the answer.

        Raises:
            PromptError: empty, too long for the context, or text for a model without a tokenizer.
            UsageError: an unknown parameter or a value out of bounds.
        """
        if isinstance(prompt, str):
            text_ids = self.tokenizer.encode(prompt)
            if not text_ids:
                raise PromptError("The prompt is empty.", hint="Give some text.")
            prompt = [self.tokenizer.bos_id, *text_ids]
        events = self.new_session().answer(list(prompt), continues_text=True, **sampling)
        return events if stream else last_event(events)

    @overload
    def chat(self, messages: Messages, *, stream: Literal[True] = ..., **sampling: Any) -> Iterator[Event]: ...
    @overload
    def chat(self, messages: Messages, *, stream: Literal[False], **sampling: Any) -> Done: ...
    def chat(self, messages: Messages, *, stream: bool = True, **sampling: Any) -> Iterator[Event] | Done:
        """Answer a conversation in Mixtral's instruct format.

        Args:
            messages: `Message`s or dicts with role (system, user, assistant) and content, a user's last.
            stream, sampling: as for `generate`.

        Raises:
            PromptError: roles out of order, an empty message, or a conversation too long for the context.
        """
        events = self.new_session().chat(messages, **sampling)
        return events if stream else last_event(events)

    def close(self) -> None:
        """End the threads that copy and read ahead; the model is not used any more."""
        self.placement.close()

    def stats(self) -> dict[str, Any]:
        """Return sizes, and the statistics of the last answer, as plain data."""
        return {
            "model": str(self.folder.path),
            "context": self.context,
            "weights_bytes": self.folder.nbytes,
            "kv_cache_bytes": self._kv_bytes,
            **self.placement.as_dict(),
            "kernels": self.kernels.name,
            "threads": self.threads,
            "last": self._last.stats.as_dict() if self._last is not None else None,
        }

    def __repr__(self) -> str:
        kind = f"{self.config.num_local_experts} experts" if self.config.is_moe else "dense"
        return (
            f"<mixq.Model {self.folder.path.name}: {self.config.num_hidden_layers} layers, {kind}, "
            f"{format_size(self.folder.nbytes)}, context {self.context}, on {self.placement.device}>"
        )


class Session:
    """One conversation: its KV cache, and the ids that the cache holds."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.kv_cache: KVCache | None = None
        self._cached_ids: list[int] = []

    def chat(self, messages: Messages, **sampling: Any) -> Iterator[Event]:
        """Answer `messages`; what they share with the last call is not run again. See `Model.chat`."""
        return self.answer(encode_chat(self.model.tokenizer, messages), continues_text=False, **sampling)

    def answer(self, prompt_ids: Sequence[int], *, continues_text: bool, **sampling: Any) -> Iterator[Event]:
        """Answer exact ids. The prompt is checked now, the model runs as the iterator is read.

        Args:
            prompt_ids: the whole prompt.
            continues_text: keep the space in front of the first word (completion), or take it off (a reply).
            sampling: fields of `SamplingParams`, and `cancel`.
        """
        cancel: threading.Event | None = sampling.pop("cancel", None)
        sampling.setdefault("seed", self.model.options.seed)
        params = SamplingParams.from_kwargs(**sampling)
        model = self.model
        has_text = model.folder.tokenizer_path is not None
        if params.stop and not has_text:
            raise UsageError("stop texts need a tokenizer, and the folder has none.")
        # Rows beyond the tokenizer's vocabulary are padding; a token from there would have no text.
        vocab_size = min(model.config.vocab_size, model.tokenizer.vocab_size) if has_text else model.config.vocab_size
        check_prompt(prompt_ids, model.context, vocab_size)
        decoder = StreamDecoder(model.tokenizer, strip_leading_space=not continues_text) if has_text else None
        return self._run(list(prompt_ids), params, vocab_size, decoder, cancel)

    def _run(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        vocab_size: int,
        decoder: StreamDecoder | None,
        cancel: threading.Event | None,
    ) -> Iterator[Event]:
        model = self.model
        if self.kv_cache is None:
            self.kv_cache = model.new_kv_cache()
        shared = _common_prefix(self._cached_ids, prompt_ids)
        self.kv_cache.truncate(min(shared, len(prompt_ids) - 1, self.kv_cache.length))
        self._cached_ids = prompt_ids  # the tokens that follow are added as they are run
        for event in generate(
            model.network,
            self.kv_cache,
            prompt_ids,
            params,
            eos_token_ids=model.folder.eos_token_ids,
            vocab_size=vocab_size,
            decoder=decoder,
            cancel=cancel,
            experts=model.placement.offload,
        ):
            while model._said:
                yield Notice(model._said.popleft())
            if isinstance(event, Done):
                model._last = event
            elif isinstance(event, Token):
                self._cached_ids = [*self._cached_ids, event.id]
            yield event


def last_event(events: Iterator[Event]) -> Done:
    """Read an answer to its end and return the `Done` event."""
    for event in events:
        if isinstance(event, Done):
            return event
    raise AssertionError("generate ends with Done")


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


def _check_memory(kv_bytes: int) -> None:
    """Refuse a KV cache that physical memory cannot hold; pages are taken only as they fill."""
    total = total_memory()
    if total is not None and kv_bytes > total:
        raise DoesNotFitError(
            f"The KV cache of this context needs {format_size(kv_bytes)}; the machine has {format_size(total)}.",
            hint="Give a smaller --context, or --kv int8.",
        )


def _default_threads(config: ModelConfig) -> int:
    """Return the number of physical cores, or 1 where the matrices are too small to share.

    On the demo model a second thread gains nothing on idle cores, and a step waits for it where a core is busy.
    """
    small = config.hidden_size * config.intermediate_size < SMALL_MATRIX
    return 1 if small else physical_cores()


def _notes(options: RuntimeOptions, context: int) -> Iterator[str]:
    """Say which options were not followed."""
    if options.context > context and options.context != RuntimeOptions().context:
        yield f"context {options.context} is more than the model's maximum; it is {context}."
