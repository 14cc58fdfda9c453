"""The flags that several commands share, as annotated types.

Contract: a flag of a model or of sampling can also be set as MIXQ_<FLAG> in the environment and as a key of the config
file (`settings`); a flag on the command line wins. Values are checked where they are used (`RuntimeOptions`,
`SamplingParams`), so that the command line and Python refuse the same things in the same words.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mixq.config import CACHE_POLICIES, DEVICES, KV_DTYPES, MISS_MODES, TEMPLATES

ENVIRONMENT = "MIXQ_"


def flag(name: str, text: str, metavar: str | None = None) -> Any:
    """Return a flag that the environment can set too."""
    variable = ENVIRONMENT + name.removeprefix("--").replace("-", "_").upper()
    return typer.Option(name, help=text, metavar=metavar, envvar=variable, show_envvar=False)


def complete_model(incomplete: str) -> list[str]:
    """Return the store's names that begin so, for shell completion; the shell itself adds files where none does."""
    from mixq.formats.store import names

    return [name for name in names() if name.startswith(incomplete)]


ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A model folder, or a name in the model store. Left out: the demo model.",
        envvar="MIXQ_MODEL",
        show_envvar=False,
        autocompletion=complete_model,
    ),
]
FolderArgument = Annotated[
    str,
    typer.Argument(metavar="DIR", help="A model folder, or a name in the model store.", autocompletion=complete_model),
]

Device = Annotated[str, flag("--device", "Where to compute: sim is a GPU that the CPU plays.", "|".join(DEVICES))]
Vram = Annotated[str | None, flag("--vram", "GPU memory to use, such as 8GB.  [default: what is free]", "SIZE")]
Ram = Annotated[str | None, flag("--ram", "Memory to use, such as 24GB.  [default: what is free]", "SIZE")]
Context = Annotated[
    int, flag("--context", "Tokens that prompt and reply may have together, up to the model's maximum.", "N")
]
Threads = Annotated[int | None, flag("--threads", "CPU threads.  [default: physical cores, 1 for a small model]", "N")]
Kv = Annotated[str, flag("--kv", "Storage of the KV cache.", "|".join(KV_DTYPES))]
Miss = Annotated[
    str, flag("--miss", "An expert that is not in GPU memory: compute it on the CPU, or copy it.", "|".join(MISS_MODES))
]
CachePolicy = Annotated[str, flag("--cache-policy", "Which expert leaves GPU memory.", "|".join(CACHE_POLICIES))]
Quota = Annotated[
    str | None, flag("--quota", "Share the layers' places in GPU memory as a file of mixq replay says.", "FILE")
]
Template = Annotated[
    str | None,
    flag("--template", "Chat format; none completes texts.  [default: the model's own]", "|".join(TEMPLATES)),
]
Seed = Annotated[int | None, flag("--seed", "Same seed, same text.  [default: a new one each time]", "N")]

Temperature = Annotated[
    float | None, flag("--temperature", "0 takes the likeliest token.  [default: the model's, else 0.7]", "X")
]
TopK = Annotated[int | None, flag("--top-k", "Draw among the K likeliest tokens; 0 for all.", "K")]
TopP = Annotated[
    float | None,
    flag("--top-p", "Draw among the tokens that reach probability P.  [default: the model's, else 0.95]", "P"),
]
MinP = Annotated[float | None, flag("--min-p", "Drop tokens less likely than P times the likeliest.", "P")]
RepetitionPenalty = Annotated[
    float | None, flag("--repetition-penalty", "Above 1: tokens that were there already get less likely.", "X")
]
MaxTokens = Annotated[int | None, flag("--max-tokens", "End the reply after N tokens.", "N")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="Text that ends the reply; may be given again.")
]
System = Annotated[str | None, flag("--system", "System text, put in front of the first message.", "TEXT")]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No figures on standard error.")]
TextFile = Annotated[
    Path, typer.Option("--text", help="UTF-8 text.", metavar="FILE", exists=True, dir_okay=False, readable=True)
]


def given(**values: Any) -> dict[str, Any]:
    """Return the values that were given; None means left out."""
    return {name: value for name, value in values.items() if value is not None}
