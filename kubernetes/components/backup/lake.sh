# One version of each table. A table's log is copied first: the files that it names stay for LOGPIPE_VACUUM_HOURS, so
# the copy must end within that time. A command in the list of `for` may fail unseen, so each list is made before.
set -eu
. /etc/backup/copies.sh
hdfs=/opt/hadoop/bin/hdfs
$hdfs dfs -mkdir -p /lake
logs=$($hdfs dfs -find /lake -name _delta_log)
if [ -z "$logs" ]; then
    echo "the lake has no table yet"
    exit 0
fi
begin /backups/lake 2
copy=/backups/lake/$name
mkdir "$copy.part"
for log in $logs; do
    table=$(dirname "$log")
    case $table in
    /lake/warm-up-*) continue ;;
    esac
    folder=$copy.part/${table#/lake/}
    mkdir -p "$folder"
    $hdfs dfs -get "$log" "$folder/"
    parts=$($hdfs dfs -ls -C "$table")
    for part in $parts; do
        [ "$part" = "$log" ] || $hdfs dfs -get "$part" "$folder/"
    done
done
mv -T "$copy.part" "$copy"
du -s "$copy"
