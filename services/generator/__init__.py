"""The generator: seeded rows, an open-loop schedule, and a client that knows what became of each row it sent."""
