"""`mixq eval ppl`: perplexity on a text, and the divergence from a reference."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from mixq.cli import options, output
from mixq.cli.flag_groups import takes_groups
from mixq.cli.input import utf8
from mixq.cli.progress import token_progress

if TYPE_CHECKING:
    from mixq.measure.perplexity import PerplexityReport


@takes_groups(without=("quota", "template"))
def ppl(
    text: options.TextFile,
    model: options.ModelArgument = None,
    *,
    reference: Annotated[
        str | None, options.option("--reference", "Compare with this folder, usually the unquantized one.", "DIR")
    ] = None,
    window: Annotated[int | None, options.option("--window", "Tokens per window.  [default: the context]", "N")] = None,
    tokens: Annotated[
        int | None, options.option("--tokens", "Measure the first N tokens.  [default: all]", "N")
    ] = None,
    json: options.Json = False,
    runtime: options.Runtime,
) -> None:
    """Measure perplexity on a text; with --reference, also mean KL divergence and top-1 agreement.

    The text is cut into windows that do not overlap, with a BOS token before each. Each token of the text is scored
    once.
    """
    from mixq.cli.loading import load_model
    from mixq.measure.perplexity import perplexity

    content = utf8(text.read_bytes(), str(text))
    loaded = load_model(model, runtime)
    compared = None if reference is None else load_model(reference, runtime)
    begun = time.perf_counter()
    with token_progress("measuring") as progress:
        report = perplexity(loaded, content, reference=compared, window=window, max_tokens=tokens, progress=progress)
    seconds = time.perf_counter() - begun
    if json:
        paths = {"model": str(loaded.folder.path), "reference": None if compared is None else str(compared.folder.path)}
        output.print_json({**paths, "text": str(text), **report.as_dict(), "seconds": seconds})
    else:
        typer.echo(_lines(report))


def _lines(report: PerplexityReport) -> str:
    cut = f"{report.tokens} tokens in {report.windows} windows of {report.window_tokens}"
    lines = [f"perplexity      {report.perplexity:.4f} ± {report.standard_error:.4f}   ({cut})"]
    if report.comparison is not None:
        other = report.comparison
        ratio = report.perplexity / other.reference_perplexity
        lines += [
            f"reference       {other.reference_perplexity:.4f}   (ratio {ratio:.4f})",
            f"KL divergence   {other.mean_kl:.6f} nats per token, at most {other.max_kl:.4f}",
            f"same top token  {100 * other.top1_agreement:.2f} %",
        ]
    return "\n".join(lines)
