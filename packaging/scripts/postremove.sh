#!/bin/sh
# dpkg: remove, purge, upgrade, ...; rpm: 0 for a removal, 1 for an upgrade.
set -e

case "$1" in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl daemon-reload || :
	fi
	;;
purge)
	if [ -d /var/lib/drawbridge ]; then
		echo "Purging drawbridge deletes /var/lib/drawbridge: messages that wait, certificates and sessions. Keys in a chip stay there."
		rm -rf /var/lib/drawbridge
	fi
	rmdir /etc/drawbridge 2>/dev/null || : # kept where it still holds files of yours
	;;
esac
