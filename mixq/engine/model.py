"""A loaded model: what the terminal chat, the benches and Python users hold.

Contract: `load` opens a folder and gives a `Model`, which answers with the events of `mixq.engine.events`: by itself,
in a `Session` that is kept, or several at a time through `mixq.engine.batching`. It knows tensors only by passing them
on.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from mixq.config import ModelConfig, RuntimeOptions, format_size
from mixq.engine import describe
from mixq.engine.answer import PREFILL_CHUNK, Task, check_prompt
from mixq.engine.events import Done, Event
from mixq.engine.placement import place
from mixq.engine.progress import Progress, choose_progress
from mixq.engine.sampling import SamplingParams
from mixq.engine.session import Session
from mixq.errors import DoesNotFitError, PromptError, UsageError, printable
from mixq.experts.own_policy import own_policy
from mixq.formats.folder import ModelFolder
from mixq.formats.weights import Weights
from mixq.measure.experiments import Experiments, Prompt
from mixq.model.attention import Chunk
from mixq.model.kv_cache import KVCache
from mixq.model.mixtral import Mixtral
from mixq.system import paths
from mixq.system.cores import physical_cores
from mixq.system.memory import resident_memory, total_memory
from mixq.text.chat_template import ChatTemplate, Message
from mixq.text.choice import choose_template
from mixq.text.grammar import GrammarCompiler, GrammarSpec
from mixq.text.open import open_tokenizer
from mixq.text.stream import StreamDecoder
from mixq.text.templates import get_template
from mixq.text.tokenizer import Tokenizer
from mixq.text.tokenizer_config import TokenizerConfig

Messages = Sequence[Message | Mapping[str, Any]]


SMALL_MATRIX = 1 << 20
"""Weights of a feed-forward matrix below which one thread is as fast as two."""


def load(
    path: str | os.PathLike[str] | None = None, *, progress: bool | Progress | None = None, **options: Any
) -> Model:
    """Open a model folder, quantized or not.

    Args:
        path: a folder, or a name in the model store; None is the shipped demo model in bfloat16.
        progress: True says on stderr how far a load is that takes longer than a second; so does None in a notebook,
            and nothing in a script. A function is called with what is being done and the share of it, 0 to 1.
        options: fields of `RuntimeOptions`: device, vram ("8GB"), context, threads, kv, exact, cache_policy (a name,
            or a class of your own: `mixq.experts.own_policy`), ...

    Returns:
        A `Model`; its weights are mapped, not read.

    Raises:
        ModelFileError: no such folder, or one that is damaged or of an unknown kind.
        UsageError: an unknown option or value.
        DoesNotFitError: the context asked for needs more memory than there is.
    """
    checked = RuntimeOptions.from_kwargs(**options)
    folder = paths.demo_source() if path is None else paths.resolve_model(os.fspath(path))
    return Model(folder, checked, progress=choose_progress(progress, folder.name))


class Model(Experiments):
    """A model that answers.

    Attributes:
        folder: the open model folder, or weights made up in memory.
        config: its shape.
        options: as given to `load`.
        context: positions of a conversation: what was asked for, at most the model's own maximum.
        notes: one line for each option that could not be followed, and why.
        kv_cache_bytes: that the context takes, of all sequences.
    """

    def __init__(
        self,
        folder: Path | Weights,
        options: RuntimeOptions | None = None,
        *,
        progress: Progress = lambda what, share: None,
    ) -> None:
        self.options = _with_own_policy(options or RuntimeOptions())
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
        self._said: deque[str] = deque()
        self.placement = place(
            self.folder,
            self.options,
            threads=self.threads,
            kv_cache=self.kv_cache_bytes,
            rows=min(PREFILL_CHUNK, self.context),
            say=self._said.append,
            progress=progress,
        )
        if self.placement.tier is not None:
            weakref.finalize(self, self.placement.tier.close)  # its thread keeps it alive
        self.notes = (*self.placement.notes, *_notes(self.options, self.context))
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
        self._last: Done | None = None
        self._gap_said = False
        progress("", 1.0)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer.

        Raises:
            PromptError: the folder has none; such a model takes token ids only.
        """
        if self.folder.tokenizer_path is None:
            raise PromptError(
                f"{printable(self.folder.path)} has no tokenizer.model or tokenizer.json; it takes ids, not text.",
                hint="Copy tokenizer.model from the original checkpoint into the folder.",
            )
        return open_tokenizer(self.folder.path, self._tokenizer_config)

    @functools.cached_property
    def _tokenizer_config(self) -> TokenizerConfig:
        return TokenizerConfig.read(self.folder.path)

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """The chat format: what the options say, else what the model was made for; `none` for a base model."""
        if self.options.template is not None:
            return get_template(self.options.template)
        if self.folder.tokenizer_path is None:
            return choose_template(None, None)
        raw = self.folder.raw_config if isinstance(self.folder, ModelFolder) else {}
        chosen = choose_template(self.folder.path, self.tokenizer, self._tokenizer_config, raw)
        if chosen.note is not None:
            self._said.append(chosen.note)
        return chosen

    @property
    def is_chat(self) -> bool:
        """False for a base model: it completes texts, and has no chat format."""
        return self.template.is_chat

    @functools.cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the folder's own, and those of the chat format."""
        ends = self.template.end_ids(self.tokenizer) if self.folder.tokenizer_path is not None else ()
        return tuple(i for i in dict.fromkeys((*self.folder.eos_token_ids, *ends)) if i < self.config.vocab_size)

    def new_kv_cache(self) -> KVCache:
        """Return an empty KV cache of this model's context.

        Raises:
            DoesNotFitError: no memory is left for it.
        """
        return KVCache(self.config, self.context, self._kv_dtype, self.placement.allocate_rows)

    def new_session(self) -> Session:
        """Begin a conversation whose KV cache is kept between turns."""
        return Session(self)

    def use_this_thread(self) -> None:
        """Prepare the thread that is going to run the model, where it is not the one that loaded it."""
        torch.set_num_threads(self.threads if self.placement.host_kernels.uses_torch_threads else 1)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the tokens of a text with the begin token in front, or the ids as they are.

        Raises:
            PromptError: an empty text, or a model without a tokenizer.
        """
        if not isinstance(prompt, str):
            return list(prompt.tolist() if isinstance(prompt, Tensor | np.ndarray) else prompt)
        text_ids = self.tokenizer.encode(prompt)
        if not text_ids:
            raise PromptError("The prompt is empty.", hint="Give some text.")
        return [*self.tokenizer.begin_ids, *text_ids]

    def encode_chat(self, messages: Messages) -> list[int]:
        """Return the prompt that asks for the next reply of a conversation; see `chat`."""
        return self.template.encode(self.tokenizer, messages)

    def task(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        continues_text: bool,
        grammar: GrammarSpec | None = None,
        prompt_logprobs: int | None = None,
        show_experts: bool = False,
    ) -> Task:
        """Return what is to be answered, checked against this model.

        Args:
            prompt_ids: the whole prompt.
            params: how to choose and when to stop.
            continues_text: keep the space in front of the first word (completion), or take it off (a reply).
            grammar, prompt_logprobs, show_experts: see `Task`.

        Raises:
            PromptError: the prompt is empty, too long for the context, or has an id outside of the vocabulary.
            UsageError: stop texts or a grammar for a model without a tokenizer; a grammar that cannot be followed; a
                token outside of the vocabulary in logit_bias.
        """
        has_text = self.folder.tokenizer_path is not None
        if not has_text and (params.stop or grammar is not None):
            raise UsageError("stop texts and grammars need a tokenizer, and the folder has none.")
        check_prompt(prompt_ids, self.context, self.vocab_size)
        if params.logit_bias and max(params.logit_bias) >= self.vocab_size:
            raise UsageError(f"logit_bias has token {max(params.logit_bias)}; the vocabulary has {self.vocab_size}.")
        decoder = StreamDecoder(self.tokenizer, strip_leading_space=not continues_text) if has_text else None
        if has_text and not continues_text:
            params = replace(params, stop=(*params.stop, *self.template.stops))
        return Task(
            list(prompt_ids),
            params,
            self.eos_token_ids,
            self.vocab_size,
            decoder,
            self._grammars.compile(grammar) if grammar is not None else None,
            prompt_logprobs,
            show_experts,
        )

    @functools.cached_property
    def vocab_size(self) -> int:
        """Tokens that may be drawn. Rows beyond the tokenizer's vocabulary are padding, and would have no text."""
        if self.folder.tokenizer_path is None:
            return self.config.vocab_size
        return min(self.config.vocab_size, self.tokenizer.vocab_size)

    @functools.cached_property
    def _grammars(self) -> GrammarCompiler:
        return GrammarCompiler(self.tokenizer, self.vocab_size, self.eos_token_ids)

    def notices(self) -> Iterator[str]:
        """Yield the lines that have come up since the last call, for the user to see."""
        while self._said:
            yield self._said.popleft()

    def memory_gap(self) -> str | None:
        """Return what to say, once, where the process has taken more RAM than was planned for it; else None.

        For programs that hold one model and little else: what a notebook has in memory besides is not told apart.
        """
        gap = None if self._gap_said else self.placement.gap(resident_memory())
        self._gap_said = self._gap_said or gap is not None
        return gap

    def note_answer(self, done: Done) -> None:
        """Keep the statistics of the last answer for `stats`."""
        self._last = done

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
        events = self.new_session().answer(self.encode(prompt), continues_text=True, **sampling)
        return events if stream else last_event(events)

    @overload
    def chat(self, messages: Messages, *, stream: Literal[True] = ..., **sampling: Any) -> Iterator[Event]: ...
    @overload
    def chat(self, messages: Messages, *, stream: Literal[False], **sampling: Any) -> Done: ...
    def chat(self, messages: Messages, *, stream: bool = True, **sampling: Any) -> Iterator[Event] | Done:
        """Answer a conversation in the model's chat format (`template`).

        Args:
            messages: `Message`s or dicts with role (system, user, assistant) and content, a user's last.
            stream, sampling: as for `generate`.

        Raises:
            PromptError: roles out of order, an empty message, a conversation too long for the context, or a base model,
                which does not chat.
        """
        events = self.new_session().chat(messages, **sampling)
        return events if stream else last_event(events)

    def close(self) -> None:
        """End the threads that copy and read ahead; the model is not used any more."""
        self.placement.close()

    def stats(self) -> dict[str, Any]:
        """Return sizes, and the statistics of the last answer, as plain data.

        Returns:
            A dict of
            * model, context (positions), weights_bytes, kv_cache_bytes, device, kernels, threads;
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
            "last": self._last.stats.as_dict() if self._last is not None else None,
        }

    def __repr__(self) -> str:
        return describe.as_line(self)

    def _repr_html_(self) -> str:
        return describe.as_html(self)


def last_event(events: Iterator[Event]) -> Done:
    """Read an answer to its end and return the `Done` event."""
    for event in events:
        if isinstance(event, Done):
            return event
    raise AssertionError("generate ends with Done")


def _with_own_policy(options: RuntimeOptions) -> RuntimeOptions:
    """Look at a user's cache policy before anything is opened."""
    return options if options.own_policy is None else replace(options, own_policy=own_policy(options.own_policy))


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
