"""The names of columns in statements. A timestamp is stored under `<name>_utc` (see the package's docstring)."""

from services.core.dataset import Column


def quoted(name: str) -> str:
    return f"`{name}`"


def stored_name(column: Column) -> str:
    """Return the quoted name of the column that is stored for a column of the description."""
    return quoted(f"{column.name}_utc" if column.kind == "timestamp" else column.name)
