"""Compilation is tried before it is relied on."""

import pytest
import torch

from vla.training import hardware
from vla.training.hardware import choose_compile

FORBIDDEN = "failed to map segment from shared object"


@pytest.fixture
def no_place_for_programs(monkeypatch):
    """Have torch.compile fail as it does where TMPDIR is mounted noexec."""

    def compile_nothing(function):
        def call(*_):
            raise RuntimeError(f"OSError: x.so: {FORBIDDEN}\n\nSet TORCHDYNAMO_VERBOSE=1")

        return call

    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr(hardware.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(hardware.Path, "exists", lambda path: True)


@pytest.mark.usefixtures("no_place_for_programs")
def test_auto_goes_on_without_what_does_not_work_and_says_so(monkeypatch):
    monkeypatch.setattr(torch, "zeros", lambda *sizes, device: None)  # there is no GPU here
    compiles, why = choose_compile("auto", torch.device("cuda"))
    assert not compiles
    assert FORBIDDEN in why
    assert "TMPDIR" in why
    assert "\n" not in why


@pytest.mark.usefixtures("no_place_for_programs")
def test_on_is_refused_before_training_with_the_variable_that_helps():
    with pytest.raises(ValueError, match=rf"trainer.compile=on, but .*{FORBIDDEN}.*set TMPDIR.*compile=off"):
        choose_compile("on", torch.device("cpu"))


def test_off_and_auto_on_a_cpu_try_nothing(monkeypatch):
    monkeypatch.setattr(torch, "compile", None)
    for wanted in ("off", "auto"):
        assert choose_compile(wanted, torch.device("cpu")) == (False, "torch.compile off")
