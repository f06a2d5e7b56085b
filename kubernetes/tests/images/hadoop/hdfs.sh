#!/bin/bash
# The subcommands of `hdfs` that the manifests use. These variables are read: HADOOP_CONF_DIR, HADOOP_LOG_DIR,
# HADOOP_HEAPSIZE_MAX, HADOOP_OPTS, HDFS_NAMENODE_OPTS, HDFS_DATANODE_OPTS, HADOOP_CLASSPATH.
set -euo pipefail

command=$1 && shift
options=${HADOOP_OPTS:-}
case $command in
    namenode) class=org.apache.hadoop.hdfs.server.namenode.NameNode options+=" ${HDFS_NAMENODE_OPTS:-}" ;;
    datanode) class=org.apache.hadoop.hdfs.server.datanode.DataNode options+=" ${HDFS_DATANODE_OPTS:-}" ;;
    dfs) class=org.apache.hadoop.fs.FsShell options+=" ${HADOOP_CLIENT_OPTS:-}" ;;
    dfsadmin) class=org.apache.hadoop.hdfs.tools.DFSAdmin options+=" ${HADOOP_CLIENT_OPTS:-}" ;;
    getconf) class=org.apache.hadoop.hdfs.tools.GetConf ;;
    *) echo "hdfs: this stand-in has no subcommand $command" >&2 && exit 64 ;;
esac
heap=${HADOOP_HEAPSIZE_MAX:-}
# shellcheck disable=SC2086 - each variable holds several options
exec java ${heap:+-Xmx$heap} $options -Dhadoop.log.dir="${HADOOP_LOG_DIR:-/opt/hadoop/logs}" \
    -cp "$HADOOP_CONF_DIR:/opt/hadoop/share/*:/opt/hadoop/share${HADOOP_CLASSPATH:+:$HADOOP_CLASSPATH}" "$class" "$@"
