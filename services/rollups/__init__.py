"""Rollups: exact counts by minute and by a dataset's groupings, kept beside the rows by the stores that can.

`questions` says what they can answer. In PostgreSQL the `keeper` counts what has been accepted, chunk by chunk; in
ClickHouse each part of a table carries the counts of its own rows.
"""
