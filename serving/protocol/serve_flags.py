"""Options of `serve`, shared by command line, `serve()` and a worker's settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from canvas_fm.data.volume.volume_flags import VolumeOptions
from canvas_fm.errors import CanvasError
from canvas_fm.files.option_sets import AnySequence, Flag, Positive
from canvas_fm.inference.run_flags import EncoderRun

AnyPath = BeforeValidator(lambda value: os.fspath(value) if isinstance(value, os.PathLike) else value)


class ServedVolume(VolumeOptions):
    """A volume of the service: where it is stored and how it is opened; a path alone is one too."""

    path: Annotated[str, AnyPath]

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str | os.PathLike) else value

    @classmethod
    def named(cls, volumes: Mapping[str, Any]) -> dict[str, ServedVolume]:
        """Options by name from paths or mappings; CanvasError that names an invalid one."""
        out = {}
        for name, value in volumes.items():
            try:
                out[name] = value if isinstance(value, cls) else cls.of(**_as_mapping(value))
            except CanvasError as problem:
                raise CanvasError(f"the volume {name}: {problem}") from problem
        return out

    @property
    def volume_keywords(self) -> dict[str, Any]:
        """The keywords of `Volume.open` that were stated."""
        return {name: value for name, value in self.explicit.items() if name != "path"}


def _as_mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, str | os.PathLike):
        return {"path": value}
    raise CanvasError(f"{value!r:.60} was given; expected a path, or a mapping with path and options")


class WorkerOptions(EncoderRun):
    """Options of a worker, as typed."""

    jobs: Annotated[str | None, AnyPath, Flag("FOLDER")] = Field(
        None,
        description="run jobs (POST /v1/jobs), kept in this folder so that they survive a restart; default "
        "none",
    )
    roots: Annotated[tuple[Annotated[str, AnyPath], ...], AnySequence, Flag("FOLDER", "--root")] = Field(
        (), description="folders below which models and volumes may be added while it runs; default none"
    )
    origins: Annotated[tuple[str, ...], AnySequence, Flag("ORIGIN", "--cors")] = Field(
        (),
        description="web pages of these origins may read the answers, as https://lab.example; default none",
    )
    review: Annotated[str | None, Flag("VOLUME=CANDIDATES")] = Field(
        None,
        description="let candidates of a --volume be reviewed on the page /ui/review/review.html, by the "
        "holders of the keys; default none",
    )
    labels: Annotated[str | None, AnyPath, Flag("LABELS.csv")] = Field(
        None, description="labels that the review writes; default CANDIDATES.labels.csv"
    )
    log: Literal["text", "json"] = Field("text", description="json: a line for each request; default text")
    traces: Annotated[str | None, Flag("URL")] = Field(
        None,
        description="send spans of requests and batches to an OpenTelemetry collector, as "
        "http://127.0.0.1:4318; needs the extra otel; default nowhere",
    )


class HostOptions(WorkerOptions):
    """Options of the service before files are read and hosts resolved."""

    allow_remote: Annotated[tuple[str, ...], AnySequence, Flag("HOST")] = Field(
        (),
        description="hosts whose Zarr stores a --volume may name, read over https without credentials at the "
        "addresses that the name has at the start; they have to be public, unless written out as "
        "HOST[:PORT]=ADDRESS[,ADDRESS]; default none",
    )
    keys: Annotated[str | None, AnyPath, Flag("FILE")] = Field(
        None,
        description="bearer keys, a line `NAME KEY` each, the file readable by you alone; default nobody "
        "is asked",
    )


class ServeOptions(HostOptions):
    """Options of `canvas-fm serve`, beside what it serves."""

    host: Annotated[str, Flag("HOST")] = Field(
        "127.0.0.1", description="default 127.0.0.1: this machine only"
    )
    port: int = Field(3000, description="default 3000; 0 takes a free one")
    workers: Positive = Field(1, description="processes, each with its own copy; default 1")
    spares: Annotated[int, Field(ge=0)] = Field(
        1,
        description="further processes, loaded and waiting to take over from one that was killed, each with "
        "the memory of a worker, started once the service is ready; default 1",
    )
