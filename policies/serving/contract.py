"""What a remote policy and its user agree on before the first request, and how the agreement is reached.

Our server states all of it in its metadata; openpi's states nothing, so the user does. It opens no
sockets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from policies.serving.observation_map import ObservationMap
from policies.serving.protocols import PROTOCOL_VERSION, SERVER_NAME
from vla.spec import RobotSpec

MAX_ACTION_HORIZON = 10_000


class PolicyUnavailable(RuntimeError):
    """No action came, for a reason of connection or server; `code` is one word. Hold, then stop."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteContract:
    """What both sides agree on: from the server's metadata, or from the user for foreign servers."""

    robot_spec: RobotSpec
    action_horizon: int
    observation_map: ObservationMap
    frame_offsets: tuple[int, ...] = (0,)
    max_committed: int = 0  # how many committed actions an observation may hold
    policy_id: str | None = None  # sha256 of the served bundle; foreign servers do not tell
    numbered: bool = False  # whether replies repeat the request's number
    setting: Mapping[str, Any] | None = None  # that the policy was trained in, as its bundle keeps it


def stated_contract(metadata: Mapping[str, Any]) -> RemoteContract | None:
    """Return what our server states in its metadata; None for any other server.

    Raises:
        ValueError: it is in an unknown form.
    """
    if metadata.get("server") != SERVER_NAME:
        return None
    if metadata.get("protocol_version") != PROTOCOL_VERSION:
        raise ValueError(f"protocol_version is not {PROTOCOL_VERSION}; use client and server of one version")
    horizon, offsets, policy_id = (
        metadata.get(key) for key in ("action_horizon", "frame_offsets", "bundle_sha256")
    )
    if type(horizon) is not int or not 1 <= horizon <= MAX_ACTION_HORIZON or not isinstance(policy_id, str):
        raise ValueError("its metadata lacks a usable action_horizon or bundle_sha256")
    max_committed = metadata.get("max_committed")
    if type(max_committed) is not int or not 0 <= max_committed < horizon:
        raise ValueError("its metadata lacks a usable max_committed")
    if not isinstance(offsets, list) or not offsets or any(type(offset) is not int for offset in offsets):
        raise ValueError("its metadata lacks usable frame_offsets")
    setting = metadata.get("setting")
    if setting is not None and not isinstance(setting, Mapping):
        raise ValueError("its metadata holds a setting that is no map")
    try:
        spec = RobotSpec.from_json(metadata["robot_spec"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its metadata holds no robot spec: {error!r}") from error
    observation_map = ObservationMap.from_json(metadata.get("observation_map"))
    observation_map.require_fitting(spec, name="the server's observation map")
    return RemoteContract(
        robot_spec=spec,
        action_horizon=horizon,
        observation_map=observation_map,
        frame_offsets=tuple(offsets),
        max_committed=max_committed,
        policy_id=policy_id,
        numbered=True,
        setting=setting,
    )


def agreed_contract(
    stated: RemoteContract | None, wanted: RemoteContract | None, expected_policy_id: str | None
) -> RemoteContract:
    """Return what the server stated, or else what is wanted; where both speak they must agree on the robot.

    Raises:
        PolicyUnavailable: neither says anything, or the policy is not the expected one.
        SpecMismatch: the two name different robots.
    """
    contract = wanted if stated is None else stated
    if contract is None:
        raise PolicyUnavailable(
            "foreign", "the server does not say what it serves; give a RemoteContract (robot, horizon, keys)"
        )
    if stated is not None and wanted is not None:
        stated.robot_spec.require_same(wanted.robot_spec, mine="the served policy", theirs="this client")
    if expected_policy_id is not None and contract.policy_id != expected_policy_id:
        raise PolicyUnavailable(
            "other_policy", f"the server serves bundle {contract.policy_id}, not {expected_policy_id}"
        )
    return contract
