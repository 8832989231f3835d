"""The addresses of a Prefect server, and the names of this machine."""

import socket
from collections.abc import Set
from contextlib import suppress
from functools import cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from tasks.support.cli import InputError


def api_of(address: str, named_by: str) -> str:
    """The address of a server's API, also from the address of its UI.

    Raises:
        InputError: it is no such address, or holds a password, which logs would show.
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
            f"{named_by}: an address must not hold a password; PREFECT_API_AUTH_STRING=USER:PASSWORD does"
        )
    path = list(filter(None, parts.path.split("/")))
    return "/".join([f"{parts.scheme}://{parts.netloc}", *path, *(["api"] if "api" not in path else [])])


def host_and_port(api: str) -> tuple[str, int]:
    address = urlsplit(api)
    return address.hostname or "", address.port or (443 if address.scheme == "https" else 80)


def is_own(host: str, names: Set[str]) -> bool:
    """Whether a Host header is an IP address, to which no other domain leads, or one of some names."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    with suppress(ValueError):
        return bool(ip_address(name))
    return name in names


@cache
def own_names(*more: str | None) -> set[str]:
    """The names by which browsers find this machine."""
    return {name.lower() for name in ("localhost", socket.gethostname(), socket.getfqdn(), *more) if name}
