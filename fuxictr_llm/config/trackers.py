"""The check of `trackers`: names that accelerate knows, of packages that are installed."""

from collections.abc import Iterable

from fuxictr_llm.common.errors import UserError, unknown

OUR_EXTRA = ("tensorboard",)  # installed by an extra of this package, of the tracker's name


def check_trackers(names: Iterable[str]) -> None:
    """Check that each tracker can be used here.

    Raises:
        UserError: accelerate knows no tracker of that name, or its package is not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers  # takes a second, and few runs need it

    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise unknown("tracker", name, LOGGER_TYPE_TO_CLASS, "trackers")
        if not filter_trackers([name], logging_dir="."):
            package = f"'fuxictr-llm[{name}]'" if name in OUR_EXTRA else name
            raise UserError(f"tracker {name!r} is not installed: pip install {package}, or leave it out of trackers")
