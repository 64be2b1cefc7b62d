"""The addresses at which devices reach a server that listens on all of them."""

import fcntl
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

ANY = {"0.0.0.0", "::"}  # noqa: S104  # recognised, not listened on
_SIOCGIFADDR = 0x8915
_IF_INET6 = Path("/proc/net/if_inet6")
_DOCUMENTATION = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses of no host; a socket is pointed there to learn which of ours it would use. Nothing is sent."""


def urls_of(host: str, port: int) -> list[str]:
    """Return ``http://…`` for each address of a listening socket. For one that listens on all addresses: those that
    others can reach, the one towards the Internet first; loopback if there is no other.
    """
    hosts = [host]
    if host in ANY:
        found = [*_ipv4_addresses(), *(_ipv6_addresses() if host == "::" else ())]
        hosts = [str(address) for address in dict.fromkeys(found) if _is_reachable(address)] or [
            "::1" if host == "::" else "127.0.0.1"
        ]
    return [f"http://{f'[{address}]' if ':' in address else address}:{port}" for address in hosts]


def _is_reachable(address: IPv4Address | IPv6Address) -> bool:
    return not (address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast)


def _ipv4_addresses() -> Iterator[IPv4Address | IPv6Address]:
    yield from _of_default_route(socket.AF_INET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            # An interface without one, or a system that is not Linux.
            with suppress(OSError):
                found = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                yield ip_address(found[20:24])


def _ipv6_addresses() -> Iterator[IPv4Address | IPv6Address]:
    yield from _of_default_route(socket.AF_INET6)
    with suppress(OSError):
        for line in _IF_INET6.read_text().splitlines():
            yield ip_address(bytes.fromhex(line.split()[0]))


def _of_default_route(family: socket.AddressFamily) -> Iterator[IPv4Address | IPv6Address]:
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((_DOCUMENTATION[family], 9))
        yield ip_address(probe.getsockname()[0])
