#!/bin/sh
# Create an empty store at the first start. Then run its monitor, its disk, and the gateway.
set -eu
export CEPH_CONF=/usr/local/bin/ceph.conf
osd=7b0b6ad4-5f0a-4f3c-8f5e-9a2d6c1e4b10
mkdir -p /data/run /data/log
if [ ! -e /data/complete ]; then
  rm -rf /data/mon /data/osd
  mkdir /data/mon /data/osd
  monmaptool --create --addv a '[v1:127.0.0.1:6789]' --fsid "$(sed -n 's/^fsid = //p' $CEPH_CONF)" --clobber /tmp/monmap
  ceph-mon --mkfs -i a --monmap /tmp/monmap
  ceph-mon -i a
  ceph osd new $osd
  ceph-osd -i 0 --mkfs --osd-uuid $osd
else
  ceph-mon -i a
fi
until ceph-osd -i 0; do sleep 1; done   # the monitor may refuse the first connection
radosgw-admin -n client.rgw user info --uid=retrain > /dev/null 2>&1 ||
  radosgw-admin -n client.rgw user create --uid=retrain --display-name=retrain \
    "--access-key=$ROOT_ACCESS_KEY" "--secret-key=$ROOT_SECRET_KEY" > /dev/null
touch /data/complete
exec radosgw -f -n client.rgw '--rgw-frontends=beast endpoint=0.0.0.0:7070'
