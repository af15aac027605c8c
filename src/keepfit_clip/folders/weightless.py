"""Model folders with a config and no weights, which a run has: what open_clip warns of there is no trouble."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["warns_of_no_weights", "weights_follow"]

_WARNINGS = re.compile(
    r"Local config loaded, but no CLIP weights found|Model \S+ initialized partially|"
    r"No pretrained weights loaded for model"
)


def warns_of_no_weights(record: logging.LogRecord) -> bool:
    """Whether a line of a log is one of open_clip's warnings that a model has no weights, or not all."""
    return record.levelno == logging.WARNING and _WARNINGS.match(record.getMessage()) is not None


@contextmanager
def weights_follow() -> Iterator[None]:
    """Leaves these warnings out for as long as a model is made whose weights are loaded right after."""
    logger = logging.getLogger()  # open_clip warns by the root logger

    def is_news(record: logging.LogRecord) -> bool:
        return not warns_of_no_weights(record)

    logger.addFilter(is_news)
    try:
        yield
    finally:
        logger.removeFilter(is_news)
