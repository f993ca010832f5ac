"""trainer.precision=auto is bfloat16 where the processor has it and computes it right."""

import warnings

import pytest
import torch
from conftest import SMALL
from torch.nn import functional as F

from sparsereg.model import kernels, precision
from sparsereg.model.precision import difference, has_bfloat16, precision_of

INTEL = "processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 amx_tile\n\nprocessor\t: 1\n"


@pytest.fixture
def processor(tmp_path, monkeypatch):
    """A function that makes this machine's processor another one."""

    def be(cpuinfo: str) -> None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        monkeypatch.setattr(kernels, "CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(kernels, "why_not", lambda: None)

    return be


def test_the_processor_decides(processor):
    processor(INTEL)
    assert has_bfloat16() and precision_of("auto", on_cpu=True) == "bf16-mixed"
    processor(INTEL.replace("avx512_bf16", "avx512_vnni"))
    assert not has_bfloat16() and precision_of("auto", on_cpu=True) == "32-true"
    processor("")
    assert not has_bfloat16()


def test_a_gpu_computes_as_trainer_says(processor):
    processor(INTEL)
    assert precision_of("auto", on_cpu=False) == "32-true"
    assert precision_of("bf16-mixed", on_cpu=False) == "bf16-mixed"


def test_rounding_is_no_fault():
    """Without instructions for it a gradient is a sum of k² numbers, rounded after each of them."""
    largest = precision.TOLERANCE / (3 if has_bfloat16() else 1.5)
    assert all(0 < difference(shape) < largest for shape in precision.SHAPES)


@pytest.mark.parametrize("fault", [1.05, float("nan")])
def test_wrong_convolutions_are_found(processor, monkeypatch, fault):
    """As those of some versions of torch: bfloat16 of 5x5 kernels alone is wrong."""
    conv2d = F.conv2d

    def wrong(x, weight, padding):
        is_wrong = x.dtype == torch.bfloat16 and weight.shape[-1] == 5
        return conv2d(x, weight, padding=padding) * (fault if is_wrong else 1)

    monkeypatch.setattr(F, "conv2d", wrong)
    processor(INTEL)
    with pytest.warns(UserWarning, match="bfloat16 convolutions differ from float32"):
        assert precision_of("auto", on_cpu=True) == "32-true"


def test_an_older_processor_has_no_kernels(processor):
    """A compiler would say so in its own words, or make code that the processor stops at."""
    processor(INTEL.replace("avx512f", "avx512f avx512bw avx512vl").replace("avx512_bf16", "avx2"))
    assert kernels.compiled.__wrapped__() == "this processor has no avx512_bf16"


def test_slower_kernels_are_said(processor, monkeypatch):
    processor(INTEL)
    monkeypatch.setattr(kernels, "why_not", lambda: "there is no C compiler (cc)")
    with pytest.warns(UserWarning, match=r"without the faster kernels: there is no C compiler"):
        precision_of("bf16-mixed", on_cpu=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert precision_of("32-true", on_cpu=True) == "32-true"


def test_a_run_says_what_it_took(command, tmp_path, processor):
    processor("flags\t\t: fpu\n")
    settings = (*SMALL, "trainer.precision=auto", "without_using_gate=true")
    result = command("train.py", *settings, f"output_dir={tmp_path}")
    assert result.code == 0 and "trainer.precision=auto: 32-true on this machine" in result.out
