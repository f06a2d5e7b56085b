# The node of a StatefulSet's pod: its id is the pod's number. Formats a new volume; one that is formatted is left as it
# is.
set -eu
configuration=/tmp/server.properties
{
    cat /etc/kafka-node/server.properties
    echo "node.id=${POD_NAME##*-}"
    echo "advertised.listeners=PLAINTEXT://$POD_NAME.kafka-nodes:9092"
    echo "controller.quorum.voters=$QUORUM_VOTERS"
    echo "default.replication.factor=$REPLICATION"
    echo "min.insync.replicas=$MIN_IN_SYNC"
    echo "offsets.topic.replication.factor=$REPLICATION"
    echo "transaction.state.log.replication.factor=$REPLICATION"
    echo "transaction.state.log.min.isr=$MIN_IN_SYNC"
    echo "share.coordinator.state.topic.replication.factor=$REPLICATION"
    echo "share.coordinator.state.topic.min.isr=$MIN_IN_SYNC"
    echo "broker.session.timeout.ms=$SESSION_TIMEOUT_MS"
} >"$configuration"
/opt/kafka/bin/kafka-storage.sh format --ignore-formatted --cluster-id="$KAFKA_CLUSTER_ID" --config="$configuration"
exec /opt/kafka/bin/kafka-server-start.sh "$configuration"
