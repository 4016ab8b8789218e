"""As many processes answer as there are turns; a spare takes over, and runs no jobs before."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from serving.api.app import create_app
from serving.core.core import Core
from serving.launch.bento import bento_service
from serving.launch.spare_processes import Turn, spares_when_loaded
from serving.protocol.settings import ServiceSettings


def turn_in(folder: Path, count: int = 1) -> Turn:
    turn = Turn()
    turn.set_up(str(folder), count)
    return turn


def test_a_spare_waits_until_one_that_answers_ends(tmp_path: Path) -> None:
    first, second, spare = (turn_in(tmp_path, 2) for _ in range(3))
    assert (first.take(), second.take(), spare.take()) == (True, True, False)
    assert (first.take(), spare.is_awaited) == (True, True)

    async def waited() -> None:
        waiting = asyncio.create_task(spare.wait())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        second.end()
        await asyncio.wait_for(waiting, 5)

    asyncio.run(waited())
    assert (spare.has_come, second.take()) == (True, False)


def test_a_service_without_turns_answers_at_once() -> None:
    turn = Turn()
    asyncio.run(turn.wait())
    assert (turn.take(), turn.is_awaited) == (True, False)


def test_spares_are_started_once_after_the_models_are_loaded(tmp_path: Path) -> None:
    more, turn = spares_when_loaded(tmp_path, 2), turn_in(tmp_path)
    assert more() == 0
    turn.loaded()
    assert (more(), more()) == (2, 0)


def test_a_spare_that_cannot_load_ends_nothing_and_tries_again(
    tmp_path: Path, model: Path, monkeypatch
) -> None:
    from serving.core.core import _load

    failures: list[str] = []
    attempts: list[int] = []

    def load(settings: ServiceSettings):
        attempts.append(len(attempts))
        if len(attempts) == 1:
            raise MemoryError("no room now")
        return _load(settings)

    settings = ServiceSettings(model=str(model), jobs=str(tmp_path / "jobs"), device="cpu")
    core = Core(lambda: settings, load=load, on_failure=failures.append)
    go = asyncio.Event()

    async def live() -> None:
        app = create_app(core, go.wait)  # type: ignore[arg-type]
        async with asyncio.timeout(60):
            lifespan = app.router.lifespan_context(app)
            entering = asyncio.create_task(lifespan.__aenter__())
            while core.alive:
                await asyncio.sleep(0.01)
            assert not entering.done()
            go.set()
            await entering
            while not core.ready:
                await asyncio.sleep(0.01)
            assert app.state.jobs is not None
            vectors = await core.embed(core.engine, np.zeros((1, 8, 16, 16), np.float32), None, None, None)
            assert vectors.shape == (1, 48)
            await lifespan.__aexit__(None, None, None)

    asyncio.run(live())
    assert len(failures) == 1
    assert len(attempts) == 2
    monkeypatch.setattr(bento_service, "turn", turn_in(tmp_path))
    bento_service.report_failure("no room now")  # which would ask for settings that nobody wrote


def test_a_spare_runs_no_jobs(tmp_path: Path, model: Path) -> None:
    settings = ServiceSettings(model=str(model), jobs=str(tmp_path / "jobs"), device="cpu")
    core, go = Core(lambda: settings), asyncio.Event()

    async def live() -> None:
        app = create_app(core, go.wait)  # type: ignore[arg-type]
        async with asyncio.timeout(60):
            lifespan = app.router.lifespan_context(app)
            entering = asyncio.create_task(lifespan.__aenter__())
            while not core.ready:
                await asyncio.sleep(0.01)
            assert app.state.jobs is None
            go.set()
            await entering
            assert app.state.jobs is not None
            await lifespan.__aexit__(None, None, None)

    asyncio.run(live())


@pytest.mark.slow
def test_a_killed_worker_is_replaced_in_seconds(serve_command, model: Path) -> None:
    import time

    import httpx
    import psutil

    served = serve_command(str(model), "--port", "0", "--spares", "1")
    address = served.url()

    def answering() -> list[psutil.Process]:
        children = psutil.Process(served.process.pid).children()
        return [each for each in children if any("turn-" in file.path for file in each.open_files())]

    (worker,) = answering()
    end = time.monotonic() + 240
    while served.err.read_text().count("initialized") < 2:
        assert time.monotonic() < end
        time.sleep(0.2)
    time.sleep(5)  # the spare's models
    worker.kill()
    began = time.monotonic()
    assert httpx.get(f"{address}/readyz", timeout=60).status_code == 200
    assert time.monotonic() - began < 5
    assert worker.pid not in {each.pid for each in answering()}
    assert served.stop() == 0
