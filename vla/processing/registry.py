"""Action codecs and input encoders by name. To add one, write its file and a line here."""

from vla.processing.codec import ActionCodec
from vla.processing.moments import InputEncoder
from vla.registry import Registry

CODECS: Registry[ActionCodec] = Registry(
    "action codec",
    {
        "uniform": "vla.processing.uniform:UniformBinCodec",
        "quantile": "vla.processing.quantile:QuantileBinCodec",
        "continuous": "vla.processing.continuous:ContinuousCodec",
        "fast": "vla.processing.fast:FastCodec",
    },
    maker="fit",
)
INPUTS: Registry[InputEncoder] = Registry(
    "input encoder",
    {
        "images": "vla.processing.images:ImageInput",
        "text": "vla.processing.text:TextInput",
        "state": "vla.processing.state:StateInput",
    },
    maker="fit",
)
