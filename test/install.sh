#!/bin/sh
# Installs the Debian packages given as arguments, unless they are there.
#
# Does nothing, and needs no rights, when all are installed. Otherwise it needs
# root, or sudo that asks no question, and says what to run when it has neither.
# Services that come with a package (tor, nginx) are not started: the tests and
# the demo run their own copies.
set -eu

missing=
for package in "$@"; do
	status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
	[ "$status" = "install ok installed" ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
	echo "Needed and not here:$missing (names of Debian packages). Install them with this system's own tool." >&2
	exit 1
fi

as_root=
if [ "$(id -u)" != 0 ]; then
	if ! sudo -n true 2>/dev/null; then
		echo "Needed and not here:$missing. Run: sudo apt-get update && sudo apt-get install$missing" >&2
		exit 1
	fi
	as_root="sudo -n"
fi

echo "Installing$missing"

# policy-rc.d is how Debian is told not to start services on installation.
# One that is there already is the owner's and stays as it is.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	trap '$as_root rm -f "$policy"' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM
	printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
	$as_root chmod 755 "$policy"
fi

$as_root apt-get update -q
# shellcheck disable=SC2086 # a list of words
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
