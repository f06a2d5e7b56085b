"""Rows in by HTTP, on disk in PostgreSQL before the reply, in Kafka soon after."""
