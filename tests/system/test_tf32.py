"""TensorFloat-32 is off inside the block, and as before after it, also after an error."""

from __future__ import annotations

import pytest
from paddle.base import core

from ppxcls.system.tf32 import is_tf32_allowed, tf32_off

has_switches = pytest.mark.skipif(not hasattr(core, "get_cublas_switch"), reason="this build has no switches")


@has_switches
@pytest.mark.parametrize("values", [(True, True), (True, False), (False, True), (False, False)])
def test_the_switches_are_restored(values: tuple[bool, bool]) -> None:
    defaults = core.get_cublas_switch(), core.get_cudnn_switch()
    core.set_cublas_switch(values[0])
    core.set_cudnn_switch(values[1])
    try:
        assert is_tf32_allowed() == any(values)
        with pytest.raises(ValueError, match="an error"), tf32_off():  # noqa: PT012  the state inside matters
            assert not core.get_cublas_switch()
            assert not core.get_cudnn_switch()
            assert not is_tf32_allowed()
            raise ValueError("an error")
        assert (core.get_cublas_switch(), core.get_cudnn_switch()) == values
    finally:
        core.set_cublas_switch(defaults[0])
        core.set_cudnn_switch(defaults[1])


@pytest.mark.every_paddle
def test_a_build_without_switches_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("get_cublas_switch", "get_cudnn_switch", "set_cublas_switch", "set_cudnn_switch"):
        monkeypatch.delattr(core, name, raising=False)
    assert not is_tf32_allowed()
    with tf32_off():
        pass
