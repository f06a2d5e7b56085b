"""Streams of messages: Kafka, and the broker in memory that the tests hold to it."""
