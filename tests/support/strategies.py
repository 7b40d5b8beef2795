"""Hypothesis strategies for addresses, keys and URLs, as people and machines may write them."""

from __future__ import annotations

import ipaddress
import string

from hypothesis import strategies as st

from tunnel.model.address import Address
from tunnel.model.keys import Key
from tunnel.model.options import OPTION_NAMES
from tunnel.model.spec import Role
from tunnel.model.targets import TargetSpec
from tunnel.model.url import TunnelUrl, UrlOption

_ALNUM = string.ascii_letters + string.digits

labels = st.from_regex(r"[a-z](?:[a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=4).map(".".join)


def _is_kept(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is kept as it is: TCP can use it, and it is not an IPv4-mapped one, which becomes IPv4."""
    is_mapped = isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None
    return not (is_mapped or ip.is_multicast or str(ip) == "255.255.255.255")


hosts = st.one_of(
    names,
    st.ip_addresses().filter(_is_kept).map(str),
    st.sampled_from(["", "localhost", "0.0.0.0", "::", "::1", "server-host", "db_server", "bücher.example"]),
)
ports = st.integers(min_value=1, max_value=65535)
addresses = st.builds(Address, hosts, ports)
keys = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).map(Key)

recognisable_keys = st.text(_ALNUM, min_size=16, max_size=24)
"""Keys that cannot stand in a sentence by chance."""


@st.composite
def urls(draw: st.DrawFn) -> TunnelUrl:
    """A URL's parts, with options that need no meaning."""
    option_names = draw(st.lists(st.sampled_from(OPTION_NAMES), unique=True, max_size=4))
    value = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    targets = draw(st.lists(addresses, min_size=1, max_size=3))
    role = draw(st.sampled_from(Role))
    tunnels = draw(st.lists(addresses, min_size=1, max_size=3 if role is Role.CLIENT else 1))
    return TunnelUrl(
        role=role,
        tunnel=tunnels[0],
        target=targets[0],
        key=draw(st.none() | keys),
        options=tuple(UrlOption(name, draw(value), 0) for name in option_names),
        targets=tuple(map(TargetSpec, targets)) if len(targets) > 1 else (),
        other_servers=tuple(tunnels[1:]),
    )


loopback = st.integers(min_value=0x7F000001, max_value=0x7FFFFFFE).map(lambda n: str(ipaddress.IPv4Address(n)))
