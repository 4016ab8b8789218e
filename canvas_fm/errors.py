"""The errors a caller can meet: each says what was given, what was expected and what to do next."""

from __future__ import annotations


class CanvasError(Exception):
    """A mistake of the caller or of their files: one sentence, exit code 1, 4xx over HTTP."""


class BadInput(CanvasError, ValueError):
    """What a head cannot learn from; a ValueError too, because scikit-learn's tools expect one."""


class DamagedStore(CanvasError):
    """A file on disk is not what was written: names the array, the chunk and the cause."""

    def __init__(self, store: object, array: str, chunk: str, cause: str, hint: str = "") -> None:
        self.store, self.array, self.chunk, self.cause = str(store), array, chunk, cause
        tail = f"; {hint}" if hint else ""
        super().__init__(f"{store}: array {array!r}, chunk {chunk!r}: {cause}{tail}")


class Unreachable(CanvasError):
    """A remote store that does not answer, or not as it should; `passing` where it may later."""

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


class ModelMismatch(CanvasError):
    """Two artefacts that do not belong together: another encoder, voxel size or class of model."""


class MissingExtra(CanvasError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"{purpose} needs {package}: pip install 'canvas-fm[{extra}]'")


class StorageFull(CanvasError):
    """The disk is full; what was there before is untouched."""
