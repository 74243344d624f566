"""The metrics of a run as gauges of Ray, which shows them at every node's metrics endpoint."""

from __future__ import annotations

from collections.abc import Iterable

from ray.util.metrics import Gauge

from finepseudo.metrics import METRICS, Figure


class Gauges:
    """In a process that is connected to a cluster: that of the driver."""

    def __init__(self) -> None:
        self._gauges = {one.name: Gauge(one.name, f"{one.help} [{one.unit}]", one.labels) for one in METRICS}

    def publish(self, figures: Iterable[Figure]) -> None:
        """Show these values until others come or the process ends."""
        for figure in figures:
            self._gauges[figure.metric.name].set(figure.value, figure.labels)
