"""Addresses of a Prefect server, and the host names of this machine."""

import socket
from collections.abc import Set
from contextlib import suppress
from functools import cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from tasks.support.cli import InputError


def api_of(address: str, named_by: str) -> str:
    """Return the address of a server's API, given the address of its API or UI.

    Args:
        address: For example http://HOST:4200.
        named_by: The option or variable that holds the address, for error messages.

    Raises:
        InputError: the address is invalid, or contains a password, which would appear in logs.
    """
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise InputError(f"{named_by}: {address!r} is not the address of a server, such as http://HOST:4200")
    if "@" in parts.netloc:
        raise InputError(
            f"{named_by}: an address must not contain a password; set PREFECT_API_AUTH_STRING=USER:PASSWORD"
        )
    path = list(filter(None, parts.path.split("/")))
    return "/".join([f"{parts.scheme}://{parts.netloc}", *path, *(["api"] if "api" not in path else [])])


def host_and_port(api: str) -> tuple[str, int]:
    address = urlsplit(api)
    return address.hostname or "", address.port or (443 if address.scheme == "https" else 80)


def is_own_host(host: str, names: Set[str]) -> bool:
    """Return whether a Host header is an IP address, which no foreign domain can imitate, or in `names`."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    with suppress(ValueError):
        return bool(ip_address(name))
    return name in names


@cache
def own_host_names(*more: str | None) -> set[str]:
    """Return the host names under which browsers reach this machine, and `more`."""
    return {name.lower() for name in ("localhost", socket.gethostname(), socket.getfqdn(), *more) if name}
