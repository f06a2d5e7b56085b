"""Accepted rows: committed to PostgreSQL with their ledger row, and published to Kafka by the slots of this process.

Shared by the processes that accept rows.
"""
