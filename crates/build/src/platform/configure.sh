# Makes a bootstrapped tree an Azure image. Run by sh on the host with R = the tree and ROOT_UUID set.
set -e
echo "UUID=$ROOT_UUID / ext4 rw,discard,errors=remount-ro 0 1" > "$R/etc/fstab"
# cloud-init and sshd give every VM a name, an id and keys of its own.
echo uninitialized > "$R/etc/machine-id"
rm -f "$R/var/lib/dbus/machine-id" "$R"/etc/ssh/ssh_host_*
echo localhost > "$R/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' > "$R/etc/hosts"
rm -f "$R/etc/resolv.conf"
: > "$R/etc/resolv.conf"
echo 'datasource_list: [ Azure ]' > "$R/etc/cloud/cloud.cfg.d/90_dpkg.cfg"
# RSA keys take a translated guest many seconds, and nobody needs them.
echo 'ssh_genkeytypes: [ed25519, ecdsa]' > "$R/etc/cloud/cloud.cfg.d/91-host-keys.cfg"
# A generalized image has no host keys: sshd must survive being started before cloud-init made them.
mkdir -p "$R/etc/systemd/system/ssh.service.d"
printf '[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nExecStartPre=/usr/sbin/sshd -t\n' \
    > "$R/etc/systemd/system/ssh.service.d/host-keys.conf"
# GRUB reads this file under BIOS and UEFI; /vmlinuz and /initrd.img follow kernel upgrades. no_timer_check: an emulated
# timer on a busy host can miss the 40 ms in which the kernel wants to see it, and then the kernel gives up.
mkdir -p "$R/boot/grub/i386-pc"
cp "$R"/usr/lib/grub/i386-pc/*.mod "$R"/usr/lib/grub/i386-pc/*.lst "$R/boot/grub/i386-pc/"
cat > "$R/boot/grub/grub.cfg" <<EOF
set timeout=0
serial --unit=0 --speed=115200
terminal_input serial console
terminal_output serial console
search --no-floppy --fs-uuid --set=root $ROOT_UUID
linux /vmlinuz root=UUID=$ROOT_UUID ro no_timer_check console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200 net.ifnames=0
initrd /initrd.img
boot
EOF
cat > "$R/tmp/early.cfg" <<EOF
search --no-floppy --fs-uuid --set=root $ROOT_UUID
set prefix=(\$root)/boot/grub
configfile \$prefix/grub.cfg
EOF
MODULES="part_gpt ext2 search search_fs_uuid configfile normal linux serial terminal echo test"
chroot "$R" grub-mkimage -O i386-pc -o /tmp/core.img -c /tmp/early.cfg -p /boot/grub biosdisk $MODULES
chroot "$R" grub-mkimage -O x86_64-efi -o /tmp/BOOTX64.EFI -c /tmp/early.cfg -p /boot/grub fat $MODULES
mv "$R/tmp/core.img" "$R/tmp/BOOTX64.EFI" "$R/.."
cp "$R/usr/lib/grub/i386-pc/boot.img" "$R/.."
rm -rf "$R"/tmp/* "$R"/run/* "$R"/var/cache/apt/*.bin "$R"/var/lib/apt/lists/*_* "$R"/var/log/apt
find "$R/var/log" -type f -exec truncate -s 0 {} +
