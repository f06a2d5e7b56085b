"""Keeps the stores fit while they are written and read: the lake's files merged, rollups kept, old days dropped."""
