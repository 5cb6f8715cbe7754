#!/usr/bin/env bash
# The Debian base of the image, made from a Debian mirror: no registry is asked for anything.
#   docker/base-image.sh [TAG]          as root, on Debian or Ubuntu with debootstrap
# MIRROR and SUITE choose another mirror or release; http_proxy is honoured.
set -euo pipefail
tag=${1:-neurofoundry-base:bookworm}
suite=${SUITE:-bookworm}
mirror=${MIRROR:-http://deb.debian.org/debian}
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates,libgomp1 \
  "$suite" "$root" "$mirror"
# Of the building machine, or of no use in a container.
rm -rf "$root"/etc/hostname "$root"/etc/resolv.conf "$root"/var/lib/apt/lists/* \
  "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb "$root"/var/log/* \
  "$root"/usr/share/{doc,man,locale,info}/*
tar --directory "$root" --create . | docker import - "$tag"
