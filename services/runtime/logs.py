"""JSON logs on standard error, one object a line; what libraries say by `logging` looks the same."""

import logging
import sys

import stamina.instrumentation
import structlog

_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
_RENDERED: list[structlog.typing.Processor] = [
    structlog.processors.format_exc_info,
    structlog.processors.JSONRenderer(),
]


def configure(process: str, level: str = "INFO") -> None:
    """Call once, first thing in a process; every line then names the process."""
    structlog.configure(
        processors=[*_SHARED, *_RENDERED],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    handler = logging.StreamHandler(sys.stderr)
    formatted = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_RENDERED]
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_SHARED, structlog.stdlib.add_logger_name], processors=formatted
        )
    )
    stamina.instrumentation.set_on_retry_hooks([_log_retry])
    logging.basicConfig(handlers=[handler], level=max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(room=name)
    return logger


def _log_retry(details: stamina.instrumentation.RetryDetails) -> None:
    """In place of stamina's own hooks, which log the arguments of the call and add a metric of their own."""
    get("retries").info("call failed, retrying", reason=str(details.caused_by), seconds=round(details.wait_for, 3))
