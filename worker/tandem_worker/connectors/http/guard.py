"""Which addresses tasks may call: the public internet, and what `TANDEM_HTTP_ALLOW` adds."""

import ipaddress
from collections.abc import Collection, Iterable
from dataclasses import dataclass

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Listed here because the ranges that `is_global` knows depend on the version of Python.
_REFUSED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier NAT, and metadata of some clouds
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's platform address: public by number only
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments; 192.0.0.192 is Oracle's metadata
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "2001::/23",  # Teredo, ORCHID and other protocols
        "2001:db8::/32",
        "2002::/16",  # 6to4: embeds IPv4 addresses, also private ones
        "3fff::/20",
    )
)
# All global unicast of IPv6. It excludes ::/96, mapped, NAT64, unique local, link-local and
# multicast addresses.
_GLOBAL6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Allowed:
    """`TANDEM_HTTP_ALLOW`: networks, and names (in lower case) of hosts that are not checked."""

    networks: tuple[Network, ...] = ()
    names: frozenset[str] = frozenset()


def parse(entries: Iterable[str]) -> Allowed:
    """Sort the entries into networks (`10.0.0.0/8`, `::1`) and host names."""
    networks: list[Network] = []
    names: set[str] = set()
    for entry in entries:
        try:
            networks.append(ipaddress.ip_network(entry, strict=False))
        except ValueError:
            names.add(entry.rstrip(".").lower())
    return Allowed(tuple(networks), frozenset(names))


def allowed(address: str, networks: Collection[Network] = ()) -> bool:
    """Whether tasks may call the address: it is globally routable, or in one of `networks`.

    An IPv4 address mapped into IPv6 counts as the IPv4 address. A NAT64 address must be in
    `networks`, and its IPv4 address must be allowed, too. Invalid addresses are not allowed.
    """
    try:
        ip: Address = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    listed = any(ip.version == network.version and ip in network for network in networks)
    if isinstance(ip, ipaddress.IPv6Address) and ip in _NAT64:
        return listed and allowed(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)), networks)
    if listed:
        return True
    if isinstance(ip, ipaddress.IPv6Address) and ip not in _GLOBAL6:
        return False
    if any(ip.version == network.version and ip in network for network in _REFUSED):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved
