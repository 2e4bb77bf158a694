"""The process group of training workers, which listens where Ray does.

The group that Ray Train makes by itself waits for its workers on all interfaces of the machine. Torch does so unless it
gets a socket that is bound already.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import ray
import torch.distributed as dist
from ray.train.backend import Backend
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig

PATIENCE = timedelta(minutes=30)
"""How long workers wait for each other, in the beginning and in each exchange."""


class _NoGroup(Backend):
    share_cuda_visible_devices = True  # as Ray Train does for torch


class WithoutGroup(TorchConfig):
    """Ray Train's settings for torch, of workers that make their process group by themselves."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray Train does before and after a training: nothing."""
        return _NoGroup


@contextmanager
def training_group(rank: int, world: int, backend: str) -> Iterator[None]:
    """Join the process group of all workers; one worker alone needs none.

    Args:
        rank: number of this worker.
        world: number of workers. Each must make the call.
        backend: `gloo` or `nccl`.
    """
    if world == 1:
        yield
        return
    address = ray.util.get_node_ip_address()
    if ipaddress.ip_address(address).is_loopback:
        _stay_on_loopback()
    store = open_store(address, rank, world, broadcast_from_rank_zero)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    yield
    dist.destroy_process_group()  # after a failure Ray ends the process, and the others would be waited for here


def open_store(
    address: str, rank: int, world: int, tell_all: Callable[[tuple[str, int]], tuple[str, int]]
) -> dist.TCPStore:
    """Return the store by which workers find each other; rank 0 keeps it.

    Args:
        address: of this machine, on which rank 0 listens.
        rank: number of this worker.
        world: number of workers.
        tell_all: returns in each worker what rank 0 gives it.
    """
    host, port, listener = address, 0, None
    if rank == 0:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = socket.create_server((address, 0), family=family)
        port, listener = server.getsockname()[1], server.detach()  # the store closes it
    host, port = tell_all((host, port))
    return dist.TCPStore(host, port, world, rank == 0, PATIENCE, master_listen_fd=listener)


def _stay_on_loopback() -> None:
    """Let the workers exchange tensors by the loopback interface, unless the environment names another."""
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, names[0])
