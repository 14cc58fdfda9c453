"""The console script: commands, and exit codes of failures.

Contract: the exit codes are 0 done, 1 failed, 2 usage, 3 bad model file, 4 does not fit, 5 disk or network, 130
interrupted (143: `mixq quantize` by SIGTERM); a failure that a user can cause or repair shows no traceback. Importing
this module, and `mixq --help`, import neither torch nor numpy nor rich: commands import what they need when they run.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NoReturn, TextIO

import typer

from mixq.cli import (
    bench,
    chat,
    doctor,
    evaluate,
    export,
    list_models,
    plan,
    plot,
    pull,
    quantize,
    replay,
    rm,
    run,
    serve,
    show,
    suite,
    trace,
    verify,
)
from mixq.cli.settings import ModelCommand
from mixq.errors import DoesNotFitError, MixqError, StorageError, UsageError, printable

INTERRUPTED = 130
# What typer raises for a bad command line: click's UsageError, which some versions of typer include.
_CommandLineError: Any = typer.BadParameter.__base__

app = typer.Typer(
    name="mixq",
    help="Run Mixtral 8x7B on the computer you have: quantize it, chat with it.",
    epilog="Flags such as --context and --temperature can also be set as environment variables (MIXQ_CONTEXT) or "
    "as keys of config.toml, in $MIXQ_HOME or else in the user's config folder (on Linux ~/.config/mixq).",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
evaluations = typer.Typer(help="Measure a model's quality.", no_args_is_help=True, rich_markup_mode=None)

app.command("chat", cls=ModelCommand)(chat.chat)
app.command("run", cls=ModelCommand)(run.run)
app.command("serve", cls=ModelCommand)(serve.serve)
app.command("quantize")(quantize.quantize)
app.command("export")(export.export)
app.command("pull")(pull.pull)
app.command("list")(list_models.list_models)
app.command("show")(show.show)
app.command("rm")(rm.rm)
app.command("verify")(verify.verify)
app.command("plan", cls=ModelCommand)(plan.plan)
app.command("trace", cls=ModelCommand)(trace.trace)
app.command("replay")(replay.replay)
app.command("plot")(plot.plot)
app.command("bench", cls=ModelCommand)(bench.bench)
app.command("doctor")(doctor.doctor)
evaluations.command("ppl", cls=ModelCommand)(evaluate.ppl)
evaluations.command("suite", cls=ModelCommand)(suite.suite)
app.add_typer(evaluations, name="eval")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"mixq {version('mixq')}")
        raise typer.Exit


@app.callback()
def global_flags(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Run Mixtral 8x7B on the computer you have: quantize it, chat with it."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit."""
    sys.exit(exit_code(sys.argv[1:] if arguments is None else arguments))


def exit_code(arguments: Sequence[str]) -> int:
    """Run a command line, report a failure, and return the exit code."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except MixqError as error:
        return _report(error, arguments)
    except _CommandLineError as error:
        with _ignoring_failures(sys.stderr):
            error.show()  # with the usage line
        return _print_document(UsageError(error.format_message()), arguments)
    except BrokenPipeError:  # the reader was closed (`mixq ... | head`)
        _drop_rest(sys.stdout)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except MemoryError:
        return _report(
            DoesNotFitError("Not enough memory.", hint="Close other programs, or use a smaller --context or model."),
            arguments,
        )
    except OSError as error:
        place = f"{printable(error.filename)}: " if error.filename is not None else ""
        return _report(StorageError(f"{place}{error.strerror or printable(error)}."), arguments)
    return code


def _run(arguments: Sequence[str]) -> int:
    # Not standalone: typer's own errors come here instead of being printed, and Exit is the value returned.
    try:
        code = app(args=list(arguments), prog_name="mixq", standalone_mode=False)
    except SystemExit as end:  # from typer and rich when the reader was closed, and from shell completion
        code = end.code
    return code if isinstance(code, int) else 0 if code is None else 1


def _report(error: MixqError, arguments: Sequence[str]) -> int:
    from mixq.cli import output

    with _ignoring_failures(sys.stderr):
        output.print_error(error)
    return _print_document(error, arguments)


def _print_document(error: MixqError, arguments: Sequence[str]) -> int:
    """Print the error document where `--json` was given; return the exit code."""
    from mixq.cli import output

    with _ignoring_failures(sys.stdout):
        if "--json" in arguments:
            output.print_json(output.error_document(error))
    return error.exit_code


def _open_closed_streams() -> None:
    """Open the null device for streams that the shell closed (`<&-`, `>&-`), which Python has as None."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  (open to the end)


@contextlib.contextmanager
def _ignoring_failures(stream: TextIO) -> Iterator[None]:
    """Ignore that a report cannot be written: a full disk may be the very failure reported."""
    try:
        yield
        stream.flush()
    except OSError:
        _drop_rest(stream)


def _drop_rest(stream: TextIO) -> None:
    """Redirect the stream to the null device, so that its buffer is not written again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
