set -eu
mkdir -p /backups/redis
file=/backups/redis/$(date -u +%Y-%m-%dT%H%M).rdb
redis-cli -h redis --user backup --rdb "$file.part"
mv "$file.part" "$file"
find /backups/redis -name '*.rdb*' -mtime +7 -delete
ls -l /backups/redis
