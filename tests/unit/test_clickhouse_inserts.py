"""INSERT statements of clients of the embedded ClickHouse: which have rows behind them, and how long parsing takes."""

from time import process_time

import pytest

from services.local.clickhouse_inserts import parse


@pytest.mark.parametrize(
    ("text", "target", "settings", "form", "rows"),
    [
        ("INSERT INTO a FORMAT CSV\n1\n", "INSERT INTO a", "", "CSV", "1\n"),
        ("\n insert  into a (`x`, y)\nformat\nNative\r\n\0", "insert  into a (`x`, y)", "", "Native", "\0"),
        ("INSERT INTO a FORMAT CSV;1", "INSERT INTO a", "", "CSV", "1"),
        ("INSERT INTO a FORMAT Values (1)", "INSERT INTO a", "", "Values", "(1)"),
        ("INSERT INTO a FORMAT CSV", "INSERT INTO a", "", "CSV", ""),
        ("INSERT INTO a SETTINGS b = 1, c='x' FORMAT CSV\n1", "INSERT INTO a", "SETTINGS b = 1, c='x'", "CSV", "1"),
        ("INSERT INTO a SETTINGS b='x FORMAT y ' FORMAT CSV\n", "INSERT INTO a", "SETTINGS b='x FORMAT y '", "CSV", ""),
        ("INSERT INTO a SETTINGS b='\\' VALUES' FORMAT CSV\n", "INSERT INTO a", "SETTINGS b='\\' VALUES'", "CSV", ""),
        ("INSERT INTO `values` (`a select`) FORMAT CSV\n", "INSERT INTO `values` (`a select`)", "", "CSV", ""),
        ("INSERT INTO a (format, settings) FORMAT CSV\n", "INSERT INTO a (format, settings)", "", "CSV", ""),
        ("INSERT INTO a -- it's mine\nFORMAT CSV\n1", "INSERT INTO a -- it's mine", "", "CSV", "1"),
        ("INSERT INTO a /* FORMAT x ' */FORMAT CSV\n1", "INSERT INTO a /* FORMAT x ' */", "", "CSV", "1"),
    ],
)
def test_the_rows_behind_a_statement(text: str, target: str, settings: str, form: str, rows: str) -> None:
    found = parse(text.encode())
    assert found is not None
    assert (found.target, found.settings, found.format) == (target, settings, form)
    assert bytes(found.rows) == rows.encode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SELECT 1 FORMAT CSV\n",
        "INSERT INTO a VALUES (1)",
        "INSERT INTO a (x) SETTINGS b = 1 VALUES (' FORMAT CSV\n')",
        "INSERT INTO a SELECT 1 FORMAT CSV\n",
        "INSERT INTO a (x) FORMAT",
        "INSERT INTO a SETTINGS b = 'no end FORMAT CSV\n1",
    ],
)
def test_a_statement_without_rows_behind_it(text: str) -> None:
    assert parse(text.encode()) is None


@pytest.mark.parametrize(
    "start", ["", "INSERT ", "INSERT INTO a", "INSERT INTO a SETTINGS b=1", "INSERT INTO a FORMAT "]
)
@pytest.mark.parametrize(
    "piece",
    [
        *(" ", "\n", "'", '"', "`", "\\", "'\\", "\\'", "''", "x", "(", "-", "--", "/*", "/* */", "*", "# ", "=", "\0"),
        *(
            " SETTINGS a= ",
            " SETTINGS",
            " SETTINGS a ",
            "SETTINGS ",
            " FORMAT",
            "FORMAT ",
            " FORMAT a(",
            "INSERT INTO ",
        ),
    ],
)
def test_no_statement_takes_long(start: str, piece: str) -> None:
    for end in ("x", " VALUES (1)", "\n(x) FORMAT CSV\n"):
        started = process_time()
        parse((start + piece * (200_000 // len(piece)) + end).encode())
        assert process_time() - started < 1, end
