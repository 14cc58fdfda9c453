"""`mixq serve`: serve a model over HTTP, to clients of OpenAI, Mistral and Ollama, and as a web page."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mixq.cli import options, output
from mixq.cli.flag_groups import takes_groups
from mixq.config import RuntimeOptions
from mixq.errors import DoesNotFitError, StorageError, UsageError, printable

if TYPE_CHECKING:
    from mixq.engine.model import Model
    from mixq.server.engine_host import EngineHost

MOST_QUEUED = 4096
KEY_BYTES = 4096
CHAT_EXAMPLE = '{"messages": [{"role": "user", "content": "What is the capital of France?"}]}'
TEXT_EXAMPLE = '{"prompt": "Hello my name is", "max_tokens": 20}'


@takes_groups()
def serve(
    model: options.ModelArgument = None,
    *,
    host: Annotated[
        str, options.flag("--host", "Address to listen on; any but loopback needs an API key.", "ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[int, options.flag("--port", "Port to listen on; 0 chooses a free one.", "N")] = 8080,
    api_key: Annotated[
        str | None,
        options.flag(
            "--api-key",
            "API key that clients must send. Other users of this computer can see flags; MIXQ_API_KEY is safer.",
            "KEY",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, options.flag("--api-key-file", "File whose first line is the API key.", "FILE")
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        options.option("--cors-origin", "Origin whose pages may use the server; can be repeated.", "ORIGIN"),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        options.option(
            "--allowed-host", "Also accept requests to this host name, such as a proxy's; can be repeated.", "NAME"
        ),
    ] = None,
    alias: Annotated[
        list[str] | None,
        options.option("--alias", "Another name of the model in requests; can be repeated.", "NAME"),
    ] = None,
    sequences: Annotated[
        int,
        options.flag(
            "--sequences",
            "Requests that are answered at the same time, up to 8; each reserves KV cache for a whole context.",
            "N",
        ),
    ] = 4,
    queue: Annotated[
        int, options.flag("--queue", "Requests that may wait; more are refused with status 503.", "N")
    ] = 64,
    prefix_reuse: Annotated[
        bool,
        options.option(
            "--prefix-reuse/--no-prefix-reuse", "Reuse the KV cache of earlier requests that start with the same text."
        ),
    ] = True,
    quiet: Annotated[bool, options.option("--quiet", "Write no access log.", short="-q")] = False,
    runtime: options.Runtime,
) -> None:
    """Serve a model over HTTP: OpenAI's API, Ollama's API and a web page.

    OpenAI's API is at /v1, Ollama's at /api, and the web page at /. Ctrl-C stops the server.
    """
    key = _key(api_key, api_key_file)
    origins = tuple(_origin(each) for each in cors_origin or ())
    options.whole_number("--port", port, 0, 65535)
    options.whole_number("--queue", queue, 0, MOST_QUEUED)
    from mixq.server.guard import Settings, is_loopback

    if not is_loopback(host) and key is None:
        raise UsageError(
            f"--host {printable(host)} allows connections from other computers, so the server needs an API key.",
            hint="Set MIXQ_API_KEY, or use --api-key-file FILE.",
        )
    if "*" in origins and key is None:
        raise UsageError(
            "--cors-origin '*' allows every web page, so the server needs an API key.",
            hint="Set MIXQ_API_KEY, or use --api-key-file FILE.",
        )
    from mixq.cli.loading import load_model
    from mixq.server import run
    from mixq.server.app import create_app
    from mixq.server.engine_host import EngineHost

    def load(chosen: Mapping[str, Any]) -> Model:
        try:
            return load_model(model, RuntimeOptions.from_kwargs(**options.given(**chosen)))
        except DoesNotFitError as error:
            hint = f"{error.hint or ''} Each of the --sequences reserves a KV cache; try fewer."
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
    """Return the API key, and remove it from the environment, which child processes inherit."""
    os.environ.pop("MIXQ_API_KEY", None)
    if file is None:
        key = flag
    elif flag is not None:
        raise UsageError("--api-key and --api-key-file are both set.", hint="Use only one of them.")
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
        raise UsageError("The API key must be printable ASCII without spaces.")  # the key itself is not shown
    return key


def _origin(text: str) -> str:
    from urllib.parse import urlsplit

    parts = urlsplit(text)
    bare = parts.scheme in ("http", "https") and parts.netloc and not (parts.path or parts.query or parts.fragment)
    if text != "*" and not bare:
        raise UsageError(
            f"--cors-origin {printable(text)!r} is not an origin.",
            hint="Write it as https://example.org, without a path.",
        )
    return text


def _announce(host: EngineHost, address: str, with_key: bool) -> None:
    """Print what is served, where, and how to try it."""
    model = host.engine.model
    has_text = model.folder.tokenizer_path is not None
    chat = has_text and model.is_chat
    form = f"chat template {model.template.name}" if chat else "a base model, which continues texts"
    talk = output.talk()
    talk.print(f"Serving {printable(host.name)} at {address}", style="bold")
    talk.print(f"{form}, context {model.context}, {host.engine.batcher.sequences} requests at the same time")
    if chat:
        talk.print(f"In the browser: {address}/")
    path, body = ("/v1/chat/completions", CHAT_EXAMPLE) if chat else ("/v1/completions", TEXT_EXAMPLE)
    key = ' -H "Authorization: Bearer $MIXQ_API_KEY"' if with_key else ""
    talk.print(f"Try it: curl {address}{path}{key} -d '{body}'")
    talk.print(f"OpenAI's clients: base_url {address}/v1. Mistral's and Ollama's: {address}. Ctrl-C stops.")
