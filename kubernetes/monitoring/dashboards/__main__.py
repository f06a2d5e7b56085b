"""Writes the JSON of all dashboards into a folder: by default ../grafana, from which Grafana is provisioned."""

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from kubernetes.monitoring.dashboards import footprints, hosts, ingest, lake, overview, queries, stores

_BOARDS = (overview, ingest, stores, lake, queries, footprints, hosts)
_FOLDER = Path(__file__).parents[1] / "grafana"


def main(folder: Path) -> None:
    for board in _BOARDS:
        name = board.__name__.rpartition(".")[2]
        built = board.build().build()
        for number, panel in enumerate(built.panels or (), 1):
            panel.id_val = number
        text = json.dumps(built, cls=JSONEncoder, indent=1, sort_keys=True)
        (folder / f"{name}.json").write_text(f"{text}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else _FOLDER)
