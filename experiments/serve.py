"""Serves a bundle to robots and benchmarks over websockets, until Ctrl-C, SIGTERM or SIGHUP.

    python -m experiments.serve bundle=outputs/bundle

It turns configuration into a server and prints what it does; policies/serving/server.py does it.
"""

import asyncio
import dataclasses
import logging
import sys
from pathlib import Path

import hydra
import numpy as np
from omegaconf import DictConfig

from experiments.config import cli, schema
from experiments.config.serving import ServeRun
from experiments.config.trained_setting import NOT_KEPT, TrainedSetting, setting_in
from policies.exported import BundlePolicy
from policies.serving import wire
from policies.serving.access import Access, read_token, server_tls
from policies.serving.log_budget import LineBudget
from policies.serving.observation_map import ObservationMap
from policies.serving.server import OPENPI_PATH, VLA_EVAL_PATH, PolicyServer, ServedPolicy, ServerSettings

LONGEST_SILENCE_S = 60.0  # of the status in a file, while clients are served
SERVER_LOG = "policies.serving.server"

schema.register("serve")


def access_of(run: ServeRun) -> Access:
    """Return where to listen and whom to let in.

    Raises:
        AccessError: strangers could get in; the message says what to add.
    """
    return Access(
        host=run.host,
        port=run.port,
        token=read_token(environment_variable=run.token_env, file=_path(run.token_file)),
        tls=server_tls(certificate=_path(run.tls_cert), key=_path(run.tls_key)),
        insecure_lan=run.insecure_lan,
        allowed_origins=tuple(run.allowed_origins),
    )


def settings_of(run: ServeRun) -> ServerSettings:
    """Return limits, times and maps; what a map leaves empty is as in the bundle."""
    return dataclasses.replace(
        run.server,
        openpi_map=lambda spec: run.openpi_map.filled_from(ObservationMap.openpi(spec)),
        vla_eval_map=lambda spec: run.vla_eval_map.filled_from(ObservationMap.vla_eval(spec)),
    )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def describe(server: PolicyServer, *, access: Access, keys: ObservationMap) -> str:
    """Return what a person needs to connect to a server that is ready, as lines of text."""
    assert server.served is not None
    policy, spec = server.served.policy, server.served.policy.robot_spec
    setting = None if server.served.setting is None else TrainedSetting(**server.served.setting)
    host = f"[{access.host}]" if ":" in access.host else access.host  # an IPv6 address
    address, web = f"{host}:{server.port}", access.scheme.replace("ws", "http")
    horizon, state_keys = policy.action_horizon, ", ".join(map(repr, keys.state))
    rows = [
        ("openpi", f"{access.scheme}://{address}{OPENPI_PATH}"),
        ("vla-eval", f"{access.scheme}://{address}{VLA_EVAL_PATH}"),
        ("health", f"{web}://{address}/readyz, /healthz, /metrics"),
        ("token", "needed (Authorization: Api-Key ...)" if access.token else "none: this machine only"),
        ("bundle", server.served.policy_id),
        ("setting", NOT_KEPT if setting is None else setting.sentence()),
        *(
            (f"camera {name}", f"uint8[{camera.height}, {camera.width}, 3] at {keys.cameras[name]!r}")
            for name, camera in zip(spec.camera_names, spec.cameras, strict=True)
        ),
        ("state", f"{len(spec.state)} floats at {state_keys}: {', '.join(spec.state_names)}"),
        ("instruction", f"text at {keys.instruction!r}"),
        (
            "actions",
            f"float32[{horizon}, {len(spec.action)}], {spec.action_convention}, {spec.control_hz:g} Hz",
        ),
        (
            "connect",
            f'policies.serving.client.RemotePolicy.open("{access.scheme}://{address}"), or openpi-client',
        ),
    ]
    return "\n".join(f"{name:<18}{text}" for name, text in rows)


async def _show_status(server: PolicyServer, *, every_s: float) -> None:
    """Print a line whenever something happened; on a terminal, always the same one.

    In a file, the pause after each line is twice the last, up to a minute.
    """
    shown, in_place = "", sys.stdout.isatty()
    while True:
        line = server.metrics.line()
        if line != shown:
            print(f"\r{line:<{len(shown)}}" if in_place else line, end="" if in_place else "\n", flush=True)
            shown = line
            every_s = every_s if in_place else max(every_s, min(2 * every_s, LONGEST_SILENCE_S))
        await asyncio.sleep(every_s)


def load_bundle(run: ServeRun) -> ServedPolicy:
    """Return the bundle's policy after its hashes and golden samples were checked.

    Raises:
        BundleError: it is damaged, or answers its golden samples differently here.
        ValueError: the server would refuse every observation.
    """
    policy = BundlePolicy.load(run.bundle, num_threads=run.num_threads)
    committed = policy.processor.max_committed
    require_readable(policy, run)
    setting = setting_in(policy.provenance, source=Path(run.bundle))
    return ServedPolicy(
        policy=policy,
        policy_id=policy.bundle_id,
        max_committed=committed,
        setting=None if setting is None else setting.to_json(),
    )


def require_readable(policy: BundlePolicy, run: ServeRun) -> None:
    """Check that the limits of messages let an observation through.

    Raises:
        ValueError: they do not; nobody could be served.
    """
    spec, frames = policy.robot_spec, len(policy.frame_offsets)
    images = {
        camera.name: np.zeros((frames, camera.height, camera.width, 3), np.uint8) for camera in spec.cameras
    }
    request = {**images, "state": np.zeros(len(spec.state), np.float32), "prompt": "pick it up"}
    try:
        wire.decode(wire.encode(request), limits=run.server.limits)
    except wire.WireError as error:
        raise ValueError(
            f"server.limits would refuse every observation of this bundle ({error}); raise them, or leave "
            "them out"
        ) from error


async def serve(run: ServeRun) -> None:
    """Serve until Ctrl-C, SIGTERM or SIGHUP.

    Raises:
        BundleError: the bundle is damaged or answers its golden samples differently here.
        AccessError: strangers could get in.
        OSError: the address is taken.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in cli.ending_signals():
        loop.add_signal_handler(number, stop.set)
    access, settings = access_of(run), settings_of(run)
    server = PolicyServer(load=lambda: load_bundle(run), access=access, settings=settings)
    status: list[asyncio.Task[None]] = []

    def show() -> None:
        assert server.served is not None
        keys = settings.openpi_map(server.served.policy.robot_spec)
        print(describe(server, access=access, keys=keys))
        status.append(loop.create_task(_show_status(server, every_s=run.status_every_s)))

    print(f"loading {run.bundle}: hashes and golden samples are checked", flush=True)
    try:
        await server.run(stop, on_ready=show)
    finally:
        for task in status:
            task.cancel()
    print(f"\nstopped: {server.metrics.line()}")


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="serve")
def main(config: DictConfig) -> None:
    """Serve."""
    logging.getLogger(SERVER_LOG).setLevel(logging.INFO)
    budget = LineBudget()
    for name in (SERVER_LOG, f"{SERVER_LOG}.websockets"):
        logging.getLogger(name).addFilter(budget)
    run = schema.typed(config, ServeRun)
    schema.require_inputs(run)
    asyncio.run(serve(run))


if __name__ == "__main__":
    cli.run(main)
