# One version of each table. A table's log is copied first: the files that it names stay for LOGPIPE_VACUUM_HOURS, so the
# copy must end within that time.
set -eu
hdfs=/opt/hadoop/bin/hdfs
folder=/backups/lake/$(date -u +%Y-%m-%dT%H%M)
for log in $($hdfs dfs -ls -C -d '/lake/*/_delta_log'); do
    table=$(basename "$(dirname "$log")")
    mkdir -p "$folder.part/$table"
    $hdfs dfs -get "$log" "$folder.part/$table/"
    for part in $($hdfs dfs -ls -C "/lake/$table"); do
        [ "$part" = "$log" ] || $hdfs dfs -get "$part" "$folder.part/$table/"
    done
done
mv "$folder.part" "$folder"
find /backups/lake -mindepth 1 -maxdepth 1 -mtime +28 -exec rm -r {} +
ls -l "$folder"
