# ClickHouse writes the backup itself. This pod has the same volume mounted. The client takes the password from
# CLICKHOUSE_PASSWORD.
set -eu
. /etc/backup/copies.sh
begin /backups 3
clickhouse-client --host=clickhouse --user=logpipe --query="BACKUP DATABASE default TO File('/backups/$name.part.zip')"
mv -T "/backups/$name.part.zip" "/backups/$name.zip"
ls -l /backups
