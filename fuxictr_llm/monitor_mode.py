"""Whether more or less of what `monitor` names is better."""

import logging
from collections.abc import Mapping
from typing import Any, Literal

Mode = Literal["max", "min"]
LOWER_IS_BETTER = ("logloss", "binary_crossentropy")


def monitored(params: Mapping[str, Any]) -> dict[str, float]:
    """Metrics and their weights, as FuxiCTR adds them up; one alone has weight 1."""
    monitor = params.get("monitor") or "AUC"
    return {monitor: 1.0} if isinstance(monitor, str) else dict(monitor)


def mode_of(params: Mapping[str, Any]) -> Mode | None:
    """What fits the metrics and the signs of their weights; None where they contradict each other."""
    signs = {(weight > 0) != (name in LOWER_IS_BETTER) for name, weight in monitored(params).items() if weight}
    return None if len(signs) != 1 else "max" if signs.pop() else "min"


def chosen_mode(params: Mapping[str, Any]) -> Mode:
    """The settings' own, or where they leave it open what fits; FuxiCTR would take `max` for every metric."""
    return params.get("monitor_mode") or mode_of(params) or "max"


def warn_of_mode(params: Mapping[str, Any], where: str) -> None:
    """Warn where the epoch that is kept is the worst one by a metric that is monitored."""
    fits, given, monitor = mode_of(params), params.get("monitor_mode"), params.get("monitor") or "AUC"
    if fits is None:
        logging.warning(
            "monitor %r of %s adds metrics of which more is better to others of which less is; give the others the "
            "opposite sign",
            monitor,
            where,
        )
    elif given is not None and given != fits:
        logging.warning(
            "monitor_mode %r of %s keeps the epoch with the worst %s; leave it out, or set monitor_mode: %s",
            given,
            where,
            monitor,
            fits,
        )
