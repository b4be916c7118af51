"""The command that serves a collection over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from regionhash.cli.options import Device, Engine, Folder, Runtime


def serve(
    collection: Folder,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")
    ] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="REGIONHASH_TOKEN",
            help="Clients must send it to add or remove pictures, and to search from other "
            "machines. Without a token the service is read-only.",
        ),
    ] = None,
    max_megabytes: Annotated[float, typer.Option(help="Largest upload, in megabytes.")] = 20,
    max_megapixels: Annotated[float, typer.Option(help="Largest picture, in megapixels.")] = 50,
    timeout: Annotated[float, typer.Option(help="Longest time for an answer, in seconds.")] = 30,
    device: Device = "auto",
    runtime: Runtime = "auto",
    engine: Engine = "local",
) -> None:
    """Serve a collection: a page to search it, and an HTTP API.

    \b
    Examples:
      regionhash serve photos.collection
      regionhash serve photos.collection --host 0.0.0.0 --token "$(openssl rand -hex 16)"
    """
    from regionhash.service import Limits, run_server

    limits = Limits(int(max_megabytes * 1e6), int(max_megapixels * 1e6), timeout)
    run_server(
        collection,
        host=host,
        port=port,
        token=token,
        limits=limits,
        device=device,
        runtime=runtime,
        engine=engine,
        note=typer.echo,
    )
