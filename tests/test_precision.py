import numpy as np
import pytest
import torch

import models
from models.precision import resolve_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_precision_that_is_asked_for_is_taken(name: str, dtype: torch.dtype) -> None:
    assert resolve_precision(name, CPU) is dtype  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [({}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16)],
)
def test_auto_is_bfloat16_only_where_the_processor_has_it(
    capabilities: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # there is no other way to another processor
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_precision("auto", CPU) is dtype


@pytest.mark.parametrize("name", ["float16", "int8"])
def test_what_a_processor_cannot_do_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not for a cpu"):
        resolve_precision(name, CPU)  # type: ignore[arg-type]


def test_in_bfloat16_the_scores_stay_what_they_are_to_two_digits() -> None:
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
    exact = models.load_model("embedded", precision="float32").scores(pictures)
    rough = models.load_model("embedded", precision="bfloat16").scores(pictures)
    assert rough.dtype is torch.float32
    torch.testing.assert_close(rough, exact, atol=0.01, rtol=0)
