"""``readapt serve``: the command line of the serving process. Imports nothing heavy, so that ``--help`` is quick."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from readapt_api.bounds import RANK, TENSOR_PARALLEL
from readapt_api.serving import REQUEST_LIMIT_S
from readapt_runtime.server.limits import FULL_SHARD_RANK, BadLimits, Limits, parse_memory
from readapt_runtime.server.names import require_name

_Adapters = Annotated[
    list[str] | None, typer.Option(metavar="NAME=DIR", help="A PEFT adapter and its model id; repeatable.")
]
_SetDir = Annotated[
    Path | None, typer.Option(help="Folder with the shards of the desired set, DIR/N/set.json.", metavar="DIR")
]
_AdminKey = Annotated[
    Path | None,
    typer.Option(help="Ed25519 public key (PEM) of the operator. Without it the administration port is local."),
]
_AdminSubject = Annotated[
    str, typer.Option(metavar="NAMESPACE/NAME", help="The BaseModel whose administration tokens are taken.")
]
_ApiKeys = Annotated[
    Path | None, typer.Option(help="File with the keys that clients must send, one a line; read again when it changes.")
]
_AdapterRoot = Annotated[
    Path | None,
    typer.Option(help="Folder of PEFT folders that the administration port may load by name.", show_default=False),
]
_TenantHeader = Annotated[
    str, typer.Option(help="Request header that names the tenant, set by a gateway you trust. Default: no tenants.")
]
_FirstToken = Annotated[
    float, typer.Option(help="Refuse what can no longer get its first token within this time.", min=0.001)
]
_AdapterRead = Annotated[
    float, typer.Option(help="Give up reading an adapter after this time: its volume hangs.", min=0.001)
]
_HOST_MEMORY = (
    "Memory for images of adapters that are not in the pool. Default: room for two of --max-rank, at least 96Mi."
)
_HostMemory = Annotated[str, typer.Option(metavar="AMOUNT", help=_HOST_MEMORY, show_default=False)]
_TensorParallel = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Processes that share out the model; each takes a GPU of its own.",
        min=TENSOR_PARALLEL.least,
        max=TENSOR_PARALLEL.most,
    ),
]
_FullShard = Annotated[
    int, typer.Option(metavar="RANK", help="With N > 1: adapters from this rank on are cut both ways.", min=1)
]
_KeepAlive = Annotated[
    float, typer.Option(help="How long idle connections stay open; longer than clients keep theirs.")
]


def serve(
    base: Annotated[Path, typer.Option(help="Model folder (Hugging Face layout).", show_default=False)],
    served_name: Annotated[str, typer.Option(help="Model id of the base. Default: the folder's name.")] = "",
    adapter: _Adapters = None,
    host: Annotated[str, typer.Option(help="Address of the serving port.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Serving port; 0 takes a free one.", min=0, max=65535)] = 8080,
    admin_port: Annotated[int, typer.Option(help="Administration port.", min=0, max=65535)] = 8081,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (float32 on CPU, bfloat16 on GPU), float32, bfloat16.")] = "auto",
    set_dir: _SetDir = None,
    store: Annotated[Path | None, typer.Option(help="Artifact store that holds the variants of the set.")] = None,
    revision: Annotated[str, typer.Option(help="Revision of the set, for the header x-readapt-set.")] = "local",
    base_digest: Annotated[str | None, typer.Option(help="Digest that the base must have.", show_default=False)] = None,
    admin_public_key: _AdminKey = None,
    admin_subject: _AdminSubject = "",
    api_key_file: _ApiKeys = None,
    adapter_root: _AdapterRoot = None,
    max_model_len: Annotated[int, typer.Option(help="Tokens of prompt and answer together.")] = 2048,
    max_batch_tokens: Annotated[int, typer.Option(help="Tokens of one step of the engine.")] = 2048,
    pool_memory: Annotated[str, typer.Option(help="Memory for KV blocks and adapters, such as 4Gi.")] = "4Gi",
    host_memory: _HostMemory = "",
    max_rank: Annotated[int, typer.Option(help="Largest rank of an adapter.", min=RANK.least, max=RANK.most)] = 64,
    tenant_header: _TenantHeader = "",
    first_token_seconds: _FirstToken = REQUEST_LIMIT_S,
    adapter_read_seconds: _AdapterRead = 60.0,
    tensor_parallel: _TensorParallel = 1,
    full_shard_rank: _FullShard = FULL_SHARD_RANK,
    drain_keep_alive_seconds: _KeepAlive = 120.0,
) -> None:
    """Serve a base model and its adapters over one OpenAI-compatible API.

    Examples:

      readapt serve --base ./smollm2 --adapter support=./support-lora --adapter legal=./legal-lora

      curl localhost:8080/v1/completions -d '{"model": "support", "prompt": "Hello"}'
    """
    from readapt_runtime.server.logs import log_as_json
    from readapt_runtime.server.process import run
    from readapt_runtime.server.startup import Options, build

    log_as_json()
    options = Options(
        base=base,
        served_name=served_name or require_name("--base (name the model with --served-name)", base.resolve().name),
        host=host,
        port=port,
        admin_port=admin_port,
        device=device,
        dtype=dtype,
        adapters=parse_adapters(adapter or []),
        set_dir=set_dir,
        store=store,
        revision=revision,
        base_digest=base_digest,
        admin_public_key=admin_public_key,
        admin_subject=admin_subject,
        api_key_file=api_key_file,
        adapter_root=adapter_root,
        tenant_header=tenant_header,
        tensor_parallel=tensor_parallel,
        full_shard_rank=full_shard_rank,
        limits=Limits(
            max_model_len=max_model_len,
            max_batch_tokens=max_batch_tokens,
            max_rank=max_rank,
            pool_bytes=parse_memory(pool_memory),
            host_bytes=parse_memory(host_memory) if host_memory else None,
            read_s=adapter_read_seconds,
            first_token_s=first_token_seconds,
            keep_alive_s=drain_keep_alive_seconds,
        ),
    )
    raise typer.Exit(asyncio.run(run(options, build(options), typer.echo)))


def parse_adapters(given: list[str]) -> dict[str, Path]:
    """``NAME=DIR`` of each ``--adapter``; raises BadLimits for another form or a name that comes twice,
    BadName."""
    adapters: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise BadLimits(f"--adapter {text!r}: NAME=DIR is needed")
        if name in adapters:
            raise BadLimits(f"--adapter: the name {name!r} comes twice")
        adapters[require_name("--adapter", name)] = Path(folder)
    return adapters
