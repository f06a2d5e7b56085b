"""Turns Kafka messages into the rows of a table, and into rejects, in Spark SQL.

The rules are those of `core.kafka_value` for a message and those of `core.line_fields` for a line; the expressions here
are made from their constants. A message or a line that breaks a rule becomes a reject, with the reason.

There is one difference: Spark has no XXH3, so it believes a newer version or more columns of every message whose header
`xxh3` has the form of a hash. A program that writes any 16 hexadecimal digits there can stop the query.
"""

from pyspark.sql import DataFrame

from services.core import kafka_value
from services.core.dataset import CREATED_AT, ID, Column, Dataset
from services.core.ids import MAX_BATCH, MAX_BATCH_ROWS, ROW_BITS
from services.core.instants import DAY
from services.core.line_fields import INSTANTS, LineField, line_fields
from spark_jobs.schema import line_schema

MESSAGE = ("partition", "offset", "key", "value", "headers")  # the columns that are read of Spark's Kafka source

NEWER = "messages with columns that this process does not know, or of a newer version"

_CORRUPT = "_corrupt"  # from_json puts a line that has a value of a wrong type into this field


def lines(messages: DataFrame, dataset: Dataset) -> DataFrame:
    """Return one row for each line: its place in the topic, and its fields in `r`.

    An unloadable message has one NULL line.

    The query fails with NEWER at a message of a newer version or with more columns, which would be lost unnoticed.
    """
    newer = f"problem IS NULL AND has_hash AND columns BETWEEN {len(dataset.columns) + 1} AND {kafka_value.MAX_NUMBER}"
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


def rows(valid_lines: DataFrame, dataset: Dataset) -> DataFrame:
    """Return the rows of valid lines, with the columns of the dataset's table."""
    fields = {field.name: field for field in line_fields(dataset)}
    columns = (CREATED_AT, *dataset.columns)
    values = [f"{_value(column, fields[column.name])} AS `{column.name}`" for column in columns]
    day = f"date_from_unix_date(CAST(r.{CREATED_AT.name} DIV {DAY} AS INT)) AS day"
    return valid_lines.selectExpr(f"r.{ID.name} AS {ID.name}", *values, day)


def rejects(invalid_lines: DataFrame, dataset: Dataset) -> DataFrame:
    """Return the rejects that stand for invalid lines, with the columns of the table of rejects."""
    checks = (f"WHEN NOT coalesce({condition}, false) THEN '{what}'" for what, condition in _checks(dataset).items())
    return invalid_lines.selectExpr(
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


def validity(dataset: Dataset) -> str:
    """Return the condition that a line has to meet to become a row."""
    return f"coalesce({' AND '.join(_checks(dataset).values())}, false)"


def _header(name: str) -> str:
    """Return the expression of the text in a header; NULL if the header is missing."""
    return f"CAST(get(filter(headers, h -> h.key = '{name}'), 0).value AS STRING)"


def _number(name: str) -> str:
    """Return the expression of the number in a header; NULL if the header is missing or is not decimal digits in ASCII.

    `try_cast` alone would accept a sign and spaces, which `kafka_value.decode` does not accept.
    """
    text = _header(name)
    return f"IF({text} RLIKE '[^0-9]', NULL, try_cast({text} AS BIGINT))"


_HASH = _header(kafka_value.HASH_HEADER)
_HAS_HASH = (
    f"coalesce(octet_length({_HASH}) = {kafka_value.HASH_DIGITS} AND {_HASH} RLIKE '{kafka_value.HASH_PATTERN}', false)"
)
_IS_TOO_LONG = f"octet_length(value) > {kafka_value.MAX_VALUE_BYTES}"
# The lines of a value of many megabytes would take many times its memory, so they are counted and not split.
_COUNTED = "octet_length(value) - octet_length(replace(CAST(value AS STRING), '\\n', ''))"

_ENVELOPE = (
    "partition",
    "offset",
    "CAST(key AS STRING) AS key",
    "value",
    f"{_number(kafka_value.CREATED_AT_HEADER)} AS created_at",
    f"{_number(kafka_value.ROWS_HEADER)} AS announced",
    f"{_number(kafka_value.COLUMNS_HEADER)} AS columns",
    f"{_number(kafka_value.VERSION_HEADER)} AS version",
    f"{_HAS_HASH} AS has_hash",
    f"IF({_IS_TOO_LONG}, {_COUNTED}, NULL) AS counted",
    # No line begins after the last newline.
    f"IF({_IS_TOO_LONG}, NULL, split(CAST(substring(value, 1, octet_length(value) - 1) AS STRING), '\\n')) AS lines",
)
_SIZE = "coalesce(counted, size(lines))"
_BATCH_ID = f"try_cast(split_part(key, '{kafka_value.KEY_SEPARATOR}', 1) AS BIGINT)"
_PROBLEM = f"""CASE
    WHEN value IS NULL THEN 'it has no value'
    WHEN key IS NULL OR NOT key RLIKE '{kafka_value.KEY_PATTERN}' OR {_BATCH_ID} > {MAX_BATCH}
        THEN 'its key is not <batch>:<part>'
    WHEN has_hash AND announced IS NOT NULL AND created_at IS NOT NULL
        AND version BETWEEN {kafka_value.VERSION + 1} AND {kafka_value.MAX_NUMBER} THEN raise_error('{NEWER}')
    WHEN created_at IS NULL OR announced IS NULL
        THEN 'a header, {kafka_value.CREATED_AT_HEADER} or {kafka_value.ROWS_HEADER}, is missing or not a number'
    WHEN NOT created_at BETWEEN {INSTANTS.lowest} AND {INSTANTS.highest} THEN 'its created_at {INSTANTS.problem}'
    WHEN substring(value, -1, 1) != X'0A' THEN 'its last line does not end'
    WHEN announced != {_SIZE} THEN 'its header announces another number of lines'
    WHEN {_IS_TOO_LONG} THEN 'its value has more than {kafka_value.MAX_VALUE_BYTES} bytes'
    WHEN {_SIZE} > {MAX_BATCH_ROWS} THEN 'its value has more than {MAX_BATCH_ROWS} lines'
    WHEN NOT is_valid_utf8(CAST(value AS STRING)) THEN 'it is not valid UTF-8'
END"""
_CHECKED = (
    "partition",
    "offset",
    "value",
    f"{_BATCH_ID} AS batch_id",
    "lines",
    f"{_SIZE} AS size",
    "columns",
    "has_hash",
    f"{_PROBLEM} AS problem",
)
# Spark copies these columns for every line of a message. With the whole message among them, 1,000 lines of a large
# message would take hundreds of megabytes.
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
    """Return reason -> condition: a line that does not meet the condition is rejected for that reason."""
    fields = line_fields(dataset)
    checks = {"not a JSON object whose values are of the right types": f"r IS NOT NULL AND r.{_CORRUPT} IS NULL"}
    for field in fields:
        name = f"r.`{field.name}`"
        if field.limits:
            lowest, highest, problem = field.limits
            checks[f"{field.name} {problem}"] = f"{name} BETWEEN {lowest} AND {highest}"
        elif field.required:
            checks[f"{field.name} is missing"] = f"{name} IS NOT NULL"
    for field in fields:
        name = f"r.`{field.name}`"
        if field.max_characters is not None:
            too_long = f"{field.name} has more than {field.max_characters} characters"
            checks[too_long] = f"coalesce(char_length({name}), 0) <= {field.max_characters}"
        if field.pattern is not None:
            checks[f"{field.name} does not match {field.pattern}"] = f"coalesce({name} RLIKE '{field.pattern}', true)"
    return checks


def _value(column: Column, field: LineField) -> str:
    name = f"r.`{field.name}`"
    if column.kind == "timestamp":
        return f"timestamp_micros({name})"
    return name if field.missing is None else f"coalesce({name}, '{field.missing}')"
