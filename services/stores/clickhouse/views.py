"""Views on a dataset's table, for people who query it by SQL: the file views/DATASET.sql, where there is one."""

from pathlib import Path

from clickhouse_connect.driver.client import Client

from services.core.dataset import Dataset

_FOLDER = Path(__file__).with_name("views")


def prepare(client: Client, dataset: Dataset) -> None:
    """Create the view of the dataset, unless it is there. The table must exist. Raises the driver's errors."""
    file = _FOLDER / f"{dataset.name}.sql"
    if file.exists():
        client.command(file.read_text())
