"""Maintenance of the rollups that are not kept up to date by their store: those in PostgreSQL.

`services/core/rollups.py` plans queries; `services/stores/postgres` and `services/stores/clickhouse` hold the SQL.
"""
