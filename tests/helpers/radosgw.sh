#!/usr/bin/env bash
# The smoke job, from pack to report through Ray, against Ceph's S3 server (radosgw) on this machine.
# Needs: apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common; and `make test`'s environment.
# Usage: tests/helpers/radosgw.sh   (about two minutes; everything lies in a temporary folder and is removed)
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-.venv/bin/python}"
D=$(mktemp -d /tmp/rgwXXXX)
stop() { for p in "$D"/*.pid; do kill "$(cat "$p")" 2>/dev/null || true; done; sleep 1; rm -rf "$D"; }
trap stop EXIT

mkdir -p "$D"/mon "$D"/osd "$D"/run "$D"/log "$D"/rgw
cat > "$D/ceph.conf" <<C
[global]
fsid=$(tee "$D/fsid" < /proc/sys/kernel/random/uuid)
mon_host=[v2:127.0.0.1:16300,v1:127.0.0.1:16789]
public_addr=127.0.0.1
cluster_addr=127.0.0.1
auth_cluster_required=cephx
auth_service_required=cephx
auth_client_required=cephx
auth_allow_insecure_global_id_reclaim=true
osd_pool_default_size=1
osd_pool_default_min_size=1
osd_pool_default_pg_num=8
osd_pool_default_pg_autoscale_mode=off
mon_allow_pool_size_one=true
osd_crush_chooseleaf_type=0
osd_objectstore=memstore
memstore_device_bytes=2G
mon_data_avail_crit=1
mon_max_pg_per_osd=1000
mon_data=$D/mon
osd_data=$D/osd
keyring=$D/keyring
run_dir=$D/run
admin_socket=$D/run/\$name.\$pid.asok
log_file=$D/log/\$name.log
mon_cluster_log_file=$D/log/cluster.log
rgw_data=$D/rgw
rgw_frontends=beast endpoint=127.0.0.1:7480 tcp_nodelay=1
[client.rgw.a]
keyring=$D/keyring
C
conf=(-c "$D/ceph.conf")
monmaptool --create --addv a '[v2:127.0.0.1:16300,v1:127.0.0.1:16789]' --fsid "$(cat "$D/fsid")" "$D/monmap" > /dev/null
ceph-authtool --create-keyring "$D/keyring" --gen-key -n mon. --cap mon 'allow *' > /dev/null
ceph-authtool "$D/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *'
for n in osd.0 client.rgw.a; do ceph-authtool "$D/keyring" --gen-key -n $n --cap mon 'allow *' --cap osd 'allow *'; done
ceph-mon "${conf[@]}" --mkfs -i a --monmap "$D/monmap" --keyring "$D/keyring"
ceph-mon "${conf[@]}" -i a -f > "$D/log/mon.out" 2>&1 & echo $! > "$D/mon.pid"
osd=$(cat /proc/sys/kernel/random/uuid)
ceph "${conf[@]}" --connect-timeout 20 osd new "$osd" 0 > /dev/null
ceph-osd "${conf[@]}" -i 0 --mkfs --osd-uuid "$osd" > /dev/null 2>&1
ceph-osd "${conf[@]}" -i 0 -f > "$D/log/osd.out" 2>&1 & echo $! > "$D/osd.pid"
radosgw-admin "${conf[@]}" user create --uid=t --display-name=t --access-key=test --secret-key=testtest > /dev/null
radosgw "${conf[@]}" -n client.rgw.a -f > "$D/log/rgw.out" 2>&1 & echo $! > "$D/rgw.pid"
for _ in $(seq 100); do (exec 3<> /dev/tcp/127.0.0.1/7480) 2> /dev/null && break; sleep 0.2; done

export AWS_ENDPOINT_URL=http://127.0.0.1:7480 AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=testtest
export AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true PYTHONPATH=tests/helpers
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 RAY_AUTH_MODE=disabled RAY_TMPDIR="$D/r"
unset RAY_ADDRESS
mkdir "$RAY_TMPDIR"
"$python" - "$D" <<'P'
import sys
from pathlib import Path

import s3fs

import smoke
from fiqa_ray.cli import main

folder = Path(sys.argv[1])
smoke.make_faces(folder / "faces")
fs = s3fs.S3FileSystem()
fs.mkdir("smoke")
fs.put(str(folder / "faces"), "smoke/faces", recursive=True)
here = smoke.write_job(folder / "here.yaml", folder / "faces", str(folder / "run"))
there = smoke.write_job(folder / "there.yaml", "s3://smoke/faces", "s3://smoke/run")


def command(*argv):
    try:
        main(list(argv))
    except SystemExit as end:
        assert end.code == 0, f"{argv} ended with {end.code}"


command("run", here)
command("run", there, "compute.engine=ray", "compute.train_workers=1")
command("status", "s3://smoke/run")
local = {p.relative_to(folder / "run").as_posix() for p in (folder / "run").rglob("optimized_labels/**/*.parquet")}
def tail(name):
    return name.split("/v=")[0]
remote = {k.removeprefix("smoke/run/"): k for k in fs.find("smoke/run/optimized_labels") if k.endswith(".parquet")}
pairs = {tail(name): [None, None] for name in local}
for name in local:
    pairs[tail(name)][0] = (folder / "run" / name).read_bytes()
for name, key in remote.items():
    pairs[tail(name)][1] = fs.cat_file(key)
assert pairs and all(a == b for a, b in pairs.values()), "labels differ between disk and bucket"
print(f"radosgw: whole job done; {len(pairs)} label files equal to those made on disk, byte for byte")
P
