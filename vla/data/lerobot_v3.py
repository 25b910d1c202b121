"""LeRobotDataset v3, the one door: `DatasetWriter` records, `Dataset` reads.

The format is described in `layout.py`, the crash-safe recording in `writer.py`, `staging.py` and
`consolidate.py`, reading in `reader.py` and `tables.py`.
"""

from vla.data.foreign import derive_robot_spec as derive_robot_spec
from vla.data.layout import DatasetError as DatasetError
from vla.data.reader import Dataset as Dataset
from vla.data.writer import DatasetWriter as DatasetWriter
from vla.data.writer import finish_recording as finish_recording
