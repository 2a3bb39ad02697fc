#!/bin/bash
# Starts Ceph on loopback with an S3 gateway, all in one folder: ceph.sh FOLDER PORT. Its processes' ids are in
# FOLDER/run/*.pid. Of Debian: apt-get install -y --no-install-recommends radosgw ceph-mon ceph-osd
set -e
folder=$1
port=$2
mon_port=$((port + 1))
mkdir -p "$folder"/{mon,osd,run,log,rgw}
cluster=$(cat /proc/sys/kernel/random/uuid)
osd=$(cat /proc/sys/kernel/random/uuid)
keys=$folder/keyring
conf=$folder/ceph.conf
cat > "$conf" <<C
[global]
fsid = $cluster
mon host = v2:127.0.0.1:$mon_port/0
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = $keys
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 1
run dir = $folder/run
log file = $folder/log/\$name.log
admin socket = $folder/run/\$name.asok
mon data = $folder/mon/a
osd data = $folder/osd/0
osd objectstore = memstore
memstore device bytes = 4294967296
public addr = 127.0.0.1
rgw data = $folder/rgw
rgw frontends = beast endpoint=127.0.0.1:$port tcp_nodelay=1
C
ceph-authtool --create-keyring "$keys" --gen-key -n mon. --cap mon "allow *"
ceph-authtool "$keys" --gen-key -n client.admin --cap mon "allow *" --cap osd "allow *"
ceph-authtool "$keys" --gen-key -n osd.0 --cap mon "allow profile osd" --cap osd "allow *"
monmaptool --create --addv a "[v2:127.0.0.1:$mon_port]" --fsid "$cluster" "$folder/monmap"
ceph-mon -c "$conf" --mkfs -i a --monmap "$folder/monmap" --keyring "$keys"
ceph-mon -c "$conf" -i a --keyring "$keys" --pid-file "$folder/run/mon.pid"
ceph -c "$conf" --connect-timeout 30 osd new "$osd" 0
mkdir -p "$folder/osd/0"
ceph-osd -c "$conf" -i 0 --mkfs --osd-uuid "$osd"
ceph-osd -c "$conf" -i 0 --pid-file "$folder/run/osd.pid"
radosgw -c "$conf" -n client.admin --keyring "$keys" --pid-file "$folder/run/rgw.pid"
radosgw-admin -c "$conf" user create --uid=test --display-name=test --access-key=testing --secret=testing-secret
