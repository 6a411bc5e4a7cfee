#!/bin/sh
# The life of the Debian package on a machine: installed, started, updated,
# removed and purged. Runs in namespaces of its own, on a copy of this system's
# root that is thrown away; there is no systemd in it, whose part the script
# plays by what the unit says.
#
#   deb.sh PACKAGE NEWER-PACKAGE FOLDER
set -eu
package=$1 newer=$2 dir=$3

ip link set lo up
mount -t tmpfs none "$dir"
mkdir "$dir/upper" "$dir/work" "$dir/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$dir/root"
mount -t proc proc "$dir/root/proc"
mount --rbind /dev "$dir/root/dev"
cp "$package" "$dir/root/package.deb"
cp "$newer" "$dir/root/newer.deb"
chroot "$dir/root" sh -eu <<'IN'
export DEBIAN_FRONTEND=noninteractive
fail() { echo "FAIL: $*" >&2; exit 1; }
# In the unit stands what systemd would run, and as whom.
unit=/usr/lib/systemd/system/turbotunnel.service
start() {
	user=$(sed -n 's/^User=//p' $unit)
	command=$(sed -n 's/^ExecStart=//p' $unit)
	install -d -m 700 -o "$user" -g "$user" /var/lib/turbotunnel
	. /etc/default/turbotunnel
	[ "$command" != "${command% systemd *}" ] || fail "no socket in $command"
	command=$(echo "$command" | sed 's/ systemd / 127.0.0.1:8080 /')
	eval "exec setpriv --reuid=$user --regid=$user --clear-groups $command" >>/log 2>&1 &
	server=$!
	for i in $(seq 300); do
		if curl -s -o /dev/null http://127.0.0.1:8080/; then return; fi
		kill -0 $server || break
		sleep 0.2
	done
	cat /log
	fail "the server does not serve"
}
stop() { kill $server; wait $server || fail "the server ended with $?"; }
stream() {
	for i in $(seq 100); do
		if [ "$(ncat --recv-only -w 20 127.0.0.1 2000)" = hello ]; then return; fi
		sleep 0.2
	done
	cat /log /client.log
	fail "no stream $1"
}

dpkg -i /package.deb
turbotunnel-server -version
id turbotunnel >/dev/null || fail "no user"
for file in /usr/share/man/man1/turbotunnel-client.1* /usr/share/bash-completion/completions/turbotunnel-server \
	/etc/apparmor.d/abstractions/turbotunnel /usr/share/doc/turbotunnel/copyright; do
	[ -e "$file" ] || fail "$file is missing"
done
systemd-analyze verify $unit /usr/lib/systemd/system/turbotunnel.socket || fail "units"
dpkg --verify turbotunnel

# What tor would start, it finds.
torrc=/usr/share/doc/turbotunnel/torrc.example
for program in $(sed -n 's/^[A-Za-z]*TransportPlugin turbo exec \([^ ]*\).*/\1/p' $torrc); do
	"$program" -version || fail "$torrc names $program"
done
! grep -n /usr/local/bin $torrc || fail "$torrc names what the package has elsewhere"
for page in $(grep -o '(doc/[a-z-]*\.[a-z]*)' /usr/share/doc/turbotunnel/README.md | tr -d '()'); do
	[ -e /usr/share/doc/turbotunnel/$page ] || fail "README.md has a link to $page, which is missing"
done

# The operator's own settings.
sed -i 's/^FORWARD=.*/FORWARD=127.0.0.1:9001/; s/^OPTIONS=.*/OPTIONS="-trusted-proxies 127.0.0.1"/' /etc/default/turbotunnel
cp /etc/default/turbotunnel /before
ncat -l -k 127.0.0.1 9001 --sh-exec 'echo hello' &
start
key=$(sed -n 's/.* key=//p' /var/lib/turbotunnel/turbo_bridgeline.txt)
turbotunnel-client -key "$key" 127.0.0.1:2000 http://127.0.0.1:8080 2>/client.log &
stream "before the update"
cp /var/lib/turbotunnel/turbo_key /key

# An update: the same client goes on, with the server's old key.
dpkg -i /newer.deb
cmp /before /etc/default/turbotunnel || fail "settings were lost"
stop
start
cmp /key /var/lib/turbotunnel/turbo_key || fail "the key was lost"
stream "after the update"
stop

dpkg -r turbotunnel
[ ! -e /usr/bin/turbotunnel-server ] || fail "a program is left"
cmp /key /var/lib/turbotunnel/turbo_key || fail "the key was lost by removal"
cmp /before /etc/default/turbotunnel || fail "settings were lost by removal"
dpkg -P turbotunnel
for left in /var/lib/turbotunnel /etc/default/turbotunnel /etc/apparmor.d/abstractions/turbotunnel; do
	[ ! -e $left ] || fail "$left is left"
done
echo passed
IN
