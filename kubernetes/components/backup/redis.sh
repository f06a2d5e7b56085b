set -eu
. /etc/backup/copies.sh
begin /backups/redis 7
copy=/backups/redis/$name.rdb
redis-cli -h redis --user backup --rdb "$copy.part"
mv -T "$copy.part" "$copy"
ls -l /backups/redis
