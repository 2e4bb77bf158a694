"""How workers of a training find each other."""

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import psutil

from fiqa_ray.engine.training_group import open_store


def test_the_store_listens_on_its_address_alone():
    """As the system says; torch's own store listens on all interfaces."""
    before = {c.laddr for c in psutil.Process().net_connections("inet") if c.status == "LISTEN"}
    told, is_told = [], Event()

    def tell_all(value):
        if value[1]:
            told.append(value)
            is_told.set()
        assert is_told.wait(60)
        return told[0]

    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(lambda rank: open_store("127.0.0.1", rank, 3, tell_all), range(3)))
    after = {c.laddr for c in psutil.Process(os.getpid()).net_connections("inet") if c.status == "LISTEN"}
    assert {address.ip for address in after - before} == {"127.0.0.1"}
    stores[1].set("key", "value")
    assert stores[2].get("key") == stores[0].get("key") == b"value"
