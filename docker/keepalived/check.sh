#!/bin/sh
# Asks dotgate three times within a second and fails as soon as two questions in
# a row were not answered. Keepalived starts it every second, if it is through.

well() {
	timeout 0.5 dotgate healthcheck >/dev/null 2>&1
}

well_or_again() {
	well || {
		sleep 0.1
		well
	}
}

well_or_again || exit 1
for _ in 2 3; do
	sleep 0.3
	well_or_again || exit 1
done
