import subprocess
import sys

PROGRAM = """
import sys, time
import vla.data.lerobot_v3, vla.data.windows
print(time.process_time())
heavy = ("torch", "pandas", "datasets", "mujoco", "cv2", "numpy.random")
print([name for name in heavy if name in sys.modules])
"""


def test_reading_and_writing_need_no_torch_and_a_second():
    runs = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
        ).stdout.split("\n")
        for _ in range(3)
    ]
    assert runs[0][1] == "[]"
    seconds = min(float(run[0]) for run in runs)
    assert seconds < 1.0, f"importing vla.data took {seconds:.2f} CPU s"
