"""The names of the transformers library, for scripts written for it: change the import, keep the rest.

    from mixq.transformers import AutoModelForCausalLM, AutoTokenizer

Contract: `AutoTokenizer.from_pretrained(path)` returns ids as transformers does, BOS token included, and
`AutoModelForCausalLM.from_pretrained(path)` generates from them with those arguments of `GenerationMixin.generate` that
`CausalLM.generate` lists. Other arguments are refused by name, never ignored. The path is a model folder or a name in
the model store; nothing is downloaded. New code should use `mixq.load`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from mixq.engine.model import Model, load
from mixq.engine.prompting import Messages, Prompting
from mixq.engine.sampling import default_sampling
from mixq.errors import PromptError, UsageError, did_you_mean, printable
from mixq.formats.folder import ModelFolder
from mixq.system import paths
from mixq.text.chat_template import ChatTemplate
from mixq.text.tokenizer import Tokenizer

Path = str | os.PathLike[str] | None
_DEVICES = {None: "auto", "auto": "auto", "cpu": "cpu", "cuda": "cuda", "cuda:0": "cuda"}
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_MODEL_ARGUMENTS = ("device_map", "torch_dtype", "dtype", "load_in_4bit", "load_in_8bit", "low_cpu_mem_usage")
_LONGEST = 2**31 - 1


class AutoModelForCausalLM:
    @classmethod
    def from_pretrained(cls, path: Path = None, **options: Any) -> CausalLM:
        """Open a model folder.

        Args:
            path: a folder or a name in the model store; None is the demo model.
            options: those of `mixq.load`, and device_map ("auto", "cpu", "cuda").
                torch_dtype, dtype, load_in_4bit, load_in_8bit and low_cpu_mem_usage are accepted without effect: the
                folder's schemes decide.
        """
        device_map = options.pop("device_map", None)
        if not isinstance(device_map, str | None) or device_map not in _DEVICES:
            raise UsageError(f"device_map is {printable(repr(device_map))}; choose from auto, cpu, cuda.")
        chosen = {name: value for name, value in options.items() if name not in _MODEL_ARGUMENTS}
        if _DEVICES[device_map] != "auto":
            chosen.setdefault("device", _DEVICES[device_map])
        return CausalLM(load(path, **chosen))


class CausalLM:
    """A model that generates from tensors of token ids.

    Attributes:
        model: the mixq model.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.device = torch.device("cpu")  # where ids go; mixq places the weights

    def generate(
        self,
        input_ids: Tensor | None = None,
        *,
        inputs: Tensor | None = None,
        attention_mask: Tensor | None = None,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        do_sample: bool | None = None,
        pad_token_id: int | None = None,
        **sampling: Any,
    ) -> Tensor:
        """Return prompt and answer, int64 [B, prompt + new tokens]; the end token belongs to the answer.

        Args:
            input_ids: int64 [B, T] or [T]; `inputs` is another name for it.
            attention_mask: [B, T]; ids where it is 0 are ignored.
            max_new_tokens, max_length: of the answer, or of both; neither means to the end of the context.
            do_sample: False is greedy; None follows generation_config.json, and is greedy if that does not have it.
            pad_token_id: fills the shorter rows; the end token by default.
            sampling: temperature, top_k, top_p, min_p, repetition_penalty. The draw follows `torch.manual_seed`.

        Raises:
            PromptError: no ids, or too many for the context.
            UsageError: another argument, or a value out of bounds.
        """
        _refuse("generate", sampling, _SAMPLING, ("max_new_tokens", "max_length", "do_sample", "pad_token_id"))
        prompts = _prompts(input_ids if input_ids is not None else inputs)
        rows = []
        for prompt, ids in zip(prompts, _unmasked(prompts, attention_mask), strict=True):
            limit = _LONGEST if max_length is None else max_length - len(prompt)
            tokens = min(limit, _LONGEST if max_new_tokens is None else max_new_tokens)
            if tokens < 1:
                raise UsageError(f"max_length is {max_length}, but the prompt already has {len(prompt)} tokens.")
            params = self._sampling(do_sample, sampling)
            done = self.model.generate(ids, stream=False, max_tokens=tokens, **params)
            ended = [self._eos] if done.reason == "stop" else []
            rows.append(torch.tensor([*prompt.tolist(), *done.token_ids, *ended]))
        padding = self._eos if pad_token_id is None else pad_token_id
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)

    def eval(self) -> CausalLM:
        """Return the model; it has no training mode."""
        return self

    def to(self, device: object) -> CausalLM:
        """Return the model; its weights stay where `from_pretrained` put them."""
        return self

    @property
    def _eos(self) -> int:
        return self.model.eos_token_ids[0]

    def _sampling(self, do_sample: bool | None, given: Mapping[str, Any]) -> dict[str, Any]:
        asked = dict(self.model.folder.generation_config)
        if do_sample is not None or not isinstance(asked.get("do_sample"), bool):
            asked["do_sample"] = bool(do_sample)
        params = default_sampling(asked)
        if asked["do_sample"]:
            params |= {name: value for name, value in given.items() if value is not None}
            params["seed"] = int(torch.randint(2**63 - 1, ()))
        elif given.get("repetition_penalty") is not None:
            params["repetition_penalty"] = given["repetition_penalty"]
        return params


class AutoTokenizer:
    @classmethod
    def from_pretrained(cls, path: Path = None) -> TensorTokenizer:
        """Open the tokenizer of a model folder, or of a name in the model store; None is the demo model's."""
        folder = ModelFolder.open(paths.demo_source() if path is None else paths.resolve_model(os.fspath(path)))
        prompting = Prompting(folder)
        return TensorTokenizer(prompting.tokenizer, prompting.template)


class Encoding(dict[str, Any]):
    """What a tokenizer returns: `input_ids` and `attention_mask`, as keys and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: object) -> Encoding:
        """Return it unchanged: mixq takes ids in host memory, whatever the device."""
        return self


class TensorTokenizer:
    """A tokenizer that returns tensors.

    Attributes:
        tokenizer: mixq's own.
        template: the chat template of the folder.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.bos_token_id, self.eos_token_id = tokenizer.bos_id, tokenizer.eos_id
        self.pad_token_id: int | None = None

    def __call__(self, text: str | Sequence[str], *, return_tensors: str | None = None, **options: Any) -> Encoding:
        """Return ids with the BOS token in front, and a mask of ones.

        Args:
            text: one text, or several; several need `padding=True`, which puts the padding on the left.
            return_tensors: "pt" for int64 tensors [B, T]; None for lists.
            options: `padding` and `add_special_tokens`.

        Raises:
            UsageError: another option.
        """
        _refuse("tokenizer", options, ("padding", "add_special_tokens"), ("return_tensors",))
        padding, special = options.get("padding", False), options.get("add_special_tokens", True)
        texts = [text] if isinstance(text, str) else list(text)
        begin = self.tokenizer.begin_ids if special else ()
        rows = [[*begin, *self.tokenizer.encode(one)] for one in texts]
        longest = max((len(row) for row in rows), default=0)
        if not padding and any(len(row) < longest for row in rows) and return_tensors is not None:
            raise UsageError("The texts have different lengths.", hint="Use padding=True.")
        missing = [longest - len(row) if padding else 0 for row in rows]
        fill = self.eos_token_id if self.pad_token_id is None else self.pad_token_id
        ids = [[fill] * gap + row for gap, row in zip(missing, rows, strict=True)]
        mask = [[0] * gap + [1] * len(row) for gap, row in zip(missing, rows, strict=True)]
        return _encoding(ids, mask, return_tensors, single=isinstance(text, str))

    def apply_chat_template(
        self, conversation: Messages, *, tokenize: bool = True, return_tensors: str | None = None, **options: Any
    ) -> Any:
        """Return the ids [1, T] (or a list) of a conversation's prompt.

        Args:
            conversation: messages with role and content, a user's last.
            tokenize: must be True; the prompt is ids, not text.
            return_tensors: "pt" for a tensor.
            options: `add_generation_prompt`, which changes nothing here, and `return_dict`.
        """
        _refuse("tokenizer", options, ("add_generation_prompt", "return_dict"), ("return_tensors", "tokenize"))
        if not tokenize:
            raise UsageError("mixq builds chat prompts as ids, not as text.", hint="Omit tokenize=False.")
        ids = self.template.encode(self.tokenizer, conversation)
        encoding = _encoding([ids], [[1] * len(ids)], return_tensors, single=True)
        return encoding if options.get("return_dict", False) else encoding.input_ids

    def decode(self, ids: Tensor | Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of ids [T]; with the names of control tokens unless `skip_special_tokens`."""
        tokenizer = self.tokenizer
        listed = [int(i) for i in ids]
        if skip_special_tokens:
            return tokenizer.decode(listed)
        return "".join(
            "".join(map(tokenizer.token_text, run)) if control else tokenizer.decode(list(run))
            for control, run in groupby(listed, tokenizer.is_control)
        )

    def batch_decode(self, rows: Iterable[Tensor | Iterable[int]], *, skip_special_tokens: bool = False) -> list[str]:
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in rows]


def _refuse(what: str, options: Mapping[str, Any], known: Sequence[str], others: Sequence[str]) -> None:
    """Refuse an unknown option, with a suggestion."""
    for name in options:
        if name not in known:
            near = did_you_mean(name, (*known, *others))
            raise UsageError(f"mixq's {what} does not take {printable(name)!r}.{near}")


def _encoding(ids: list[list[int]], mask: list[list[int]], kind: str | None, *, single: bool) -> Encoding:
    """Return rows as tensors [B, T]; without a kind as lists, those of a single text alone."""
    if kind is None:
        return Encoding(input_ids=ids[0] if single else ids, attention_mask=mask[0] if single else mask)
    if kind != "pt":
        raise UsageError(f"return_tensors is {printable(repr(kind))}; mixq supports 'pt'.")
    return Encoding(input_ids=torch.tensor(ids, dtype=torch.long), attention_mask=torch.tensor(mask, dtype=torch.long))


def _prompts(ids: Tensor | None) -> Tensor:
    if not isinstance(ids, Tensor) or ids.dim() not in (1, 2) or ids.dtype != torch.long:
        raise PromptError("generate takes input_ids, an int64 tensor [B, T].", hint='Use return_tensors="pt".')
    return ids if ids.dim() == 2 else ids[None]


def _unmasked(prompts: Tensor, mask: Tensor | None) -> list[list[int]]:
    if mask is None:
        return [row.tolist() for row in prompts]
    if mask.numel() != prompts.numel():
        raise UsageError(f"attention_mask is {list(mask.shape)}; input_ids is {list(prompts.shape)}.")
    return [row[keep.bool()].tolist() for row, keep in zip(prompts, mask.reshape(prompts.shape), strict=True)]
