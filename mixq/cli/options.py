"""The flags that several commands share.

Contract: a flag of a model or of sampling can also be set as MIXQ_<FLAG> in the environment and as a key of config.toml
(`settings`); a flag on the command line wins. `RuntimeOptions` and `SamplingParams` check the values, so that the
command line and Python refuse the same things with the same messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from mixq.cli.flag_groups import Group
from mixq.config import CACHE_POLICIES, DEVICES, KV_DTYPES, MISS_MODES, TEMPLATES, RuntimeOptions
from mixq.errors import Fields, UsageError

ENVIRONMENT = "MIXQ_"
DEFAULTS = RuntimeOptions()


def option(name: str, text: str, metavar: str | None = None, short: str | None = None) -> Any:
    """Return a flag of the command line alone; `short` is its one-letter form."""
    return typer.Option(*filter(None, (name, short)), help=text, metavar=metavar)


def flag(name: str, text: str, metavar: str | None = None) -> Any:
    """Return a flag that the environment can set too."""
    variable = ENVIRONMENT + name.partition("/")[0].removeprefix("--").replace("-", "_").upper()
    return typer.Option(name, help=text, metavar=metavar, envvar=variable, show_envvar=False)


def given(**values: Any) -> dict[str, Any]:
    """Return the flags that were used; None means omitted."""
    return {name: value for name, value in values.items() if value is not None}


def one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    """Return the value of a flag that must be one of these words."""
    return Fields({name: value}, error=UsageError).one_of(name, allowed)


def whole_number(name: str, value: int, low: int, high: int) -> int:
    """Return the value of a flag that must be within these bounds."""
    return Fields({name: value}, error=UsageError).integer(name, low, high)


def complete_model(incomplete: str) -> list[str]:
    """Return the names in the store that start so, for shell completion; without any, the shell completes files."""
    from mixq.formats.store import names

    return [name for name in names() if name.startswith(incomplete)]


ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A model folder, or a name in the model store.  [default: the demo model]",
        envvar="MIXQ_MODEL",
        show_envvar=False,
        autocompletion=complete_model,
    ),
]
FolderArgument = Annotated[
    str,
    typer.Argument(metavar="DIR", help="A model folder, or a name in the model store.", autocompletion=complete_model),
]

Seed = Annotated[int | None, flag("--seed", "Random seed: the same seed gives the same text.  [default: random]", "N")]


def runtime_options(
    device: Annotated[
        str, flag("--device", "Where to compute; sim simulates a GPU.", "|".join(DEVICES))
    ] = DEFAULTS.device,
    vram: Annotated[
        str | None, flag("--vram", "Maximum GPU memory to use, such as 8GB.  [default: what is free]", "SIZE")
    ] = None,
    ram: Annotated[
        str | None, flag("--ram", "Maximum RAM to use, such as 24GB.  [default: 95% of what is free]", "SIZE")
    ] = None,
    context: Annotated[
        int, flag("--context", "Maximum tokens of a conversation, up to the model's limit.", "N")
    ] = DEFAULTS.context,
    threads: Annotated[
        int | None, flag("--threads", "CPU threads.  [default: physical cores; 1 for a small model]", "N")
    ] = None,
    kv: Annotated[str, flag("--kv", "Storage type of the KV cache.", "|".join(KV_DTYPES))] = DEFAULTS.kv,
    miss: Annotated[
        str,
        flag(
            "--miss",
            "What to do with experts that are not in GPU memory: cpu computes them on the CPU, fetch copies them "
            "first, auto chooses.",
            "|".join(MISS_MODES),
        ),
    ] = DEFAULTS.miss,
    cache_policy: Annotated[
        str,
        flag(
            "--cache-policy",
            "Which expert to evict from GPU memory. lru: least recently used; lfu: least often used; static: never "
            "evict; random: any.",
            "|".join(CACHE_POLICIES),
        ),
    ] = DEFAULTS.cache_policy,
    quota: Annotated[
        str | None,
        flag(
            "--quota",
            "File that says how many experts of each layer to keep in GPU memory, written by mixq replay --save-quota.",
            "FILE",
        ),
    ] = None,
    template: Annotated[
        str | None,
        flag(
            "--template", "Chat template; none continues the text.  [default: found in the folder]", "|".join(TEMPLATES)
        ),
    ] = None,
    seed: Seed = None,
) -> RuntimeOptions:
    """Return the checked options that the flags of a model mean."""
    return RuntimeOptions.from_kwargs(**given(**locals()))


@dataclass(frozen=True, slots=True)
class SamplingFlags:
    """The sampling flags; None means omitted."""

    temperature: Annotated[
        float | None,
        flag(
            "--temperature", "Randomness; 0 always takes the most likely token.  [default: the model's, else 0.7]", "X"
        ),
    ] = None
    top_k: Annotated[
        int | None,
        flag("--top-k", "Sample from the K most likely tokens; 0 for all.  [default: the model's, else 0]", "K"),
    ] = None
    top_p: Annotated[
        float | None,
        flag(
            "--top-p",
            "Sample from the smallest set of most likely tokens whose probabilities add up to P.  [default: the "
            "model's, else 0.95]",
            "P",
        ),
    ] = None
    min_p: Annotated[
        float | None,
        flag(
            "--min-p", "Drop tokens less likely than P times the most likely one.  [default: the model's, else 0]", "P"
        ),
    ] = None
    repetition_penalty: Annotated[
        float | None,
        flag(
            "--repetition-penalty",
            "Values above 1 make tokens less likely that have occurred already.  [default: the model's, else 1]",
            "X",
        ),
    ] = None
    max_tokens: Annotated[int | None, flag("--max-tokens", "End the reply after N tokens.", "N")] = None
    stop: Annotated[list[str] | None, option("--stop", "Text that ends the reply; can be repeated.", "TEXT")] = None
    seed: Seed = None

    def over(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Return sampling parameters: the defaults, overridden by the flags that were used."""
        return {**defaults, **given(**asdict(self))}


Runtime = Annotated[RuntimeOptions, Group(runtime_options)]
Sampling = Annotated[SamplingFlags, Group(SamplingFlags)]
System = Annotated[str | None, flag("--system", "System prompt, put before the first message.", "TEXT")]

Json = Annotated[bool, option("--json", "Print one JSON document to standard output.")]
Yes = Annotated[bool, option("--yes", "Answer yes to every question.", short="-y")]
Quiet = Annotated[bool, option("--quiet", "Print no statistics to standard error.", short="-q")]
TextFile = Annotated[
    Path, typer.Option("--text", help="UTF-8 text.", metavar="FILE", exists=True, dir_okay=False, readable=True)
]
