"""``seeonce serve``: options and the server's life."""

import ipaddress
import os
import socket
from typing import Annotated

import typer

from cache.base.errors import InputError
from cache.base.home import Home
from cache.prefixes import prefix_cache_bytes
from infer.limits import BatchLimits
from seeonce.commands.arguments import (
    AllowedFiles,
    AllowRemoteImages,
    KVMemorySize,
    MaxNumSeqs,
    NoStore,
    PrefixCacheSize,
    ServedModelName,
    allowed_folder,
    kv_memory_bytes,
    num_in_flight,
)

_MOST_PORTS = 65535


def serve_command(
    model: ServedModelName = None,
    host: Annotated[
        str, typer.Option(help="The address to listen at; others than this machine's need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen at.")] = 8765,
    api_key: Annotated[
        str | None, typer.Option(help="The key that clients must send; SEEONCE_API_KEY hides it from ps.")
    ] = None,
    max_num_seqs: MaxNumSeqs = "auto",
    kv_memory: KVMemorySize = None,
    max_queue: Annotated[
        int, typer.Option(help="Answers waited for at once; more are told to come later.")
    ] = 256,
    idle_unload: Annotated[
        float, typer.Option(help="Unload the model after so many seconds without a request.")
    ] = 1800.0,
    prefix_cache: PrefixCacheSize = None,
    no_store: NoStore = False,
    allow_files: AllowedFiles = None,
    allow_remote_images: AllowRemoteImages = False,
    allow_origin: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Let pages from here ask; repeatable.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A name that clients call it by; repeatable.")
    ] = None,
) -> None:
    """Answer OpenAI's API from the store.

    A picture that was ever seen costs no vision again; a new one is encoded once.

    Example: seeonce serve --model demo --port 8765
    """
    key = api_key or os.environ.get("SEEONCE_API_KEY") or None
    if not _is_loopback(host) and key is None:
        raise InputError(f"--host {host} lets others in: give --api-key, or set SEEONCE_API_KEY.")
    if not 0 <= port <= _MOST_PORTS:
        raise InputError(f"--port is {port}; expected 0 to {_MOST_PORTS}.")
    if max_queue < 1:
        raise InputError(f"--max-queue is {max_queue}; expected at least 1.")
    if idle_unload <= 0:
        raise InputError(f"--idle-unload is {idle_unload:g}; expected seconds, more than 0.")
    limits = BatchLimits(num_in_flight(max_num_seqs), kv_memory_bytes=kv_memory_bytes(kv_memory))
    folders = tuple(map(allowed_folder, allow_files or ()))
    from seeonce.server.app import serve
    from seeonce.server.options import ServeOptions

    names = {name.lower() for name in [*(allow_host or ()), host, socket.gethostname()]}
    options = ServeOptions(
        model=model,
        limits=limits,
        folders=folders,
        remote=allow_remote_images,
        store=not no_store,
        hosts=frozenset(names),
        origins=frozenset(origin.rstrip("/") for origin in allow_origin or ()),
        api_key=key,
        max_open=max_queue,
        idle_unload_s=idle_unload,
        prefix_cache=prefix_cache_bytes(prefix_cache),
    )
    serve(Home.locate(), options, host, port, lambda line: typer.echo(line, err=True))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
