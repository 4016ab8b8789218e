"""What `/metrics` shows beside BentoML's own figures."""

from __future__ import annotations

from functools import cache


class Meters:
    """Counters of crops and batches. Made once a process, after BentoML has set the metrics folder."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Histogram

        self._crops = Counter("canvas_fm_crops", "Crops that went through the encoder")
        self._batch = Histogram(
            "canvas_fm_batch_crops",
            "Crops of one batch",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
        )
        self._seconds = Counter("canvas_fm_compute_seconds", "Time spent in the encoder")

    @staticmethod
    @cache
    def of_this_process() -> Meters:
        return Meters()

    def batch(self, crops: int, seconds: float) -> None:
        """One batch was computed."""
        self._crops.inc(crops)
        self._batch.observe(crops)
        self._seconds.inc(seconds)
