"""The keys of the policy server; apart from schema.py, as they need packages that others do not."""

from dataclasses import dataclass, field
from typing import Annotated

from experiments.config.found import BUNDLE
from experiments.config.schema import NumThreads, Program
from policies.serving.access import Access
from policies.serving.observation_map import ObservationMap
from policies.serving.server import ServerSettings
from vla.registry import FilePath, Range

_ACCESS = Access()  # has the defaults


@dataclass(kw_only=True)
class ServeRun(Program):
    """`python -m experiments.serve`."""

    bundle: Annotated[str, BUNDLE, "the policy"]
    host: Annotated[str, "address to listen on"] = _ACCESS.host
    port: Annotated[int, Range(0, 65535), "0: any free one"] = _ACCESS.port
    token_env: Annotated[str, "environment variable that holds the token"] = "VLA_SERVE_TOKEN"
    token_file: Annotated[str | None, FilePath(), "file that holds the token"] = None
    tls_cert: Annotated[str | None, FilePath(), "certificate file"] = None
    tls_key: Annotated[str | None, FilePath(), "file of its key"] = None
    insecure_lan: Annotated[bool, "accept plain text beyond this machine"] = _ACCESS.insecure_lan
    allowed_origins: Annotated[list[str], "web pages that may connect"] = field(default_factory=list)
    num_threads: NumThreads = 1
    openpi_map: Annotated[ObservationMap, "keys of openpi clients; what is empty is as in the bundle"]
    vla_eval_map: Annotated[ObservationMap, "keys of vla-eval; what is empty is as in the bundle"]
    server: Annotated[ServerSettings, "what clients may do"] = field(default_factory=ServerSettings)
    status_every_s: Annotated[float, Range(0.01, 3600), "from one look at the status to the next"] = 2.0
