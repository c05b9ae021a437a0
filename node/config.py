"""What a node is told: one frozen record, filled from CLI, environment, file and defaults in `node/cli/settings.py`."""

from dataclasses import dataclass, field
from pathlib import Path

#: Engines that load a GGUF file of this machine.
FILE_ENGINES = ("llama", "xllamacpp")


@dataclass(frozen=True)
class NodeConfig:
    """Settings of one daemon. Units are in the names; empty strings and zeros mean "choose for me"."""

    data_dir: Path
    name: str = ""  # for people; empty: the machine's host name
    listen: str = ""  # HOST:PORT of the mesh service; port 0: any free one, kept; empty: all addresses, port 0
    seeds: tuple[str, ...] = ()  # HOST:PORT of nodes to dial at start and whenever no peer is in sight
    interfaces: tuple[str, ...] = ()  # names or addresses for mDNS; empty: all but bridges and tunnels
    mdns: bool = True
    network: str = "lan"  # how patient the mesh is with silence: lan, wan, or local (one machine, tests)
    disk_budget_mb: int = 0  # MiB that journal and blobs may take; 0: a tenth of the disk, 1 to 10 GiB
    engine: str = "llama"  # llama, xllamacpp, openai or echo
    model: str = ""  # path of a GGUF file; openai: the model's name there; empty: the default model
    more_models: tuple[str, ...] = ()  # llama: each an agent of its own, loaded when it is asked for
    memory_budget_mb: int = 0  # MiB that all engines may take; 0: four fifths of the machine's
    model_sha256: str = ""  # hex; a GGUF file with another hash is not loaded; empty: any
    engine_url: str = ""  # openai: base URL, with /v1
    engine_key_env: str = "OPENAI_API_KEY"  # openai: name of the environment variable that holds the key
    slots: int = 1
    ctx: int = 0  # tokens per slot; 0: the model's own, at most 4096
    threads: int = 0  # 0: the cores this node may use, shared with other engines
    adapters: tuple[str, ...] = ()  # NAME=PATH of LoRA adapters in GGUF, loaded with the model
    gpu_layers: int = 0
    kv_cache: str = "auto"  # llama: split, each slot has cells of its own; unified, all share; auto, as the work is
    http: str = ""  # HOST:PORT of the HTTP door; empty: none
    http_cert: str = ""  # PEM file, with the chain; empty: none on loopback, else the node's own certificate
    http_key: str = ""  # PEM file of its key; empty: in the same file
    http_hosts: tuple[str, ...] = ()  # further names by which clients call the HTTP door
    echo_tokens_per_s: float = 200.0  # echo: its pace
    log_level: str = "info"
    origins: dict[str, str] = field(default_factory=dict, compare=False)  # setting → where its value came from
