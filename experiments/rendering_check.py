"""Draws one frame with MuJoCo's off-screen renderer, to tell whether this machine has a working GL.

`make setup` runs it before and after installing the GL libraries. It ends with
exit code 0 and one line when a picture came out, and with 1 and the reason when not.

    python -m experiments.rendering_check
"""

import os
import subprocess
import sys

SCENE = """
<mujoco>
  <visual><quality shadowsize="0" offsamples="0"/></visual>
  <worldbody>
    <light pos="0 0 3"/>
    <geom type="box" size=".2 .2 .2" rgba="1 0 0 1"/>
    <camera name="front" pos="0 -1 1" xyaxes="1 0 0 0 .7 .7"/>
  </worldbody>
</mujoco>
"""


def draw_frame() -> float:
    """Render 64 x 64 pixels of a red box and return the mean brightness in [0, 255]."""
    import mujoco

    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, 64, 64) as renderer:
        renderer.update_scene(data, camera="front")
        return float(renderer.render().mean())


def why_it_cannot_draw() -> str | None:
    """Draw in a process of its own, since a broken GL may crash; None when a picture came out."""
    child = subprocess.run(
        [sys.executable, "-m", "experiments.rendering_check", "--draw"], capture_output=True, text=True
    )
    if child.returncode == 0:
        return None
    return (child.stderr.strip().splitlines() or [f"the renderer died with code {child.returncode}"])[-1]


def main() -> int:
    """Try, and print what was found."""
    if sys.argv[1:] == ["--draw"]:
        return int(draw_frame() <= 0.0)  # a black frame is a failure as well
    backend = os.environ.setdefault("MUJOCO_GL", "egl")
    reason = why_it_cannot_draw()
    if reason is not None:
        print(f"[rendering] MuJoCo cannot draw with MUJOCO_GL={backend}: {reason}", file=sys.stderr)
        return 1
    print(f"[rendering] MuJoCo draws with MUJOCO_GL={backend}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
