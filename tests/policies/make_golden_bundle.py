"""Writes a bundle of the tiny model to the directory named on the command line; see test_golden_bundle.py."""

import sys
from pathlib import Path

from policy_fixtures import tiny_observations, tiny_processor
from policy_models import tiny_model

from policies.export import export_bundle

if __name__ == "__main__":
    tiny = tiny_processor()
    report = export_bundle(
        model=tiny_model(tiny),
        processor=tiny,
        provenance={"checkpoint_id": "none: random weights", "git_revision": "none"},
        out_dir=Path(sys.argv[1]),
        golden_observations=tiny_observations(6),
    )
    print(report.table())
