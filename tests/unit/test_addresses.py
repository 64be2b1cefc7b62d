"""The addresses that the greeting prints."""

import re
import socket
from ipaddress import ip_address

import pytest

from app.addresses import ANY, urls_of


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("192.0.2.7", "http://192.0.2.7:8000"),
        ("::1", "http://[::1]:8000"),
        ("2001:db8::7", "http://[2001:db8::7]:8000"),
    ],
)
def test_one_address(host: str, url: str) -> None:
    """A server that listens on one address is reached there."""
    assert urls_of(host, 8000) == [url]


@pytest.mark.parametrize("host", sorted(ANY))
def test_every_address(host: str) -> None:
    """A server that listens on all addresses is reached at each of this machine's own."""
    urls = urls_of(host, 8000)
    assert urls
    assert len(set(urls)) == len(urls)
    for url in urls:
        found = re.fullmatch(r"http://\[?([\da-f.:]+?)\]?:8000", url)
        assert found, url
        address = ip_address(found[1])
        assert not address.is_unspecified
        assert len(urls) == 1 or not address.is_loopback
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((found[1], 0))  # which only an address of this machine's lets
