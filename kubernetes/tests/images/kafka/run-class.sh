#!/bin/bash
# Every script of Kafka: the name by which this file is called selects the class, as in Kafka's own scripts. These
# variables are read: KAFKA_HEAP_OPTS, KAFKA_JVM_PERFORMANCE_OPTS, KAFKA_LOG4J_OPTS, KAFKA_OPTS, CLASSPATH.
set -euo pipefail

heap="-Xmx256m"
case $(basename "$0") in
    kafka-storage.sh) class=kafka.tools.StorageTool ;;
    kafka-server-start.sh) class=kafka.Kafka heap="-Xms512m -Xmx512m" ;;
    kafka-topics.sh) class=org.apache.kafka.tools.TopicCommand ;;
    kafka-configs.sh) class=kafka.admin.ConfigCommand ;;
    kafka-broker-api-versions.sh) class=org.apache.kafka.tools.BrokerApiVersionsCommand ;;
    kafka-metadata-quorum.sh) class=org.apache.kafka.tools.MetadataQuorumCommand ;;
    kafka-consumer-groups.sh) class=org.apache.kafka.tools.consumer.group.ConsumerGroupCommand ;;
    *) class=$1 && shift ;;
esac
# shellcheck disable=SC2086 - each variable holds several options
exec java ${KAFKA_HEAP_OPTS:-$heap} ${KAFKA_JVM_PERFORMANCE_OPTS:--XX:+UseG1GC} \
    ${KAFKA_LOG4J_OPTS:--Dlog4j2.configurationFile=/opt/kafka/config/log4j2.properties} ${KAFKA_OPTS:-} \
    -cp "/opt/kafka/libs/*${CLASSPATH:+:$CLASSPATH}" "$class" "$@"
