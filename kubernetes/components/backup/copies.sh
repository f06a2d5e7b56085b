# Read by the scripts of the backups.

# Name of the copy that is made now. It is sorted by time, and no other run has the same.
name=$(date -u +%Y-%m-%dT%H%M%S)-$HOSTNAME

# begin FOLDER COUNT: make room in FOLDER for one more copy, so that COUNT are kept. Deleting comes before copying, so
# that a full volume gets room. It counts copies, so that backups that fail for weeks do not delete the good ones. One
# run at a time: the lock ends with the script.
begin() {
    mkdir -p "$1"
    exec 9>"$1/.lock"
    flock 9
    find "$1" -mindepth 1 -maxdepth 1 -name '*.part*' -exec rm -rf {} +
    old=$(find "$1" -mindepth 1 -maxdepth 1 -name '[0-9]*' | sort -r | tail -n "+$2")
    for copy in $old; do
        rm -rf "$copy"
    done
}
