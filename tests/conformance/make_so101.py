"""A small SO-101-like recording made by LeRobot's own API, for trials of what users bring along.

    pip install "lerobot[dataset]==0.6.1"                   # Python 3.12, in an environment of its own
    python tests/conformance/make_so101.py outputs/so101

12 episodes of 3 to 5 s at 30 Hz, two sentences, AV1 cameras `front` 480x640 and `wrist` 240x320, and a depth
camera `front_depth`. The drawn arm moves with the joints and reaches for the object that the sentence names;
an action is the joint target, which leads the state by `LEAD` frames. Joints lie in -100..100 and the
gripper in 0..100, as LeRobot normalizes them; the metadata holds no units.
"""

import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.feature_utils import hw_to_dataset_features
from PIL import Image, ImageDraw

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
CAMERAS = {"front": (480, 640, 3), "wrist": (240, 320, 3), "front_depth": (480, 640, 1)}
SENTENCES = ("pick up the red cube", "touch the blue ball")
FPS, NUM_EPISODES, LEAD = 30, 12, 3
HOME = np.array([0.0, -60.0, 50.0, 20.0, 0.0, 10.0])
TABLE_M, ARM_M = 0.9, 0.6  # distance from the front camera


def links(joints: np.ndarray) -> np.ndarray:
    """Return the arm's corner points [5, 2] in a square of side 1, x to the right and y down."""
    pan, lift, elbow, wrist = joints[:4] / 100.0
    angles = np.cumsum([-np.pi / 2 + 0.9 * pan, 0.5 + 0.9 * lift, 0.2 + 0.9 * elbow, 0.2 + 0.6 * wrist])
    steps = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array([[0.25], [0.25], [0.2], [0.1]])
    return np.concatenate([[[0.5, 0.95]], np.array([0.5, 0.95]) + np.cumsum(steps, axis=0)])


def trajectory(rng: np.random.Generator, num_frames: int, picks: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return targets [T + LEAD, 6] and the joints at the object: there, close the gripper, and lift."""
    goal = HOME + np.array([1.0, 1.0, 1.0, 1.0, 0.5, 0.0]) * rng.uniform(-35, 35, 6)
    waypoints = [(0.0, HOME), (0.15, [*HOME[:5], 80]), (0.6, [*goal[:5], 80 if picks else 10])]
    if picks:
        waypoints += [(0.75, [*goal[:5], 20]), (1.0, [goal[0], goal[1] - 25, *goal[2:5], 20])]
    else:
        waypoints += [(0.8, goal), (1.0, HOME)]
    times = np.array([time for time, _ in waypoints])
    share = np.linspace(0, 1, num_frames + LEAD)
    values = np.array([value for _, value in waypoints], dtype=float)
    straight = np.stack([np.interp(share, times, values[:, i]) for i in range(len(JOINTS))], axis=1)
    smooth = np.ones(9) / 9
    padded = np.pad(straight, ((4, 4), (0, 0)), mode="edge")
    return np.stack([np.convolve(column, smooth, "valid") for column in padded.T], axis=1), goal


def draw(joints: np.ndarray, objects: list[tuple[str, np.ndarray]]) -> Image.Image:
    """Draw the scene in RGB as the front camera sees it."""
    height, width, _ = CAMERAS["front"]
    image = Image.new("RGB", (width, height), (196, 188, 172))
    canvas, scale = ImageDraw.Draw(image), np.array([width, height])
    for name, place in objects:
        (x, y), r = place * scale, 0.035 * height
        box = (x - r, y - r, x + r, y + r)
        if "cube" in name:
            canvas.rectangle(box, fill=(200, 40, 40))
        else:
            canvas.ellipse(box, fill=(40, 60, 200))
    corners = links(joints) * scale
    canvas.line([tuple(corner) for corner in corners], fill=(40, 40, 44), width=height // 24, joint="curve")
    tip, opening = corners[-1], (4 + joints[5] / 100 * 22) * height / 480
    forward = (corners[-1] - corners[-2]) / np.linalg.norm(corners[-1] - corners[-2])
    side = np.array([-forward[1], forward[0]]) * np.cos(joints[4] / 100 * np.pi / 2)
    for sign in (-1, 1):
        base = tip + sign * opening * side
        canvas.line(
            [tuple(tip), tuple(base), tuple(base + 0.05 * height * forward)], fill=(240, 160, 30), width=5
        )
    return image


def wrist_view(image: Image.Image, joints: np.ndarray) -> np.ndarray:
    """Cut what lies around the gripper out of the front image, turned with the wrist's roll."""
    height, width, _ = CAMERAS["wrist"]
    x, y = links(joints)[-1] * image.size
    turned = image.rotate(float(joints[4]) * 0.45, center=(x, y), fillcolor=(196, 188, 172))
    cut = turned.crop((int(x) - 80, int(y) - 60, int(x) + 80, int(y) + 60))
    return np.asarray(cut.resize((width, height)))


def depth_view(image: Image.Image) -> np.ndarray:
    """Return millimeters [h w 1]: what is not table is nearer."""
    is_table = (np.asarray(image) == np.array([196, 188, 172])).all(axis=-1)
    return np.where(is_table, TABLE_M * 1000, ARM_M * 1000).astype(np.uint16)[..., None]


def record_episode(dataset: LeRobotDataset, episode: int) -> None:
    rng = np.random.default_rng(episode)
    num_frames, sentence = int(rng.integers(3 * FPS, 5 * FPS)), SENTENCES[episode % 2]
    targets, goal = trajectory(rng, num_frames, picks="pick" in sentence)
    other = links(HOME + rng.uniform(-35, 35, 6))[-1]
    objects = [(sentence, links(goal)[-1]), (SENTENCES[1 - episode % 2], other)]
    noise = rng.normal(0, 0.15, (num_frames, len(JOINTS)))
    for t in range(num_frames):
        joints = np.clip(targets[t] + noise[t], [-100] * 5 + [0], 100)
        if "pick" in sentence and t > 0.75 * num_frames:
            objects[0] = (sentence, links(joints)[-1])
        front = draw(joints, objects)
        dataset.add_frame(
            {
                "observation.state": joints.astype(np.float32),
                "action": np.clip(targets[t + LEAD], [-100] * 5 + [0], 100).astype(np.float32),
                "observation.images.front": np.asarray(front),
                "observation.images.wrist": wrist_view(front, joints),
                "observation.images.front_depth": depth_view(front),
                "task": sentence,
            }
        )
    dataset.save_episode(parallel_encoding=False)


def main(root: Path) -> None:
    joints = {f"{name}.pos": float for name in JOINTS}
    features = {
        **hw_to_dataset_features(joints, "action"),
        **hw_to_dataset_features({**joints, **CAMERAS}, "observation"),
    }
    dataset = LeRobotDataset.create(
        "local/so101", FPS, features, root=root, robot_type="so101_follower", encoder_threads=1
    )
    for episode in range(NUM_EPISODES):
        record_episode(dataset, episode)
        print(f"episode {episode + 1} of {NUM_EPISODES}", flush=True)
    dataset.finalize()
    reopened = LeRobotDataset("local/so101", root=root)
    print(f"{reopened.num_episodes} episodes, {reopened.num_frames} frames in {root}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
