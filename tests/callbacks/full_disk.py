"""A disk that is full for a while, as the kernel reports it."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The kernel takes what fits below `size` bytes a file and refuses the rest, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def log(logger: Any, rows: list[tuple[dict[str, float], int]]) -> None:
    """As Lightning does: a save after each row."""
    for metrics, step in rows:
        logger.log_metrics(metrics, step)
        logger.save()
