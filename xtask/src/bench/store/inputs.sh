#!/bin/sh
# Makes the two disks of the bench in $DIR: v1.raw, a Debian 12 root in a GPT disk of 8 GiB, and v2.raw, the same disk
# after installing two packages, as a build would leave it. Needs root. Nothing scans the host's block devices for
# partitions: a loop device is made for the file system alone, by its offset.
#
# $PACKAGES is the catalogue's list for Debian; $ADDED what v2 has more.
set -eu
disk_bytes=$((8 << 30))
root_at=$((68 << 20))
root_bytes=$((disk_bytes - (1 << 20) - root_at))
tree=$DIR/tree
mnt=$DIR/mnt
loop=

unmount() {
    for sub in /dev /proc ""; do
        if mountpoint -q "$mnt$sub"; then umount "$mnt$sub"; fi
    done
    if [ -n "$loop" ]; then losetup --detach "$loop"; loop=; fi
}
trap unmount EXIT
trap 'exit 1' INT TERM

echo "v1: packages"
rm -rf "$tree"
mmdebstrap --quiet --mode=root --variant=minbase --format=directory --components=main \
    --include="$PACKAGES" --aptopt='Apt::Install-Recommends "false"' bookworm "$tree"

echo "v1: disk"
rm -f "$DIR/v1.tmp" "$DIR/v2.tmp"
truncate -s $disk_bytes "$DIR/v1.tmp"
sgdisk -n 14:2048:8191 -t 14:ef02 -n 15:8192:139263 -t 15:ef00 \
    -n 1:$((root_at / 512)):$(((root_at + root_bytes) / 512 - 1)) -t 1:8304 "$DIR/v1.tmp" >/dev/null
mke2fs -q -t ext4 -L root -d "$tree" -E "offset=$root_at,lazy_itable_init=0,nodiscard" \
    "$DIR/v1.tmp" $((root_bytes / 1024))k
rm -rf "$tree"

echo "v2: the same disk after apt-get install"
cp --sparse=always "$DIR/v1.tmp" "$DIR/v2.tmp"
mkdir -p "$mnt"
loop=$(losetup --find --show --offset $root_at --sizelimit $root_bytes "$DIR/v2.tmp")
mount -t ext4 "$loop" "$mnt"
mount -t proc proc "$mnt/proc"
mount --bind /dev "$mnt/dev"
# No service starts; the host's answer to "which resolver" is borrowed and given back.
printf '#!/bin/sh\nexit 101\n' >"$mnt/usr/sbin/policy-rc.d"
chmod 755 "$mnt/usr/sbin/policy-rc.d"
resolv=$mnt/etc/resolv.conf
if [ -e "$resolv" ] || [ -L "$resolv" ]; then mv "$resolv" "$mnt/etc/resolv.conf.kept"; fi
cat /etc/resolv.conf >"$resolv"
# What a build's customizer would say; the lists and packages that it leaves behind are part of the disk.
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive
chroot "$mnt" apt-get -q update
# shellcheck disable=SC2086 # a list of words
chroot "$mnt" apt-get -q -y --no-install-recommends install $ADDED
rm -f "$mnt/usr/sbin/policy-rc.d" "$resolv"
if [ -e "$mnt/etc/resolv.conf.kept" ] || [ -L "$mnt/etc/resolv.conf.kept" ]; then
    mv "$mnt/etc/resolv.conf.kept" "$resolv"
fi
unmount
rmdir "$mnt"
# Zeros that mke2fs wrote are holes, as in a disk that a VM wrote.
fallocate --dig-holes "$DIR/v1.tmp"
fallocate --dig-holes "$DIR/v2.tmp"
sync "$DIR/v1.tmp" "$DIR/v2.tmp"
mv "$DIR/v1.tmp" "$DIR/v1.raw"
mv "$DIR/v2.tmp" "$DIR/v2.raw"
