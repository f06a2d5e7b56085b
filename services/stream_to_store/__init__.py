"""The consumer that takes a dataset's topic into a store, exactly once."""
