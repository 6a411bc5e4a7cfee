#!/bin/sh
# Runs the root of an image as a container would with --read-only and --user:
# nothing can be written but what is mounted for the state. Runs
# in namespaces of its own.
#
#   image.sh ROOT FOLDER
set -eu
root=$1 dir=$2

ip link set lo up
mount --bind "$root" "$dir"
mount -t tmpfs -o mode=700,uid=65532,gid=65532 none "$dir/var/lib/turbotunnel"
mount -o remount,bind,ro "$dir"
chroot --userspec=65532:65532 "$dir" /usr/bin/turbotunnel-client -version
chroot --userspec=65532:65532 "$dir" /usr/bin/turbotunnel-server -state-dir /var/lib/turbotunnel 127.0.0.1:8080 127.0.0.1:9 &
server=$!
for i in $(seq 300); do
	if curl -s -o /dev/null http://127.0.0.1:8080/; then
		kill $server
		wait $server
		cat "$dir/var/lib/turbotunnel/turbo_bridgeline.txt"
		echo passed
		exit
	fi
	kill -0 $server
	sleep 0.2
done
exit 1
