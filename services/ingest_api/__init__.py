"""Rows in by HTTP, on disk in PostgreSQL before the answer, in Kafka soon after."""
