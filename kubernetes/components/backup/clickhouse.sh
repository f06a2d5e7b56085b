# ClickHouse writes the backup itself, into the claim clickhouse-backups, and keeps all: see README.md.
set -eu
name=$(date -u +%Y-%m-%dT%H%M)
clickhouse-client --host=clickhouse --user=logpipe --password="$CLICKHOUSE_PASSWORD" \
    --query="BACKUP DATABASE default TO File('/backups/$name.zip')"
