# A dump of the pipeline's database. A name without `.part` is complete.
set -eu
mkdir -p /backups/postgres
file=/backups/postgres/$(date -u +%Y-%m-%dT%H%M).dump
pg_dump --dbname=logpipe --format=custom --file="$file.part"
mv "$file.part" "$file"
find /backups/postgres -name '*.dump*' -mtime +14 -delete
ls -l /backups/postgres
