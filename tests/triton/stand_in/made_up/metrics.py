"""Metrics of a model on the server's own page. For one thread only, see `engine`."""

import triton_python_backend_utils as pb_utils

# By name: while a configuration is completed the server has no metrics to name.
COUNTER, GAUGE, HISTOGRAM = "COUNTER", "GAUGE", "HISTOGRAM"


class Metrics:
    """Named series; those of a server that was told to have no metrics go nowhere."""

    def __init__(self) -> None:
        # A series ends with its family.
        self._families = []
        self._series = {}

    def add(self, key: str, name: str, kind: str, help_text: str, labels: dict, **more) -> None:
        self.add_labelled(name, kind, help_text, {key: labels}, **more)

    def add_labelled(self, name: str, kind: str, help_text: str, labels_of: dict, **more) -> None:
        """A family, and a series of it for each key."""
        try:
            kind = getattr(pb_utils.MetricFamily, kind)
            family = pb_utils.MetricFamily(name=name, description=help_text, kind=kind)
            self._families.append(family)
            for key, labels in labels_of.items():
                self._series[key] = family.Metric(labels=labels, **more)
        except pb_utils.TritonModelException as error:
            if "metrics not supported" not in str(error):
                raise

    def set(self, key: str, number: float) -> None:
        if key in self._series:
            self._series[key].set(number)

    def count(self, key: str, number: float) -> None:
        if number and key in self._series:
            self._series[key].increment(number)

    def observe(self, key: str, number: float) -> None:
        if key in self._series:
            self._series[key].observe(number)
