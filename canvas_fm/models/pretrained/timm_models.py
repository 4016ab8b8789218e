"""Encoders in timm's registry: importing this module registers `canvas_fm`, with shipped models as tags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from canvas_fm.errors import CanvasError
from canvas_fm.files.shipped import DEFAULT_ENCODER, shipped
from canvas_fm.models.encoder.random_encoder import random_encoder
from canvas_fm.models.folder.model_folder import read_kind
from canvas_fm.models.load_model import Encoder, load
from canvas_fm.models.pretrained.torchvision_operators import declare_missing_operators

declare_missing_operators()

from timm.models import generate_default_cfgs, register_model  # noqa: E402

_NAMES = [name for name, folder in shipped("model").items() if read_kind(folder)[0] == "encoder"]
default_cfgs = generate_default_cfgs(
    {
        f"canvas_fm.{name}": {"source": "canvas_fm", "file": name, "num_classes": 0}
        for name in sorted(_NAMES, key=lambda name: name != DEFAULT_ENCODER)
    }
)


@register_model
def canvas_fm(pretrained: bool = False, pretrained_cfg: Any = None, **options: Any) -> Encoder:
    """The encoder `timm.create_model("canvas_fm.NAME", pretrained=True)`: crops to embeddings.

    `NAME` is a shipped encoder or a path to a model's folder. Without `pretrained` the same architecture
    has random weights. It has no classifier: put one's own head on `num_features`.
    """
    options = {key: value for key, value in options.items() if value is not None}
    options.pop("cache_dir", None)
    options.pop("pretrained_cfg_overlay", None)
    if options.pop("num_classes", 0):
        raise CanvasError(
            "canvas_fm has no classifier; leave num_classes out and put a head on it: "
            "nn.Sequential(model, nn.Linear(model.num_features, classes))"
        )
    if options:
        raise CanvasError(f"canvas_fm does not know {', '.join(options)}; it takes pretrained alone")
    encoder = load(_folder(pretrained_cfg), kind="encoder")
    return encoder if pretrained else random_encoder(encoder.config)


def _folder(pretrained_cfg: Any) -> str | Path:
    """A tag (text), or what timm makes of one."""
    if pretrained_cfg is None or isinstance(pretrained_cfg, str):
        return pretrained_cfg or DEFAULT_ENCODER
    stated = pretrained_cfg.get("file") if isinstance(pretrained_cfg, dict) else pretrained_cfg.file
    return str(stated or DEFAULT_ENCODER)
