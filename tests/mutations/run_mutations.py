"""Applies each mutation in a copy of the project and reports whether its tests notice.

    python tests/mutations/run_mutations.py [--only controller.py] [--out experiments/results/mutations.json]

Runs outside of CI: a mutation takes as long as the tests that notice it, some seconds each. Ends with code 1
if one is not noticed. Results of rows that did not change since are taken from `--out`, so that it resumes.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutation_rows import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]
LIMIT_S = 600.0


def caught(mutation: Mutation, copy: Path) -> tuple[bool, str, float]:
    """Return whether a test fails under a mutation, which, and after how long [s]."""
    path = copy / mutation.file
    text = path.read_text(encoding="utf-8")
    assert text.count(mutation.old) == 1, f"{mutation.file}: {mutation.old!r} does not stand there once"
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    began = time.monotonic()
    try:
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-x",
                "-n",
                "0",
                "-p",
                "no:cacheprovider",
                *mutation.tests,
            ],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        failed = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        by = failed[0].split(" - ")[0] if failed else ""
        return ended.returncode == 1, by, time.monotonic() - began
    except subprocess.TimeoutExpired:
        return False, f"no answer in {LIMIT_S:g} s", LIMIT_S
    finally:
        path.write_text(text, encoding="utf-8")


def main() -> None:
    """Run the mutations and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutations of files whose name holds this")
    parser.add_argument("--out", type=Path, default=None, help="where results are kept, as JSON")
    arguments = parser.parse_args()
    kept = json.loads(arguments.out.read_text()) if arguments.out and arguments.out.exists() else []
    done = {(row["file"], row["old"], row["new"]): row for row in kept if row["caught"]}
    chosen = [one for one in MUTATIONS if arguments.only in one.file]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        skipped = shutil.ignore_patterns(".git", ".venv*", "outputs", "__pycache__", ".hypothesis")
        shutil.copytree(ROOT, copy, ignore=skipped)
        for number, one in enumerate(chosen, start=1):
            row = done.get((one.file, one.old, one.new))
            if row is None:
                is_caught, by, took_s = caught(one, copy)
                row = {"file": one.file, "old": one.old, "new": one.new, "caught": is_caught, "by": by}
                row["seconds"] = round(took_s, 1)
            rows.append(row)
            mark = "caught" if row["caught"] else "MISSED"
            print(
                f"{number:>3}/{len(chosen)} {mark} {one.file}: {one.old.strip()[:60]!r} {row['by']}",
                flush=True,
            )
            if arguments.out:
                arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
    missed = sum(not row["caught"] for row in rows)
    print(f"{len(rows) - missed} of {len(rows)} mutations are noticed")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
