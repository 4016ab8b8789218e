"""`whiten=INDEX`: whitening of embeddings by the cells of a served index."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from canvas_fm.errors import ModelMismatch
from serving.core.core import Core
from serving.core.embed.crops import key_of
from serving.core.search import find_index, read_index
from serving.protocol.errors import Refusal
from serving.protocol.request_options import ReplyOptions

if TYPE_CHECKING:
    from canvas_fm.heads.features.whiten import Whitening
    from canvas_fm.inference.search.index.index import Index


def check_whitening(core: Core, options: ReplyOptions) -> None:
    """Refuse (404, 409, 422) an unknown index, or one of another model, pooling or layer."""
    if options.whiten is None:
        return
    name, index = find_index(core, options.whiten)
    engine = core.engine_for(options.model)
    key = key_of(engine, options.pool, options.layer)
    if len(engine.one_shape(key.pool)) > 1:
        raise Refusal(422, f"pool is {key.pool}, a vector for each patch; an index whitens one vector a crop")
    try:
        index.check_encoder(engine.encoder.sha256)
        index.check_pool(key.pool, key.layer)
    except ModelMismatch as problem:
        raise Refusal(409, f"the index {name!r} does not whiten these: {problem}") from problem


async def whitened(core: Core, vectors: np.ndarray, name: str) -> np.ndarray:
    """Vectors (n, d) whitened by a checked index; its moments are cached."""
    name, index = find_index(core, name)

    def work() -> np.ndarray:
        from canvas_fm.heads.features.whiten import Whitening

        cached: tuple[Index, Whitening] | None = core.whitenings.get(name)
        if cached is None or cached[0] is not index:
            cached = core.whitenings[name] = (index, Whitening(index))
        return cached[1](vectors)

    return await read_index(core, name, work)
