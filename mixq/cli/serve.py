"""`mixq serve`: the model over HTTP, for the clients of OpenAI, Mistral and Ollama, and a page for the browser."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixq.cli import options, output
from mixq.cli.flag_groups import takes_groups
from mixq.config import RuntimeOptions
from mixq.errors import DoesNotFitError, StorageError, UsageError, printable

if TYPE_CHECKING:
    from mixq.engine.model import Model
    from mixq.server.engine_host import EngineHost

MOST_QUEUED = 4096
KEY_BYTES = 4096

Host = Annotated[
    str, options.flag("--host", "Address to listen on; any but this machine's own needs a key.", "ADDRESS")
]
Port = Annotated[int, options.flag("--port", "Port to listen on; 0 takes a free one.", "N")]
ApiKey = Annotated[
    str | None,
    options.flag("--api-key", "Key that clients must send. Better in the environment: all users see flags.", "KEY"),
]
ApiKeyFile = Annotated[Path | None, options.flag("--api-key-file", "File whose first line is the key.", "FILE")]
CorsOrigin = Annotated[
    list[str] | None,
    typer.Option("--cors-origin", metavar="ORIGIN", help="Site whose pages may use the server; may be given again."),
]
AllowedHost = Annotated[
    list[str] | None,
    typer.Option("--allowed-host", metavar="NAME", help="Further name of this server; may be given again."),
]
Alias = Annotated[
    list[str] | None,
    typer.Option("--alias", metavar="NAME", help="Further name of the model in requests; may be given again."),
]
Sequences = Annotated[
    int, options.flag("--sequences", "Answers at once, up to 8; each has a KV cache of a whole context.", "N")
]
Queue = Annotated[int, options.flag("--queue", "Requests that may wait; more are told to come back later.", "N")]
Reuse = Annotated[
    bool,
    typer.Option("--prefix-reuse/--no-prefix-reuse", help="Take over what a kept conversation has in common."),
]


@takes_groups()
def serve(
    model: options.ModelArgument = None,
    *,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    cors_origin: CorsOrigin = None,
    allowed_host: AllowedHost = None,
    alias: Alias = None,
    sequences: Sequences = 4,
    queue: Queue = 64,
    prefix_reuse: Reuse = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No access log.")] = False,
    runtime: options.Runtime,
) -> None:
    """Serve a model to programs and to the browser.

    OpenAI's interface is at /v1, Ollama's at /api, and a page to chat with at /. Ctrl-C stops it.
    """
    key = _key(api_key, api_key_file)
    origins = tuple(_origin(each) for each in cors_origin or ())
    _check_numbers(port, queue)
    from mixq.server.guard import Settings, is_loopback

    if not is_loopback(host) and key is None:
        raise UsageError(
            f"--host {printable(host)} lets other machines in, so the server needs a key.",
            hint="Set MIXQ_API_KEY, or give --api-key-file FILE.",
        )
    if "*" in origins and key is None:
        raise UsageError("--cors-origin '*' lets every web page in, so the server needs a key.")
    from mixq.cli.loading import load_model
    from mixq.server import run
    from mixq.server.app import create_app
    from mixq.server.engine_host import EngineHost

    def load(chosen: Mapping[str, Any]) -> Model:
        try:
            return load_model(model, RuntimeOptions.from_kwargs(**options.given(**chosen)))
        except DoesNotFitError as error:
            hint = f"{error.hint or ''} Each of --sequences has a KV cache of its own: fewer need less."
            raise DoesNotFitError(error.message, hint=hint.strip()) from error

    name = "demo" if model is None else Path(model).name or Path(model).resolve().name
    with run.bind(host, port) as bound:
        engine = EngineHost(
            load,
            options.given(**asdict(replace(runtime, sequences=sequences))),
            name=name,
            aliases=alias or (),
            queue=queue,
            reuse=prefix_reuse,
            say=output.warn,
        )
        engine.load()
        settings = Settings(host, key, origins, tuple(allowed_host or ()))
        app = create_app(engine, settings, log=(lambda _: None) if quiet else output.note)
        _announce(engine, run.address_of(bound), key is not None)
        run.serve(app, engine, bound)
    output.note("Stopped.")


def _key(flag: str | None, file: Path | None) -> str | None:
    """Return the key, and take it out of the environment: no child process needs it."""
    os.environ.pop("MIXQ_API_KEY", None)
    if file is None:
        key = flag
    elif flag is not None:
        raise UsageError("A key and a file with a key are given; give one of them.")
    else:
        try:
            with file.open("rb") as opened:
                line = opened.read(KEY_BYTES).partition(b"\n")[0]
            key = line.decode("ascii").strip()
        except OSError as error:
            raise StorageError(f"{printable(file)} cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError:
            key = ""
    if key is None:
        return None
    if not (key and key.isascii() and key.isprintable() and " " not in key):
        raise UsageError("The key must be of ASCII letters, digits and signs, without spaces.")  # and is not shown
    return key


def _origin(text: str) -> str:
    from urllib.parse import urlsplit

    parts = urlsplit(text)
    bare = parts.scheme in ("http", "https") and parts.netloc and not (parts.path or parts.query or parts.fragment)
    if text != "*" and not bare:
        raise UsageError(
            f"--cors-origin {printable(text)!r} is no origin.", hint="Write it as https://example.org, without a path."
        )
    return text


def _check_numbers(port: int, queue: int) -> None:
    for flag, value, low, high in (("--port", port, 0, 65535), ("--queue", queue, 0, MOST_QUEUED)):
        if not low <= value <= high:
            raise UsageError(f"{flag} is {value}; it must be from {low} to {high}.")


def _announce(host: EngineHost, address: str, with_key: bool) -> None:
    """Say what is served, where, and how to try it."""
    model = host.engine.model
    has_text = model.folder.tokenizer_path is not None
    chat = has_text and model.is_chat
    form = f"chat format {model.template.name}" if chat else "a base model: it completes texts"
    talk = output.talk()
    talk.print(f"Serving {printable(host.name)} at {address}", style="bold")
    talk.print(f"{form}, context {model.context}, {host.engine.batcher.sequences} answers at once")
    if chat:
        talk.print(f"In the browser: {address}/")
    path, body = _example(chat)
    key = ' -H "Authorization: Bearer $MIXQ_API_KEY"' if with_key else ""
    talk.print(f"Try it: curl {address}{path}{key} -d '{body}'")
    talk.print(f"OpenAI's clients: base_url {address}/v1. Mistral's and Ollama's: {address}. Ctrl-C stops.")


def _example(chat: bool) -> tuple[str, str]:
    import json

    document: dict[str, Any] = {"prompt": "Hello my name is", "max_tokens": 20}
    if chat:
        document = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    return ("/v1/chat/completions" if chat else "/v1/completions"), json.dumps(document)
