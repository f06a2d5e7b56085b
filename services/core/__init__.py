"""Values and ports everything else is built from. No I/O; standard library, msgspec and xxhash only."""
