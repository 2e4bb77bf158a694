"""moto's S3 server with an atomic conditional PUT: `python s3_server.py PORT [SECONDS]`.

moto looks whether the object is there and writes it later, so that of two threads both can be told that they created it.
S3 and Ceph let one win. SECONDS is a pause between look and write, which makes the race certain where nothing prevents it.
"""

import sys
import threading
import time

from moto.s3.models import S3Backend
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


if __name__ == "__main__":
    S3Backend.put_object = slow_put_object
    if "--as-moto" not in sys.argv:
        S3Response.put_object = atomic_put_response
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
