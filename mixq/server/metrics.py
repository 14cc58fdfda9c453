"""/metrics: request counts and the engine's statistics in Prometheus's text format, and the access log.

Contract: one registry per server. Label values come from fixed lists, never from a request: an unknown path counts
as "other". The access log has time, method, path (from the same list), status and seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mixq.server.engine_host import EngineHost
from mixq.system import memory

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
QUIET = ("/health", "/metrics", "/mixq/status")
"""Paths that are polled every second; the access log has only their failures."""

HUNG_UP = 499
"""Status in log and metrics if the client disconnects before the response; nginx's number."""


def _group(path: str) -> str:
    return next((prefix for prefix in ("/page", "/v1/models") if path.startswith(f"{prefix}/")), "other")


class Metrics(Collector):
    """Counters of requests, and the engine's statistics at the time of reading."""

    def __init__(self, host: EngineHost) -> None:
        self._host = host
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "mixq_http_requests", "Requests by path and status.", ["path", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "mixq_http_request_seconds",
            "Seconds from the first byte of a request to the last of its response.",
            ["path"],
            registry=self._registry,
            buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800),
        )
        self._registry.register(self)

    async def reply(self, _http: HttpRequest) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE)

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("mixq_ready", "1 if requests are answered.", float(self._host.state == "ready"))
        resident = memory.resident_memory()
        if resident is not None:
            yield GaugeMetricFamily("mixq_resident_bytes", "Memory of the process.", resident)
        state = self._host.batcher_state()
        if state is None:
            return
        for name, text, gauge in (
            ("queued", "Waiting requests.", state.queued),
            ("running", "Running requests.", state.running),
            ("kept_conversations", "Finished conversations whose KV cache is kept.", state.kept),
            ("kv_positions_in_use", "Positions of the KV caches of running requests.", state.busy_positions),
            ("decode_tokens_per_second", "Of the last seconds, all requests together.", state.decode_tokens_per_second),
            ("expert_hit_rate", "Share of experts found in GPU memory.", state.expert_hit_rate),
        ):
            if gauge is not None:
                yield GaugeMetricFamily(f"mixq_{name}", text, gauge)
        for name, text, count in (
            ("prompt_tokens", "Prompt tokens that were run.", state.prompt_tokens),
            ("cached_tokens", "Prompt tokens found in a kept KV cache.", state.cached_tokens),
            ("decode_tokens", "Tokens generated.", state.decode_tokens),
        ):
            yield CounterMetricFamily(f"mixq_{name}", text, count)
        finished = CounterMetricFamily("mixq_answers", "Answers by the reason of their end.", labels=["reason"])
        for reason, count in state.finished.items():
            finished.add_metric([reason], count)
        yield finished

    def watch(self, app: ASGIApp, paths: Collection[str], log: Callable[[str], None]) -> ASGIApp:
        """Return an application whose requests are counted and logged.

        Args:
            paths: the paths that are used as labels.
            log: called with each line of the access log.
        """

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            status = HUNG_UP

            async def noting_status(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            began = time.perf_counter()
            try:
                await app(scope, receive, noting_status)
            finally:
                path = scope["path"]
                name = path if path in paths else _group(path)
                seconds = time.perf_counter() - began
                self.requests.labels(name, str(status)).inc()
                self.seconds.labels(name).observe(seconds)
                if name not in QUIET or status >= 400:
                    method = scope["method"] if scope["method"] in ("GET", "POST", "OPTIONS", "HEAD") else "other"
                    log(f"{time.strftime('%H:%M:%S')} {method} {name} {status} {seconds:.2f} s")

        return watched
