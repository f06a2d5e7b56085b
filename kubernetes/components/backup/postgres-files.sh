# All files of the server, with the log that makes them consistent.
set -eu
mkdir -p /backups/postgres-files
folder=/backups/postgres-files/$(date -u +%Y-%m-%dT%H%M)
pg_basebackup --pgdata="$folder.part" --format=tar --gzip --wal-method=stream --checkpoint=fast --no-password
mv "$folder.part" "$folder"
find /backups/postgres-files -mindepth 1 -maxdepth 1 -mtime +28 -exec rm -r {} +
ls -l "$folder"
