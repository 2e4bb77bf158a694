"""moto's S3 server with an atomic conditional PUT: `python s3_server.py PORT [SECONDS]`.

moto looks whether the object is there and writes it later, so that of two threads both can be told that they created it.
S3 and Ceph let one win. SECONDS is a pause between look and write, which makes the race certain where nothing prevents it.
`--folder FOLDER BUCKET` at the end puts the files of a folder into a bucket before the server starts: requests would take a
hundred times as long.
"""

import sys
import threading
import time
from pathlib import Path

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import S3Backend, s3_backends
from moto.s3.responses import S3Response
from moto.server import main

put_object, put_response = S3Backend.put_object, S3Response.put_object
one_at_a_time = threading.Lock()


def slow_put_object(self, *args, **kwargs):
    time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
    return put_object(self, *args, **kwargs)


def atomic_put_response(self):
    with one_at_a_time:
        return put_response(self)


def load(folder: str, bucket: str) -> None:
    """Put all files of a folder into a new bucket."""
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket(bucket, "us-east-1")
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            put_object(backend, bucket, path.relative_to(folder).as_posix(), path.read_bytes())


if __name__ == "__main__":
    if sys.argv[-3:-2] == ["--folder"]:
        load(*sys.argv[-2:])
        del sys.argv[-3:]
    S3Backend.put_object = slow_put_object
    if "--as-moto" not in sys.argv:
        S3Response.put_object = atomic_put_response
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
