"""The process that loads a dataset's topic into a store, exactly once."""
