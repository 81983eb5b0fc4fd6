#!/bin/sh
# dpkg: remove, upgrade, ...; rpm: 0 for a removal, 1 for an upgrade.
set -e

case "$1" in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl disable --quiet --now drawbridge.service drawbridge-coap.socket drawbridge-mqtt.socket || :
	fi
	;;
esac
