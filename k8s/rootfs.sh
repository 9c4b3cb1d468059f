#!/bin/sh
# rootfs.sh FOLDER PROGRAM...: makes FOLDER a root file system with these programs, what they need, and nothing else: no
# shell, no package manager. The Dockerfile calls it; `chroot FOLDER /usr/bin/PROGRAM` tries the outcome without it.
set -eu
root=$1
shift

# Mount points and folders: with readOnlyRootFilesystem nobody can make them later.
mkdir -p "$root/etc/drover" "$root/etc/drover-zookeeper" "$root/run/drover" "$root/run/bird" "$root/run/bpffs" \
    "$root/var/lib/drover" "$root/usr/bin" "$root/dev" "$root/proc" "$root/sys"
mkdir -p -m 1777 "$root/tmp"

for program in "$@"; do
    # Here, and not by cargo's profile: the BPF programs inside are built by the same profile, and their type information,
    # which the kernel wants, is in what it would strip.
    strip --strip-debug -o "$root/usr/bin/$(basename "$program")" "$program"
done

# The C library and the dynamic loader, by the paths that the loader looks at.
ldd "$@" | awk '$2 == "=>" { print $3 } $1 ~ "^/lib" { print $1 }' | grep -v ':$' | sort -u | while read -r library; do
    cp --parents -L "$library" "$root"
done

# Authorities for https health checks with verify_tls.
cp --parents -L /etc/ssl/certs/ca-certificates.crt "$root"

# /etc/hosts first: without this file the C library asks the name servers first.
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
echo 'root:x:0:0:root:/:/nonexistent
drover:x:65532:65532:Drover:/:/nonexistent' >"$root/etc/passwd"
echo 'root:x:0:
drover:x:65532:' >"$root/etc/group"
