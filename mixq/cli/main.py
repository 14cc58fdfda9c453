"""The console script: which commands there are, and how every failure ends.

Contract: `main` returns to the shell with one of the exit codes 0 done, 1 failed, 2 usage, 3 bad model file, 4 will not
fit, 5 disk or network, 130 interrupted; no traceback of a failure that a user can cause or mend reaches the terminal.
Importing this module, and `mixq --help`, import neither torch nor numpy nor rich: commands import what they need when
they run.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from mixq.cli import chat, evaluate, quantize, run, show, verify
from mixq.errors import DoesNotFitError, MixqError, StorageError, printable

INTERRUPTED = 130

app = typer.Typer(
    name="mixq",
    help="Mixtral 8x7B on the computer you have: quantize it, chat with it.",
    epilog="Flags of a model can be set as MIXQ_<FLAG>, or as keys of config.toml in the config folder or $MIXQ_HOME.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
evaluations = typer.Typer(help="Measure a model.", no_args_is_help=True, rich_markup_mode=None)

app.command("chat")(chat.chat)
app.command("run")(run.run)
app.command("quantize")(quantize.quantize)
app.command("show")(show.show)
app.command("verify")(verify.verify)
evaluations.command("ppl")(evaluate.ppl)
app.add_typer(evaluations, name="eval")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"mixq {version('mixq')}")
        raise typer.Exit


@app.callback()
def settings(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Mixtral 8x7B on the computer you have: quantize it, chat with it."""
    from mixq import paths
    from mixq.cli.settings import read_settings

    values = read_settings(paths.config_file())
    context.default_map = {"chat": values, "run": values, "eval": {"ppl": values}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit."""
    sys.exit(exit_code(sys.argv[1:] if arguments is None else arguments))


def exit_code(arguments: Sequence[str]) -> int:
    """Run a command line; report a failure, and return the exit code that belongs to it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except MixqError as error:
        return _report(error, arguments)
    except BrokenPipeError:
        # The reader has gone (`mixq ... | head`). What is left in the buffer must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except MemoryError:
        return _report(DoesNotFitError("There is not enough memory.", hint="Try a smaller --context."), arguments)
    except OSError as error:
        place = f"{printable(error.filename)}: " if error.filename is not None else ""
        return _report(StorageError(f"{place}{error.strerror or printable(error)}."), arguments)
    return code


def _run(arguments: Sequence[str]) -> int:
    try:
        app(args=list(arguments), prog_name="mixq")
    except SystemExit as end:  # typer's way to end, also after a usage error
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


def _report(error: MixqError, arguments: Sequence[str]) -> int:
    from mixq.cli import output

    output.print_error(error)
    if "--json" in arguments:
        output.print_json(output.error_document(error))
    return error.exit_code
