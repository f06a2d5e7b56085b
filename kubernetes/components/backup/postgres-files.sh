# All files of the server, with the log that makes them consistent.
set -eu
. /etc/backup/copies.sh
begin /backups/postgres-files 2
copy=/backups/postgres-files/$name
pg_basebackup --pgdata="$copy.part" --format=tar --gzip --wal-method=stream --checkpoint=fast --no-password
mv -T "$copy.part" "$copy"
ls -l "$copy"
