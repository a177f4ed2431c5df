# The first process of a node: makes the machine's file system look like a worker's. $NODE_DIR holds what is its own.
# Run by host.rs, which has set -eu and the hostname.

# Directories that the machine does not have, or not these. /usr and the rest are the machine's.
own() { mkdir -p "$NODE_DIR$1"; mount --bind "$NODE_DIR$1" "$1"; }

mkdir -p "$NODE_DIR"
cp -a /etc "$NODE_DIR/"
own /etc
own /opt
own /var/lib
own /var/log
# What the machine mounts there (`ip netns add` does) is not the node's, and would be kept alive by it.
awk '$2 ~ "^/run/" { print $2 }' /proc/mounts | sort -r | xargs --no-run-if-empty umount --lazy
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/netns
mkdir -p /etc/cni/net.d /etc/containerd /etc/kubernetes/pki /opt/cni/bin /var/lib/kubelet/pki /var/lib/kube-proxy

hostname > /etc/hostname
hostname | md5sum | cut -c1-32 > /etc/machine-id
printf '127.0.0.1 localhost\n%s %s\n' "$NODE_IP" "$(hostname)" > /etc/hosts
printf 'nameserver 10.96.0.10\n' > /etc/resolv.conf
for plugin in bridge host-local loopback portmap; do
  cp "/usr/lib/cni/$plugin" /opt/cni/bin/
done

# /sys of this network, with the machine's cgroups in it.
mkdir "$NODE_DIR/cgroup"
mount --rbind /sys/fs/cgroup "$NODE_DIR/cgroup"
umount -l /sys
mount -t sysfs sysfs /sys
mount --move "$NODE_DIR/cgroup" /sys/fs/cgroup

# The kubelet's top cgroup; a cpuset is unusable until it has processors and memory.
for hierarchy in /sys/fs/cgroup/*/; do
  mkdir -p "$hierarchy$NODE_CGROUP"
done
for file in cpuset.cpus cpuset.mems; do
  [ ! -e "/sys/fs/cgroup/cpuset/$file" ] || cat "/sys/fs/cgroup/cpuset/$file" > "/sys/fs/cgroup/cpuset/$NODE_CGROUP/$file"
done

echo 1 > /proc/sys/net/ipv4/ip_forward
echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter
echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables

# Pods with mountPropagation see what is mounted on the node.
mount --make-rshared /
