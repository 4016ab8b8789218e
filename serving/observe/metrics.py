"""Prometheus metrics of `/metrics`."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


class Metrics:
    """Metrics of requests, batches and cache; made once a process, after BentoML has set their folder."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        _remove_dead_workers()
        self.crops = Counter("canvas_fm_crops", "Crops that went through the encoder")
        self.batch_crops = Histogram(
            "canvas_fm_batch_crops",
            "Crops of one batch",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
        )
        self.compute_seconds = Counter("canvas_fm_compute_seconds", "Time spent in the encoder")
        self.requests = Counter("canvas_fm_requests", "Requests by route and status", ["route", "status"])
        self.seconds = Histogram(
            "canvas_fm_request_seconds",
            "From the headers of a request to the end of its answer",
            ["route"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
        )
        self.queued_crops = Gauge(
            "canvas_fm_queue_crops", "Crops that wait or are computed", multiprocess_mode="livesum"
        )
        self.in_progress = Gauge(
            "canvas_fm_requests_in_progress", "Requests being answered", multiprocess_mode="livesum"
        )

        self._cached = Counter(
            "canvas_fm_cache_lookups", "Crops looked up in the cache of embeddings", ["found"]
        )
        for hit in ("yes", "no"):  # shown before the first one too
            self._cached.labels(hit)
        self._cache_bytes = Gauge(
            "canvas_fm_cache_bytes", "Bytes that the cache holds", multiprocess_mode="livesum"
        )

    @staticmethod
    @cache
    def of_this_process() -> Metrics:
        return Metrics()

    def text(self) -> bytes:
        """All metrics in Prometheus format, summed over workers."""
        from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(REGISTRY)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)

    def cache(self, hits: int, misses: int, held_bytes: int) -> None:
        """Count cache hits and misses; set the cache size."""
        self._cached.labels("yes").inc(hits)
        self._cached.labels("no").inc(misses)
        self._cache_bytes.set(held_bytes)


def _remove_dead_workers() -> None:
    """Remove gauges of killed workers."""
    from prometheus_client.multiprocess import mark_process_dead

    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    for path in Path(folder).glob("gauge_live*_*.db") if folder else ():
        pid = path.stem.rpartition("_")[2]
        if not Path(f"/proc/{pid}").exists() or pid == str(os.getpid()):
            mark_process_dead(pid, folder)
