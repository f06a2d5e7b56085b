"""From Kafka messages to a table's rows, and to its rejects, in Spark SQL.

A message is sound when its key and headers are those of a batch and it has as many lines as it says; a line is sound
when it is a JSON object with an id, times, and all that its dataset requires. The rest is put aside, with the reason.
"""

from pyspark.sql import DataFrame

from services.core import kafka_value
from services.core.dataset import CREATED_AT, ID, MAX_CATEGORY_CHARACTERS, Column, Dataset
from services.core.ids import MAX_BATCH, MAX_BATCH_ROWS, ROW_BITS
from services.core.instants import DAY, LAST_INSTANT
from spark_jobs.schema import line_schema

MESSAGE = ("partition", "offset", "key", "value", "headers")  # the columns needed of Spark's Kafka source

NEWER = "messages with columns that this process does not know, or of a newer version"

_CORRUPT = "_corrupt"  # where from_json puts a line of which any part is not of its type


def lines(messages: DataFrame, dataset: Dataset) -> DataFrame:
    """A row a line: where it stood, and `r`, what it says. A message refused as a whole has one line, NULL.

    Fails with NEWER at a message that may hold more than is known here: it would be left out in silence.
    """
    newer = f"problem IS NULL AND columns BETWEEN {len(dataset.columns) + 1} AND {kafka_value.MAX_NUMBER}"
    known = f"IF({newer}, raise_error('{NEWER}'), lines) AS lines"
    from_json = f"from_json(line, '{line_schema(dataset)}, {_CORRUPT} STRING', {_JSON_OPTIONS}) AS r"
    return (
        messages.selectExpr(*MESSAGE)
        .selectExpr(*_ENVELOPE)
        .selectExpr(*_CHECKED)
        .selectExpr(*(known if name == "lines" else name for name in _KEPT))
        .selectExpr(*_LINES)
        .selectExpr("*", from_json)
    )


def rows(sound: DataFrame, dataset: Dataset) -> DataFrame:
    """Of sound lines, in the form of the dataset's table."""
    values = [f"{_value(column)} AS `{column.name}`" for column in (CREATED_AT, *dataset.columns)]
    day = f"date_from_unix_date(CAST(r.{CREATED_AT.name} DIV {DAY} AS INT)) AS day"
    return sound.selectExpr(f"r.{ID.name} AS {ID.name}", *values, day)


def rejects(unsound: DataFrame, dataset: Dataset) -> DataFrame:
    """Of lines that are not sound, in the form of the dataset's rejects."""
    checks = (f"WHEN NOT coalesce({condition}, false) THEN '{what}'" for what, condition in _checks(dataset).items())
    return unsound.selectExpr(
        f"'{dataset.topic}' AS topic",
        "partition",
        "offset",
        "IF(problem IS NULL, number, NULL) AS line",
        "batch_id",
        f"IF(shiftright(r.{ID.name}, {ROW_BITS}) = batch_id, r.{ID.name}, NULL) AS id",
        "IF(problem IS NULL, 1, coalesce(size, 0)) AS rows",
        f"coalesce(problem, CASE {' '.join(checks)} END) AS reason",
        "IF(problem IS NULL, CAST(line AS BINARY), value) AS value",
    )


def sound(dataset: Dataset) -> str:
    """The condition on a line."""
    return f"coalesce({' AND '.join(_checks(dataset).values())}, false)"


def _header(name: str) -> str:
    return f"try_cast(CAST(get(filter(headers, h -> h.key = '{name}'), 0).value AS STRING) AS BIGINT)"


_ENVELOPE = (
    "partition",
    "offset",
    "CAST(key AS STRING) AS key",
    "value",
    f"{_header(kafka_value.CREATED_AT_HEADER)} AS created_at",
    f"{_header(kafka_value.ROWS_HEADER)} AS announced",
    f"{_header(kafka_value.COLUMNS_HEADER)} AS columns",
    f"{_header(kafka_value.VERSION_HEADER)} AS version",
    # What follows the last newline is no line.
    "split(CAST(substring(value, 1, octet_length(value) - 1) AS STRING), '\\n') AS lines",
)
_BATCH_ID = f"try_cast(split_part(key, '{kafka_value.KEY_SEPARATOR}', 1) AS BIGINT)"
_PROBLEM = f"""CASE
    WHEN value IS NULL THEN 'it has no value'
    WHEN key IS NULL OR NOT key RLIKE '{kafka_value.KEY_PATTERN}' OR {_BATCH_ID} > {MAX_BATCH}
        THEN 'its key is not <batch>:<part>'
    WHEN version BETWEEN {kafka_value.VERSION + 1} AND {kafka_value.MAX_NUMBER} THEN raise_error('{NEWER}')
    WHEN created_at IS NULL OR announced IS NULL
        THEN 'a header, {kafka_value.CREATED_AT_HEADER} or {kafka_value.ROWS_HEADER}, is missing or not a number'
    WHEN NOT created_at BETWEEN 0 AND {LAST_INSTANT - 1} THEN 'its created_at is not between 1970 and 2100'
    WHEN substring(value, -1, 1) != X'0A' THEN 'its last line does not end'
    WHEN announced != size(lines) THEN 'its header announces another number of lines'
    WHEN NOT is_valid_utf8(CAST(value AS STRING)) THEN 'it is not valid UTF-8'
END"""
_CHECKED = (
    "partition",
    "offset",
    "value",
    f"{_BATCH_ID} AS batch_id",
    "lines",
    "size(lines) AS size",
    "columns",
    f"{_PROBLEM} AS problem",
)
# Every line of a message gets a copy of what is beside the lines: with the whole message, 1,000 lines of a large one
# would be hundreds of megabytes.
_KEPT = ("partition", "offset", "IF(problem IS NULL, NULL, value) AS value", "batch_id", "lines", "size", "problem")
_LINES = (
    "partition",
    "offset",
    "value",
    "batch_id",
    "size",
    "problem",
    "posexplode(IF(problem IS NULL, lines, array(CAST(NULL AS STRING)))) AS (number, line)",
)
_JSON_OPTIONS = f"map('columnNameOfCorruptRecord', '{_CORRUPT}')"


def _checks(dataset: Dataset) -> dict[str, str]:
    """What may be wrong with a line -> the condition that must hold."""
    times = [c.name for c in (CREATED_AT, *dataset.columns) if c.kind == "timestamp"]
    required = [c.name for c in dataset.columns if c.required and c.name not in times]
    return {
        "not a JSON object whose values are of the right types": f"r IS NOT NULL AND r.{_CORRUPT} IS NULL",
        f"{ID.name} is missing or too low": f"r.{ID.name} >= {MAX_BATCH_ROWS}",
        **{f"{name} is not between 1970 and 2100": f"r.`{name}` BETWEEN 0 AND {LAST_INSTANT - 1}" for name in times},
        **{f"{name} is missing": f"r.`{name}` IS NOT NULL" for name in required},
        **{
            f"{c.name} has more than {MAX_CATEGORY_CHARACTERS} characters": (
                f"coalesce(char_length(r.`{c.name}`), 0) <= {MAX_CATEGORY_CHARACTERS}"
            )
            for c in dataset.bounded
        },
    }


def _value(column: Column) -> str:
    name = f"r.`{column.name}`"
    match column.kind:
        case "timestamp":
            return f"timestamp_micros({name})"
        case "number":
            return name
        case "json":
            return f"coalesce({name}, '{{}}')"
    return f"coalesce({name}, '')"
