"""Fields that the widgets share: a layer of the viewer, and a model that is shipped or in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from magicgui.widgets import ComboBox, FileEdit
from napari.layers import Image, Points

from canvas_fm.errors import CanvasError
from canvas_fm.files.shipped import shipped
from canvas_fm.models.folder.model_folder import read_kind
from canvas_fm.napari.layers import METADATA

_OTHER = "a folder …"


class LayerChoice(ComboBox):
    """The viewer's layers of a kind, kept up to date; `layer` is the chosen one."""

    def __init__(self, viewer: Any, kind: type[Image] | type[Points], label: str) -> None:
        self._what = label.lower()

        def choices(_: Any) -> list[Any]:
            layers = [each for each in viewer.layers if isinstance(each, kind)]
            return [each for each in layers if not each.metadata.get(METADATA, {}).get("marker")]

        super().__init__(label=label, choices=choices)
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed):
            event.connect(lambda _: self.reset_choices())

    @property
    def layer(self) -> Any:
        if self.value is None:
            raise CanvasError(f"there is no layer for {self._what!r}; open one first")
        return self.value


class ModelChoice:
    """A shipped model of a kind, or another one in a folder: two fields, for a widget to hold."""

    def __init__(self, kind: Literal["detector", "refiner", "encoder"], default: str | None = None) -> None:
        names = [name for name, path in shipped("model").items() if read_kind(path)[0] == kind]
        self.name = ComboBox(label=kind.capitalize(), choices=[*names, _OTHER])
        if default in names:
            self.name.value = default
        self.folder = FileEdit(label="", mode="d", visible=False)
        self.name.changed.connect(lambda value: setattr(self.folder, "visible", value == _OTHER))

    @property
    def widgets(self) -> list[Any]:
        return [self.name, self.folder]

    @property
    def reference(self) -> str | Path:
        """Argument of `load`: a shipped name or a folder."""
        return str(self.name.value) if self.name.value != _OTHER else Path(self.folder.value)
