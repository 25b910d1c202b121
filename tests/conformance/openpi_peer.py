"""The openpi client of PyPI against our server, run by hand in an environment of its own.

    python -m experiments.serve bundle=tests/golden/bundle_v1 port=8765     # here
    pip install openpi-client==0.1.2 --no-deps; pip install numpy msgpack websockets dm-tree pillow  # there
    python tests/conformance/openpi_peer.py 8765

It asks for the bundle's golden samples and wants their actions, in chunks and step by step.
"""

import sys
from pathlib import Path

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy

GOLDEN = Path(__file__).parents[1] / "golden" / "bundle_v1" / "golden.npz"


def main(port: int) -> None:
    client = WebsocketClientPolicy("127.0.0.1", port)
    metadata = client.get_server_metadata()
    print(
        {
            key: metadata[key]
            for key in ("server", "action_dim", "action_horizon", "control_hz", "frame_offsets")
        }
    )
    golden = np.load(GOLDEN)
    num_samples = len(golden["state"])
    requests = [
        {
            "observation/exterior": golden["image.exterior"][i, 0],
            "observation/wrist": golden["image.wrist"][i, 0],
            "observation/state": golden["state"][i],
            "prompt": str(golden["instruction"][i]),
        }
        for i in range(num_samples)
    ]
    for request, wanted in zip(requests, golden["actions"], strict=True):
        reply = client.infer(request)
        np.testing.assert_array_equal(reply["actions"], wanted)
        assert reply["actions"].dtype == np.float32
    print(f"{num_samples} golden samples: actions equal, timing {reply['server_timing']}")
    horizon = metadata["action_horizon"]
    broker = ActionChunkBroker(client, action_horizon=horizon)
    for step in range(horizon):
        np.testing.assert_array_equal(broker.infer(requests[0])["actions"], golden["actions"][0][step])
    print(f"ActionChunkBroker: {horizon} steps equal")
    try:
        client.infer({**requests[0], "prompt": ""})
        raise AssertionError("an empty instruction was accepted")
    except RuntimeError as error:
        print("refused as a client expects:", str(error).replace("\n", " "))
    np.testing.assert_array_equal(client.infer(requests[1])["actions"], golden["actions"][1])
    print("the same client works after the error: conforms")


if __name__ == "__main__":
    main(int(sys.argv[1]))
