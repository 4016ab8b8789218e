from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import serving.launch.bento.supervisor as supervisor


class _Arbiter:
    """What Circus' arbiter does with its one exclusive command."""

    def __init__(self, watchers: list, endpoint: str, pubsub_endpoint: str, **options: Any) -> None:
        self.watchers, self.options, self.sockets = watchers, options, {}
        self.loop = asyncio.get_running_loop()
        self._restarting, self._exclusive_running_command = False, None
        self.stopped = 0

    async def manage_watchers(self) -> None:
        assert self._exclusive_running_command is None, "Circus raises a ConflictError"
        self._exclusive_running_command = "manage_watchers"
        await asyncio.sleep(0.2)
        self._exclusive_running_command = None

    def stop(self) -> None:
        assert self._exclusive_running_command is None, "Circus raises a ConflictError"
        self.stopped += 1


def _arbiter(folder: Path, more: int = 0) -> Any:
    watchers = [SimpleNamespace(graceful_timeout=30, numprocesses=1)]
    made = supervisor._private(_Arbiter, lambda: folder, 5.0, lambda: more)
    return made(watchers, "tcp://a", "tcp://b", check_delay=10)


def test_workers_are_checked_every_second_at_least(tmp_path: Path) -> None:
    """BentoML gives 10 s, which a killed worker would wait for before it is replaced."""

    async def live() -> None:
        assert _arbiter(tmp_path).options["check_delay"] <= 1

    asyncio.run(live())


def test_a_signal_to_end_during_a_check_ends_the_service_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LateConnections", lambda sockets: None)

    async def live() -> None:
        arbiter = _arbiter(tmp_path)
        check = asyncio.create_task(arbiter.manage_watchers())
        await asyncio.sleep(0.01)
        arbiter.stop()
        assert arbiter.stopped == 0
        await check
        async with asyncio.timeout(60):
            while not arbiter.stopped:
                await asyncio.sleep(0.01)
        assert arbiter.stopped == 1

    asyncio.run(live())


def test_a_check_during_another_command_waits_for_the_next_one(tmp_path: Path) -> None:
    async def live() -> None:
        arbiter = _arbiter(tmp_path, more=1)
        arbiter._exclusive_running_command = "arbiter_start_watchers"
        await arbiter.manage_watchers()
        assert arbiter.watchers[0].numprocesses == 1

    asyncio.run(live())
