# Formats the NameNode's volume if it is new. An unfinished format lies in another folder, and is begun again; a folder
# that is there is never formatted.
set -eu
[ -d /data/name ] && exit 0
rm -rf /data/name.part
/opt/hadoop/bin/hdfs namenode -Ddfs.namenode.name.dir=file:///data/name.part -format -nonInteractive
sync
mv /data/name.part /data/name
