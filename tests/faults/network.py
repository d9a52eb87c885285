"""A network of two machines: two network namespaces, and a wire between them that delays, loses and can be cut.

    python network.py ROBOT GPU DELAY_S LOSS

The wire is a program on two TUN devices, because the kernels of containers and small machines come without netem. It
carries no multicast, as many a network: who is not named as a peer is not found. Needs root. A line of input, `down` or
`up`, takes the GPU's machine off the network and puts it back, and is answered by the time of that [ns]; at the end of
the input it ends.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import heapq
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
DEVICE = 'ki_wire'
ADDRESSES = ('10.99.0.1', '10.99.0.2')
MULTICAST = range(224, 240)  # first byte of an IPv4 destination


def enter(namespace: str) -> None:
    """Moves this thread into a namespace of `ip netns`."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path('/run/netns', namespace).open() as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f'cannot enter the network namespace {namespace}')


def plug(namespace: str, address: str) -> int:
    """The end of the wire in a namespace: a descriptor that gives and takes IP packets."""
    enter(namespace)
    end = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack('16sH', DEVICE.encode(), IFF_TUN | IFF_NO_PI))
    for command in (f'addr add {address}/24 dev {DEVICE}', 'link set lo up', f'link set {DEVICE} up'):
        subprocess.run(['ip', *command.split()], check=True)
    return end


def carry(ends: tuple[int, int], delay_s: float, loss: float) -> None:
    """Carries packets until the input ends."""
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    chance = random.Random(0)
    on_the_way: list[tuple[float, int, int, bytes]] = []
    count = 0
    while True:
        now_s = time.monotonic()
        while on_the_way and on_the_way[0][0] <= now_s:
            _, _, end, packet = heapq.heappop(on_the_way)
            write(end, packet)
        wait_s = on_the_way[0][0] - now_s if on_the_way else 1.0
        ready, _, _ = select.select([*ends, sys.stdin], [], [], wait_s)
        for end in ready:
            if end is sys.stdin:
                word = sys.stdin.readline().strip()
                if not word:
                    return
                print(switch(word == 'up'), flush=True)
                continue
            packet = os.read(end, 65536)
            lost = chance.random() < loss or packet[0] >> 4 != 4 or packet[16] in MULTICAST
            if not lost:
                count += 1
                heapq.heappush(on_the_way, (time.monotonic() + delay_s, count, other[end], packet))


def switch(up: bool) -> int:
    """Sets the device of the namespace entered last up or down, as `ip link set` does; when it did [ns]."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        _, flags = struct.unpack('16sH', fcntl.ioctl(any_socket, SIOCGIFFLAGS, request(0))[:18])
        now_ns = time.time_ns()
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, request(flags | IFF_UP if up else flags & ~IFF_UP))
    return now_ns


def request(flags: int) -> bytes:
    """A struct ifreq."""
    return struct.pack('16sH22x', DEVICE.encode(), flags)


def write(end: int, packet: bytes) -> None:
    """Delivers a packet; at an end that is down it is lost."""
    try:
        os.write(end, packet)
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EAGAIN, errno.ENOBUFS):
            raise


def main() -> None:
    """Plugs in, says so, and carries."""
    robot, gpu, delay_s, loss = sys.argv[1:5]
    ends = plug(robot, ADDRESSES[0]), plug(gpu, ADDRESSES[1])
    print('up', flush=True)
    carry(ends, float(delay_s), float(loss))


if __name__ == '__main__':
    main()
