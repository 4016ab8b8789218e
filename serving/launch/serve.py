"""`canvas-fm serve`: early validation, then BentoML's supervisor and worker."""

from __future__ import annotations

import errno
import http.client
import ipaddress
import logging
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from canvas_fm.data.dataset.dataset_addresses import volume_path
from canvas_fm.errors import CanvasError
from canvas_fm.files.option_sets import takes
from canvas_fm.files.shipped import find
from serving.api.middleware.auth import read_keys
from serving.core.volumes.remote_volumes import pin
from serving.launch.bento.supervisor import by_name, private_control, private_folder, temporary_files_in
from serving.launch.spare_processes import spares_when_loaded
from serving.observe.tracing import check_traces
from serving.protocol.serve_flags import HostOptions, ServedVolume, ServeOptions, WorkerOptions
from serving.protocol.settings import Limits, ServedReview, ServiceSettings

logger = logging.getLogger(__name__)


@takes(ServeOptions)
def serve(
    model: str | Path,
    volumes: Mapping[str, str | Path | Mapping[str, Any] | ServedVolume] | None = None,
    *,
    models: Mapping[str, str | Path] | None = None,
    refiners: Mapping[str, str | Path] | None = None,
    indexes: Mapping[str, str | Path] | None = None,
    name: str = "",
    limits: Limits | None = None,
    announce: Callable[[str], None] | None = None,
    **options: Any,
) -> None:
    """Serve a model, and volumes by name, over HTTP until SIGTERM or Ctrl-C; call it in the main thread.

    It is an encoder or a detector, `name` what it is called where that is not its folder's name; `models` are
    further ones, `refiners` what judges candidates (by models that are served or shipped),
    `indexes` what may be searched, each by name. A volume may be remote, `https://…` or `s3://…`, on a host
    of `allow_remote` (see `serving.core.volumes.remote_volumes.pin`); in place of a path
    `{"path": …, "c": 1}` is one with options of `Volume.open`.

    `announce` is called with the service's address once it is ready. All processes have ended when this
    returns. Raises CanvasError where the port is taken, or something cannot be served.
    """
    opts = ServeOptions.of(**options)
    settings = settings_of(
        model,
        ServedVolume.named(volumes or {}),
        models={name: find("model", path) for name, path in (models or {}).items()},
        refiners={name: find("model", path) for name, path in (refiners or {}).items()},
        indexes=indexes or {},
        limits=limits or Limits(),
        options=opts,
        name=name,
    )
    address = _address(opts.host)
    port = free_port(address, opts.port)
    if not ipaddress.ip_address(address).is_loopback and opts.keys is None:
        logger.warning(
            "serving on %s: whoever reaches this port can use the service; ask for keys with --keys", address
        )
    folder = private_folder()
    try:
        settings = settings.model_copy(update={"turns": str(folder)})
        _run(settings, folder, address, port, opts, announce)
        failure = folder / "failure.txt"
        if failure.exists():
            raise CanvasError(failure.read_text(encoding="utf-8"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def settings_of(
    model: str | Path,
    volumes: Mapping[str, ServedVolume],
    *,
    models: Mapping[str, str | Path],
    refiners: Mapping[str, str | Path],
    indexes: Mapping[str, str | Path],
    limits: Limits,
    options: HostOptions,
    name: str = "",
) -> ServiceSettings:
    """Settings of a worker, with absolute paths, since it runs in its own folder.

    Raises CanvasError for what is not there, for names and origins that are none, and for remote volumes that
    may not be read.
    """
    for root in options.roots:
        if not Path(root).is_dir():
            raise CanvasError(f"the folder to allow is not there: {root}")
    for origin in options.origins:
        if not re.fullmatch(r"https?://[A-Za-z0-9.-]+(:\d+)?", origin):
            raise CanvasError(f"{origin!r} is no origin of a web page; it looks like https://lab.example")
    if options.traces is not None:
        check_traces(options.traces)
    folder = find("model", model).resolve()
    paths = {name: served.path for name, served in volumes.items()}
    remote, pinned = pin(paths, options.allow_remote)
    paths = {name: path if name in remote else str(volume_path(path)) for name, path in paths.items()}
    places = _named("volume", paths, remote)
    named = {
        "models": _named("model", models),
        "refiners": _named("refiner", refiners),
        "indexes": _named("index", indexes),
    }
    name = name or (folder.parent.name if folder.name in ("encoder", "detector") else folder.name)
    if name in models:
        raise CanvasError(f"two models are called {name!r}; give the second one another name")
    opened = {name: served.model_copy(update={"path": places[name]}) for name, served in volumes.items()}
    typed = {field: getattr(options, field) for field in WorkerOptions.model_fields}
    typed |= {"roots": [str(Path(root).resolve()) for root in options.roots]}
    typed |= {"jobs": None if options.jobs is None else str(Path(options.jobs).resolve())}
    rest: dict[str, object] = {
        "model": str(folder),
        "name": name,
        "volumes": opened,
        "pinned": pinned,
        "limits": limits,
    }
    if isinstance(options, ServeOptions):
        rest["workers"] = options.workers
    rest["reviewed"] = _reviewed(options, volumes)
    rest |= {"keys": {} if options.keys is None else read_keys(options.keys), "supervisor": os.getpid()}
    return ServiceSettings.model_validate({**named, **typed, **rest})


def _reviewed(options: HostOptions, volumes: Mapping[str, ServedVolume]) -> ServedReview | None:
    """The review of `--review VOLUME=CANDIDATES`; CanvasError for what is not there."""
    if options.review is None:
        if options.labels is not None:
            raise CanvasError("--labels goes with --review VOLUME=CANDIDATES")
        return None
    volume, equals, candidates = options.review.partition("=")
    if not equals or volume not in volumes:
        names = ", ".join(sorted(volumes)) or "none"
        raise CanvasError(
            f"--review {options.review!r} was given; expected VOLUME=CANDIDATES with one of --volume: {names}"
        )
    if isinstance(options, ServeOptions) and options.workers > 1:
        raise CanvasError(
            f"a review is written by one process; --workers {options.workers} was given, give 1"
        )
    path = Path(candidates)
    if not path.is_file():
        raise CanvasError(f"the candidates to review are not there: {candidates}")
    labels = Path(options.labels or path.with_name(f"{path.stem}.labels.csv"))
    return ServedReview(volume=volume, candidates=str(path.resolve()), labels=str(labels.resolve()))


def _named(
    kind: str, paths: Mapping[str, str | Path], remote: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Absolute paths by name, addresses for what is remote; CanvasError for a name that is none, and for what
    is not there.
    """
    out: dict[str, str] = {}
    for name, path in paths.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise CanvasError(f"the {kind} name {name!r} may hold letters, digits, '.', '_' and '-'")
        if remote and name in remote:
            out[name] = remote[name]
            continue
        if not Path(path).exists():
            raise CanvasError(f"the {kind} {name} is not there: {path}")
        out[name] = str(Path(path).resolve())
    return out


def _address(host: str) -> str:
    """IP address of a host name, as BentoML requires."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as problem:
        raise CanvasError(f"the host {host!r} is unknown: {problem.strerror}") from problem


def free_port(address: str, port: int, wait_s: float = 5.0) -> int:
    """The port, or a free one for 0; CanvasError if unavailable.

    One in use is waited for: the service before this one may be ending.
    """
    end, reported = time.monotonic() + wait_s, False
    while True:
        try:
            return _bound_once(address, port)
        except OSError as problem:
            if problem.errno != errno.EADDRINUSE or time.monotonic() > end:
                raise _cannot_bind(address, port, problem) from problem
        if not reported:
            logger.warning("port %d on %s is in use; waiting up to %.0f s for it", port, address, wait_s)
            reported = True
        time.sleep(0.1)


def _bound_once(address: str, port: int) -> int:
    """Port that a socket could bind, closed again; OSError if it could not."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OverflowError as problem:
            raise CanvasError(
                f"port {port} is out of range; ports go from 1 to 65535, 0 takes a free one"
            ) from problem
        return int(probe.getsockname()[1])


def _cannot_bind(address: str, port: int, problem: OSError) -> CanvasError:
    if problem.errno == errno.EADDRINUSE:
        return CanvasError(
            f"port {port} on {address} is in use; choose another with --port, or 0 for a free one"
        )
    return CanvasError(f"cannot listen on {address} port {port}: {problem.strerror}")


def _run(
    settings: ServiceSettings,
    folder: Path,
    address: str,
    port: int,
    opts: ServeOptions,
    announce: Callable[[str], None] | None,
) -> None:
    path = folder / "settings.json"
    path.write_text(settings.model_dump_json(), encoding="utf-8")
    environment = {
        "CANVAS_FM_SERVICE": str(path),
        "BENTOML_HOME": str(folder / "bentoml"),  # else it makes ~/bentoml
        "BENTOML_DO_NOT_TRACK": "True",
    }
    private = private_control(folder, settings.limits.stopping_s, spares_when_loaded(folder, opts.spares))
    with _environment(environment), temporary_files_in(folder), private:
        from bentoml.exceptions import BentoMLException

        # BentoML says where it listens on stdout, before it is ready; `announce` does that.
        logging.getLogger("bentoml.serve").addFilter(lambda record: record.levelno >= logging.WARNING)
        service = by_name(opts.workers)
        service.working_dir = str(folder)
        if announce is not None:
            url = f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
            threading.Thread(target=_when_ready, args=(address, port, announce, url), daemon=True).start()
        try:
            service.serve_http(host=address, port=port)
        except OSError as problem:
            raise _cannot_bind(address, port, problem) from problem
        except BentoMLException as problem:
            raise CanvasError(f"the service could not start: {problem}") from problem


def _when_ready(address: str, port: int, announce: Callable[[str], None], url: str) -> None:
    while True:
        connection = http.client.HTTPConnection(address, port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return announce(url)
        except (OSError, http.client.HTTPException):
            pass  # not listening yet
        finally:
            connection.close()
        time.sleep(0.1)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
