#!/usr/bin/env bash
# Makes sure that this machine has the base images of the Dockerfiles. A missing one is
# pulled; if no registry can be reached it is made from this machine's Debian mirror and Go
# toolchain, under the same tag.
#
#	docker/base-images.sh            both
#	docker/base-images.sh debian     only debian:bookworm-slim
#
# DEBIAN_MIRROR overrides the mirror that apt uses here.
# PULL_TIMEOUT (seconds, 120) bounds one pull.
set -euo pipefail

readonly debian=debian:bookworm-slim golang=golang:1.26-bookworm

say() { printf 'base-images: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

scratch=
container=
cleanup() {
	[[ -z $container ]] || docker rm --force "$container" >/dev/null 2>&1 || true
	[[ -z $scratch ]] || rm -rf --one-file-system "$scratch"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

have() { docker image inspect "$1" >/dev/null 2>&1; }

pull() {
	say "$1 is missing, pulling it"
	timeout "${PULL_TIMEOUT:-120}" docker pull --quiet "$1" >/dev/null 2>&1
}

# need TOOL PACKAGE
need() {
	command -v "$1" >/dev/null && return
	if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
		die "$1 is missing (Debian package: $2)"
	fi
	say "installing $2"
	{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "$2"; } >/dev/null 2>&1 ||
		die "$1 is missing and apt-get could not install $2"
}

# "URI SUITE COMPONENT" of every bookworm repository that apt uses here.
sources() {
	if [[ -n ${DEBIAN_MIRROR:-} ]]; then
		echo "$DEBIAN_MIRROR bookworm main"
		return
	fi
	# shellcheck disable=SC2016
	apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' 'Component: main' 2>/dev/null |
		grep -E ' bookworm(-updates|-security)? ' | sort -u
}

make_debian() {
	[[ $EUID -eq 0 ]] || die "$debian can be neither pulled nor made: debootstrap wants root"
	need debootstrap debootstrap
	[[ -n ${DEBIAN_MIRROR:-} || -n $(sources) ]] || apt-get -qq update >/dev/null 2>&1 || true
	local repositories mirror
	repositories=$(sources)
	mirror=$(awk '$2 == "bookworm" { print $1; exit }' <<<"$repositories")
	[[ -n $mirror ]] || die "apt knows no mirror of Debian bookworm here; set DEBIAN_MIRROR"

	say "making $debian with debootstrap (a minute or two)"
	local root=$scratch/debian
	debootstrap --variant=minbase bookworm "$root" "$mirror" >"$scratch/debootstrap.log" 2>&1 ||
		{ tail -n 20 "$scratch/debootstrap.log" >&2; die "debootstrap failed"; }

	# As in the official slim image.
	cat >"$root/etc/dpkg/dpkg.cfg.d/docker" <<-'END'
		path-exclude /usr/share/doc/*
		path-exclude /usr/share/man/*
		path-exclude /usr/share/info/*
		path-exclude /usr/share/locale/*
	END
	rm -rf "$root"/usr/share/{doc,man,info,locale}/* "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin
	rm -f "$root"/var/cache/apt/archives/*.deb "$root"/etc/resolv.conf "$root"/etc/hostname
	cat >"$root/usr/sbin/policy-rc.d" <<-'END'
		#!/bin/sh
		exit 101
	END
	chmod +x "$root/usr/sbin/policy-rc.d"
	awk '{ print "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]", $0 }' <<<"$repositories" >"$root/etc/apt/sources.list"
	{
		apt-config dump --format '%f "%v";%n' Acquire::http::Proxy Acquire::https::Proxy
		echo 'APT::Install-Recommends "false";'
		echo 'Acquire::Languages "none";'
	} >"$root/etc/apt/apt.conf.d/docker"

	tar -C "$root" --numeric-owner -c . | docker import --change 'CMD ["bash"]' - "$debian" >/dev/null
	rm -rf --one-file-system "$root"
}

make_golang() {
	command -v go >/dev/null || die "$golang can be neither pulled nor made: no Go toolchain here"
	local version goroot
	version=$(GOTOOLCHAIN=local go env GOVERSION)
	goroot=$(GOTOOLCHAIN=local go env GOROOT)
	[[ $version == go1.26 || $version == go1.26.* ]] || die "$golang can't be made from $version"

	say "making $golang from $version"
	container=$(docker create --network "${BUILD_NETWORK:-bridge}" "$debian" \
		sh -ec 'apt-get -qq update && apt-get -qq install --no-install-recommends ca-certificates >/dev/null
			update-ca-certificates >/dev/null; rm -rf /var/lib/apt/lists/*; mkdir -p /go')
	# Further authorities of this machine, as that of an inspecting proxy, which the builder
	# needs, too.
	[[ ! -d /usr/local/share/ca-certificates ]] ||
		tar -C / --dereference -c usr/local/share/ca-certificates | docker cp - "$container:/"
	tar -C "$goroot" --exclude=./test --exclude=./doc --exclude=./api --exclude=testdata --exclude='*_test.go' --owner=0 --group=0 --transform 's,^\.,usr/local/go,' -c . |
		docker cp - "$container:/"
	docker start --attach "$container" >/dev/null || die "ca-certificates could not be installed"
	docker commit --change 'ENV PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
		--change 'ENV GOPATH=/go' --change 'ENV GOTOOLCHAIN=local' --change 'WORKDIR /go' --change 'CMD ["bash"]' \
		"$container" "$golang" >/dev/null
	docker rm "$container" >/dev/null
	container=
}

docker version >/dev/null 2>&1 || die "no Docker engine"
scratch=$(mktemp -d)

have "$debian" || pull "$debian" || make_debian
[[ ${1:-} == debian ]] || have "$golang" || pull "$golang" || make_golang
