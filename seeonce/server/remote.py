"""Pictures from the network: from public addresses alone, a few redirects, so many bytes and seconds."""

import asyncio
import ipaddress
import socket

import httpx2

from seeonce.server.errors import ApiError, refused

_LONGEST_S = 20.0
_MOST_REDIRECTS = 3
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


async def fetch(url: str, max_bytes: int) -> bytes:
    """Return what lies at an http(s) address.

    The name is looked up once, and the connection made to the address that was found public: a name that
    changes its mind in between leads nowhere. So is each redirect.

    Raises:
        ApiError: it is private, missing, too large or too slow.
    """
    try:
        async with asyncio.timeout(_LONGEST_S), httpx2.AsyncClient(trust_env=False) as client:
            for _ in range(_MOST_REDIRECTS + 1):
                found = await _get(client, httpx2.URL(url), max_bytes)
                if isinstance(found, bytes):
                    return found
                url = found
    except TimeoutError:
        raise _problem(f"took longer than {_LONGEST_S:.0f} s") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError) as error:
        raise _problem(f"cannot be fetched ({type(error).__name__})") from error
    raise _problem(f"has more than {_MOST_REDIRECTS} redirects")


async def _get(client: httpx2.AsyncClient, url: httpx2.URL, max_bytes: int) -> bytes | str:
    """Return the bytes at an address, or where it redirects to."""
    if url.scheme not in ("http", "https") or not url.host:
        raise _problem("leads to no http(s) address")
    address = await _public_address(url.host, url.port or (443 if url.scheme == "https" else 80))
    request = client.build_request(
        "GET",
        url.copy_with(host=address),
        headers={"Host": url.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"},
        extensions={"sni_hostname": url.host},
    )
    response = await client.send(request, stream=True, follow_redirects=False)
    try:
        if response.is_redirect:
            return str(url.join(response.headers.get("location", "")))
        if response.status_code != 200:
            raise _problem(f"answers {response.status_code}")
        data = bytearray()
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) > max_bytes:
                raise _problem(f"is larger than {max_bytes >> 20} MiB")
        return bytes(data)
    finally:
        await response.aclose()


async def _public_address(host: str, port: int) -> str:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(address[0]) for *_, address in found]
    if not addresses or not all(map(is_public, addresses)):
        raise _problem("leads to a private address")
    return addresses[0]


def is_public(address: str) -> bool:
    """Tell whether an IP address is one of the open internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def _problem(what: str) -> ApiError:
    return refused(f"the picture {what}.", "messages")
