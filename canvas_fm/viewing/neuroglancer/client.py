"""The viewer itself: the client that the neuroglancer wheel carries and serves, which needs no network."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from canvas_fm.errors import MissingExtra

ONLINE = "https://neuroglancer-demo.appspot.com/"


def need_neuroglancer() -> None:
    """Raise MissingExtra, which names the extra, without the wheel."""
    if find_spec("neuroglancer") is None:
        raise MissingExtra("neuroglancer", "neuroglancer", "opening a view without --export")


class Client:
    """A viewer of the wheel on this machine; `url` shows it, `origin` is what its requests come from."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        import neuroglancer

        self._viewer = neuroglancer.Viewer()
        self._viewer.set_state(neuroglancer.ViewerState(dict(state)))
        self.url = str(self._viewer.get_viewer_url())
        self.origin = "/".join(self.url.split("/")[:3])

    @property
    def state(self) -> dict[str, Any]:
        """The state that the person has arrived at."""
        return dict(self._viewer.state.to_json())
