"""`serve`, `work` and `devices`: the service and what reports to it."""

from __future__ import annotations

import math
import os
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlprune.cli.shared import (
    Json,
    RuntimeName,
    Threads,
    print_json,
    print_line,
    print_table,
    progress,
)

if TYPE_CHECKING:
    from rlprune.service.client import Client

TOKEN_VARIABLE = "RLPRUNE_TOKEN"
"""Where commands find the token: an option would show it in the list of processes."""

TlsCa = Annotated[
    Path | None,
    typer.Option(metavar="FILE.pem", help="Certificate that vouches for the server; turns TLS on."),
]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="URL", help="sqlite:///FILE or postgresql://...; your data folder's."
    ),
]


def _token() -> str | None:
    return os.environ.get(TOKEN_VARIABLE) or None


def _log_to_stderr(*, as_json: bool = False) -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    if as_json:
        from rlprune.service.call_log import JsonLines

        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())


def connect(server: str, tls_ca: Path | None) -> Client:
    """A client of `server`, with the token of the environment."""
    from rlprune.service.client import Client

    return Client(server, token=_token(), tls_ca=tls_ca)


def serve(
    listen: Annotated[str, typer.Option(metavar="HOST:PORT")] = "127.0.0.1:50051",
    store: StoreUrl = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE.pem", help="The server's certificate chain.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE.pem", help="The certificate's private key.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH", help="Policy to serve by that name, as `train` wrote it; repeat."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Answer plan requests over gRPC.

    Beyond loopback it starts only with a certificate and a token, read from RLPRUNE_TOKEN. Ctrl+C
    lets running calls finish and ends with exit code 0. The log goes to stderr, one line a call;
    with --json each line is a JSON object.
    """
    # gRPC's C part prints lines of its own, which callers can cause without limit; read at import.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from rlprune.service.server import leave_what_runs, serve

    policies = {}
    for item in policy or ():
        name, equals, path = item.partition("=")
        if not name or not equals or not path:
            raise typer.BadParameter(f"--policy {item!r} is not NAME=PATH")
        policies[name] = path

    def announce(address: str) -> None:
        if as_json:
            print_json({"listening": address})
        else:
            print_line(f"listening on {address}")

    _log_to_stderr(as_json=as_json)
    serve(listen, store, _token(), tls_cert, tls_key, policies=policies, on_ready=announce)
    leave_what_runs()


def work(
    models: Annotated[
        list[Path] | None, typer.Argument(metavar="[MODEL.onnx...]", hidden=True)
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Who asks for measurements.")
    ] = None,
    runtime: RuntimeName = "ort",
    threads: Threads = 1,
    batch: Annotated[int, typer.Option(min=1, help="Batch of the models measured here.")] = 1,
    once: Annotated[bool, typer.Option("--once", help="End when nothing is left to do.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", hidden=True, help="As measure --isolated; until 0.9.")
    ] = False,
    input_shape: Annotated[list[str] | None, typer.Option("--input-shape", hidden=True)] = None,
    tls_ca: TlsCa = None,
    as_json: Json = False,
) -> None:
    """Measure here what a server's plans need.

    Connects out only, with the token in RLPRUNE_TOKEN. Goes on until interrupted, then gives its
    job back and ends with exit code 0. Models run in a child process: what crashes or hangs the
    runtime is reported, and the work goes on.
    """
    from rlprune.cli.measure import measure
    from rlprune.device.worker import work

    if dry_run and models and server is None:
        return measure(models, runtime, threads, True, input_shape=input_shape, as_json=as_json)
    if server is None or dry_run or models:
        raise typer.BadParameter("give --server HOST:PORT; `measure --isolated` needs none")
    _log_to_stderr()
    with progress() as on_progress:
        finished = work(
            server,
            token=_token(),
            tls_ca=tls_ca,
            runtime=runtime,
            thread_count=threads,
            batch=batch,
            once=once,
            on_progress=on_progress,
        )
    if as_json:
        print_json({"jobs_finished": finished})
    else:
        print_line(f"{finished} jobs finished")


def devices(
    server: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Ask a server, not the local store.")
    ] = None,
    store: StoreUrl = None,
    tls_ca: TlsCa = None,
    as_json: Json = False,
) -> None:
    """List the devices that plans are made for, and how far their predictions can be trusted.

    Error is the half-width of the predictions' 90 % interval; drift, how much slower the device
    runs since its last change; stale, that it has measured too little since.
    """
    from rlprune.reports.devices import device_report
    from rlprune.store import open_store

    if server is not None:
        with connect(server, tls_ca) as client:
            found = client.devices(health=True)
    else:
        from rlprune.planning.health import with_health

        with closing(open_store(store)) as opened:
            found = [with_health(opened, record) for record in opened.devices()]
    reports = [device_report(record) for record in found]
    if as_json:
        print_json(reports)
        return
    if not found:
        print_line(
            "no devices yet: `rlprune plan` measures this machine, `rlprune work` reports it"
        )
        return
    now_sec = time.time()
    columns = ("measurements", "measured", "seen", "error", "drift", "stale", "parked jobs")
    print_table(
        ("device", "runtime", *columns),
        [_device_row(report, now_sec) for report in reports],
        left=2,
    )
    for report in reports:
        for line in report["dropped"]:
            print_line(f"{report['key']}: not used: {line}")


def _device_row(report: dict[str, Any], now_sec: float) -> list[str]:
    error, drift = report["error_ratio"], report["drift_ratio"]
    return [
        report["key"],
        report["runtime"],
        str(report["measurement_count"]),
        _age(report["last_measured_sec"], now_sec),
        _age(report["last_seen_sec"], now_sec),
        "-" if math.isnan(error) else f"{error:.1%}",
        "-" if math.isnan(drift) else f"{drift - 1.0:+.0%}",
        "yes" if report["stale"] else "no",
        str(report["parked_job_count"]),
    ]


def _age(then_sec: float | None, now_sec: float) -> str:
    """How long ago, in the largest unit that counts at least two; clocks may be a little apart."""
    if then_sec is None:
        return "never"
    age_sec = max(now_sec - then_sec, 0.0)
    for unit, unit_sec in (("d", 86400), ("h", 3600), ("min", 60)):
        if age_sec >= 2 * unit_sec:
            return f"{age_sec / unit_sec:.0f} {unit} ago"
    return f"{age_sec:.0f} s ago"
