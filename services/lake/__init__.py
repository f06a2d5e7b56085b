"""The lake: a Delta table per dataset on HDFS, and the engines that read and write it."""

NAME = "lake"
"""The store's name, in commands, metrics, errors and the ledger."""
