#!/bin/sh
# Build the two images of the pipeline with docker, podman or buildah, whichever is there, and load them into k3s if this
# machine runs it: `make images`. On another machine, write them to files by `make images TO=folder`, and there run
# `k3s ctr images import FILE`.
set -eu
cd "$(dirname "$0")/../.."
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
to=${TO:-}

if docker info >/dev/null 2>&1; then
    build() { docker build --file "$2" --tag "$1" .; }
    save() { docker save --output "$2" "$1"; }
elif command -v podman >/dev/null; then
    build() { podman build --file "$2" --tag "$1" .; }
    save() { podman save --format docker-archive --output "$2" "$1"; }
elif command -v buildah >/dev/null; then
    build() { buildah build --file "$2" --tag "$1" .; }
    save() { buildah push "$1" "docker-archive:$2:$1"; }
else
    echo "One of docker (with its daemon running), podman and buildah is needed to build images" >&2
    exit 1
fi

folder=${to:-$(mktemp -d)}
mkdir -p "$folder"
[ -n "$to" ] || trap 'rm -rf "$folder"' EXIT
for name in services spark_jobs; do
    # With the registry that Kubernetes adds to a short name, so that containerd finds the image by it.
    image=docker.io/log-pipeline/$(echo "$name" | tr _ -):$version
    build "$image" "$name/Dockerfile"
    if [ -n "$to" ] || command -v k3s >/dev/null; then
        rm -f "$folder/$name.tar"
        save "$image" "$folder/$name.tar"
    fi
    if command -v k3s >/dev/null; then
        k3s ctr images import "$folder/$name.tar"
    else
        echo "built $image; this machine has no k3s to load it into"
    fi
done
