"""The check of a codec: the built-in ones have no finding, and each planted fault is found by name."""

import numpy as np
import pytest
from plugin_pages import imported

from experiments.checks.codecs import check_codec, random_chunks
from vla.processing.continuous import ContinuousCodec
from vla.processing.registry import CODECS
from vla.processing.uniform import UniformBinCodec


def check(kind):
    return check_codec({"kind": kind}, [random_chunks(action_horizon=6)])


@pytest.mark.parametrize("kind", ["uniform", "quantile", "continuous", "fast"])
def test_the_built_in_codecs_have_no_finding(kind):
    seen = check(kind)
    assert seen.findings == []
    assert len(seen.rows) == 15


def test_the_codec_of_the_page_has_no_finding(tmp_path, monkeypatch):
    monkeypatch.setattr(CODECS, "_entries", CODECS.entries())
    imported("An action codec", tmp_path, monkeypatch)
    assert check("mulaw").findings == []


class Base(UniformBinCodec):
    def to_json(self):
        return {**super().to_json(), "kind": "bad"}


class Loses(Base):
    def decode(self, outputs):
        actions = super().decode(outputs).copy()
        actions[..., -1] = 0.5
        return actions


class Beyond(Base):
    def decode(self, outputs):
        return super().decode(outputs) * np.float32(1.01)


class Unsteady(Base):
    def encode(self, actions, valid):
        bins = super().encode(actions, valid)["bins"]
        return {"bins": np.clip(bins + np.random.default_rng().integers(0, 2, bins.shape), 0, 255)}


class Writes(Base):
    def encode(self, actions, valid):
        actions[...] = np.round(actions, 3)
        return super().encode(actions, valid)


class OfBatch(Base):
    def encode(self, actions, valid):
        return super().encode((actions - 0.01 * actions.mean(axis=0)).astype(np.float32), valid)


class Forgets(Base):
    @classmethod
    def from_json(cls, data):
        return super().from_json({**data, "low": [2 * low for low in data["low"]]})


class OtherKind(Base):
    def to_json(self):
        return {**super().to_json(), "kind": "quantile"}


class Drifts(Base):
    def decode(self, outputs):
        actions = super().decode(outputs)
        step = (self.centers[:, 1] - self.centers[:, 0]) * np.float32(0.7)
        return np.maximum(actions - step, self.centers[:, 0])


class TakesNan(Base):
    def encode(self, actions, valid):
        return super().encode(np.nan_to_num(actions), valid)


class Decodes(Base):
    def decode(self, outputs):
        return super().decode({"bins": np.clip(outputs["bins"], 0, 255)})


class OtherError(Base):
    def decode(self, outputs):
        return self.centers[np.arange(self.action_dim), outputs["bins"]]


class AllCommitted(Base):
    def encode_committed(self, actions, num_committed):
        return super().encode_committed(actions, np.full_like(num_committed, actions.shape[1]))


class Flat(ContinuousCodec):
    def encode(self, actions, valid):
        return {name: array[:, :, 0] for name, array in super().encode(actions, valid).items()}


class Raises(Base):
    @classmethod
    def fit(cls, actions, chunks, *, low, high):
        raise ZeroDivisionError("no chunks")


@pytest.mark.parametrize(
    ("kind", "check_name", "message"),
    [
        (Loses, "codec_loses", "of what it spans"),
        (Beyond, "codec_bounds", "the limits are"),
        (Unsteady, "codec_unsteady", "encode changes 'bins' from call to call"),
        (Writes, "codec_unsteady", "encode writes into the actions"),
        (OfBatch, "codec_batch", "alone than among"),
        (Forgets, "codec_json", "differ after to_json and from_json"),
        (OtherKind, "codec_json", "the kind 'quantile', which is no name of this codec"),
        (Drifts, "codec_drifts", "move by up to"),
        (TakesNan, "codec_takes_nan", "nan or inf"),
        (Decodes, "codec_decodes_nonsense", "with the id 256 (there are 256): decoded as if"),
        (OtherError, "codec_decodes_nonsense", "in place of DecodeError"),
        (AllCommitted, "codec_committed", "depends on actions that are not committed"),
        (Flat, "codec_form", "makes 'actions' as float32"),
        (Raises, "codec_raises", "ZeroDivisionError: no chunks"),
    ],
)
def test_a_planted_fault_is_found(kind, check_name, message, monkeypatch):
    monkeypatch.setattr(CODECS, "_entries", CODECS.entries() | {"bad": f"{__name__}:{kind.__name__}"})
    found = {one.check: one for one in check("bad").findings if message in one.message}
    assert list(found) == [check_name]
    if kind is Loses:
        assert found[check_name].channel == "action/gripper"


def test_a_codec_that_decodes_nonsense_has_no_other_finding(monkeypatch):
    monkeypatch.setattr(CODECS, "_entries", CODECS.entries() | {"bad": f"{__name__}:Decodes"})
    assert {one.check for one in check("bad").findings} == {"codec_decodes_nonsense"}
