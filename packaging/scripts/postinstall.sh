#!/bin/sh
# dpkg: configure OLD-VERSION, abort-*; rpm: 1 for an install, 2 for an upgrade.
set -e

upgrade=no
case "$1" in
configure) [ -z "$2" ] || upgrade=yes ;;
1) ;;
2) upgrade=yes ;;
*) exit 0 ;;
esac

systemd-sysusers drawbridge.conf
systemd-tmpfiles --create drawbridge.conf

if [ -d /run/systemd/system ]; then
	udevadm control --reload 2>/dev/null || :
	systemctl daemon-reload
	if [ "$upgrade" = yes ]; then
		systemctl try-restart drawbridge.service || :
		exit 0
	fi
	systemctl enable --quiet --now drawbridge.service || :
fi
if [ "$upgrade" = no ]; then
	cat <<'TEXT'
Drawbridge listens on this machine alone until you say more:
  1. drawbridge init: a few questions, then it writes /etc/drawbridge/drawbridge.toml
  2. systemctl reload drawbridge
  3. drawbridge status, or http://127.0.0.1:8480
TEXT
fi
