import argparse
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from models import weights
from models.labels import Label, LabelsError
from models.volo import VARIANTS, Volo, VoloConfig
from models.weights import State, WeightsError

CONFIG = replace(VARIANTS["volo_nano"], num_classes=7)


@pytest.fixture(scope="module")
def trained() -> State:
    """A checkpoint's state dict; tests change copies."""
    torch.manual_seed(0)
    return Volo(CONFIG).state_dict()


def loaded(checkpoint: Any, config: VoloConfig = CONFIG) -> State:
    model = Volo(config)
    weights.load_state_dict(model, checkpoint)
    return model.state_dict()


def same(state: State, other: State) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


def without(state: State, *names: str) -> State:
    return {name: tensor for name, tensor in state.items() if name not in names}


def test_a_plain_state_dict_loads_as_it_is(trained: State) -> None:
    assert same(loaded(trained), trained)


@pytest.mark.parametrize("container", ["state_dict", "state_dict_ema"])
def test_a_state_dict_is_found_in_its_container(trained: State, container: str) -> None:
    assert same(loaded({container: trained, "epoch": 3, "args": None}), trained)


def test_averaged_weights_are_preferred(trained: State) -> None:
    last = {name: torch.zeros_like(tensor) for name, tensor in trained.items()}
    assert same(loaded({"state_dict": last, "state_dict_ema": trained}), trained)


def test_the_prefix_of_parallel_training_is_dropped(trained: State) -> None:
    assert same(loaded({"state_dict": {f"module.{name}": trained[name] for name in trained}}), trained)


@pytest.mark.parametrize("checkpoint", [{"epoch": 3}, [1, 2], {"state_dict": {"norm.weight": 1.0}}])
def test_a_checkpoint_without_weights_is_refused(checkpoint: Any) -> None:
    with pytest.raises(WeightsError, match="holds no state dict"):
        loaded(checkpoint)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_the_models(trained: State, dtype: torch.dtype) -> None:
    state = loaded({name: tensor.to(dtype) for name, tensor in trained.items()})
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(state["head.weight"], trained["head.weight"], atol=1e-3, rtol=1e-2)


def test_missing_and_unexpected_names_are_named(trained: State) -> None:
    state = without(trained, "norm.weight", "head.bias") | {"extra": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"^missing norm\.weight, head\.bias; unexpected extra$"):
        loaded(state)


def test_of_many_missing_names_the_first_are_named_and_the_rest_counted(trained: State) -> None:
    stem = [name for name in trained if name.startswith("patch_embed")]
    message = f"^missing {', '.join(stem[:3])} and {len(stem) - 3} more$"
    with pytest.raises(WeightsError, match=message):
        loaded(without(trained, *stem))


def test_another_number_of_classes_is_said_in_words(trained: State) -> None:
    with pytest.raises(WeightsError, match=r"head\.weight has 7 classes, the model has 1000"):
        loaded(trained, replace(CONFIG, num_classes=1000))


def test_another_shape_is_named(trained: State) -> None:
    with pytest.raises(WeightsError, match=r"norm\.weight has the shape \[8\], the model's has \[160\]"):
        loaded(trained | {"norm.weight": torch.zeros(8)})


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused(trained: State, value: float) -> None:
    with pytest.raises(WeightsError, match=r"norm\.bias holds values that are not finite"):
        loaded(trained | {"norm.bias": torch.full((160,), value)})


def test_numbers_that_are_not_floating_point_are_refused(trained: State) -> None:
    with pytest.raises(WeightsError, match=r"norm\.bias holds torch\.int8"):
        loaded(trained | {"norm.bias": torch.zeros(160, dtype=torch.int8)})


def test_a_model_that_refuses_weights_is_left_as_it_was(trained: State) -> None:
    model = Volo(CONFIG)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError):
        weights.load_state_dict(model, trained | {"aux_head.bias": torch.zeros(8)})
    assert same(model.state_dict(), before)


def test_the_position_embedding_is_resized_to_the_models_grid(trained: State) -> None:
    half = {name: tensor.half() for name, tensor in trained.items()}
    state = loaded(half, replace(CONFIG, image_size=96))
    channels_first = half["pos_embed"].float().permute(0, 3, 1, 2)
    wanted = F.interpolate(channels_first, size=(12, 12), mode="bicubic").permute(0, 2, 3, 1)
    torch.testing.assert_close(state["pos_embed"], wanted, atol=0, rtol=0)
    assert same(without(state, "pos_embed"), without(loaded(half), "pos_embed"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_recognised_by_its_weights_at_any_size_and_number_of_classes(variant: str) -> None:
    config = replace(VARIANTS[variant], image_size=320, num_classes=7)
    with torch.device("meta"):
        state = Volo(config).state_dict()
    assert weights.infer_config(state) == (variant, config)


def test_weights_of_another_architecture_are_refused(trained: State) -> None:
    with pytest.raises(WeightsError, match=r"no VOLO: it has no 'patch_embed\.proj\.weight'"):
        weights.infer_config({"conv1.weight": torch.zeros(64, 3, 7, 7)})
    vit = trained | {"pos_embed": torch.zeros(1, 197, 768)}
    with pytest.raises(WeightsError, match="no VOLO: "):
        weights.infer_config(vit)
    with pytest.raises(WeightsError, match=r"no variant .*'layers': \(2, 1, 2, 0\)"):
        weights.infer_config({name: trained[name] for name in trained if not name.startswith("network.4.")})
    with pytest.raises(WeightsError, match="4 by 5"):
        weights.infer_config(trained | {"pos_embed": torch.zeros(1, 4, 5, 160)})


def written(path: Path, state: State) -> Path:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    return path


FORMATS = pytest.mark.parametrize("name", ["m.safetensors", "m.pth", "m.pth.tar", "m.pt"])


@FORMATS
def test_every_format_gives_the_same_model(trained: State, tmp_path: Path, name: str) -> None:
    variant, model = weights.load(written(tmp_path / name, trained))
    assert variant == "volo_nano"
    assert model.config == CONFIG
    assert not model.training
    assert same(model.state_dict(), trained)


def test_a_checkpoint_of_before_the_zip_format_is_read(trained: State, tmp_path: Path) -> None:
    torch.save(trained, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    assert same(weights.read(tmp_path / "old.pth.tar"), trained)


def test_a_training_checkpoint_with_its_command_line_is_read(trained: State, tmp_path: Path) -> None:
    torch.save({"state_dict": trained, "args": argparse.Namespace(lr=0.1)}, tmp_path / "m.pth.tar")
    assert same(weights.read(tmp_path / "m.pth.tar"), trained)


def test_a_model_is_loaded_for_another_image_size(trained: State, tmp_path: Path) -> None:
    _, model = weights.load(written(tmp_path / "m.safetensors", trained), image_size=96)
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 7)


@FORMATS
@pytest.mark.parametrize("kept", [0, 100, 100_000])
def test_a_torn_file_is_an_error_that_names_it(trained: State, tmp_path: Path, name: str, kept: int) -> None:
    path = written(tmp_path / name, trained)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=f"{name} is torn, or no checkpoint: .+"):
        weights.read(path)


class Trap:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_a_pickle_with_code_is_refused_and_the_code_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "m.pth", tmp_path / "mark"
    torch.save({"state_dict": Trap(mark)}, path)
    with pytest.raises(WeightsError, match="holds more than tensors and plain values"):
        weights.read(path)
    path.write_bytes(pickle.dumps(Trap(mark), protocol=2))
    with pytest.raises(WeightsError, match="holds more than tensors and plain values"):
        weights.read(path)
    assert not mark.exists()


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights file .*gone\.pth"):
        weights.read(tmp_path / "gone.pth")


def test_what_does_not_fit_is_reported_with_the_file(trained: State, tmp_path: Path) -> None:
    path = written(tmp_path / "m.pth", without(trained, "norm.weight"))
    with pytest.raises(WeightsError, match=r"m\.pth: missing norm\.weight"):
        weights.load(path)


def test_class_names_travel_with_the_weights(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "m.safetensors", {"labels": json.dumps(["cat", "dog"])})
    save_file({"a": torch.zeros(1)}, tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "bad.safetensors", {"labels": "cat, dog"})
    assert weights.read_labels(tmp_path / "m.safetensors") == (Label("cat"), Label("dog"))
    assert weights.read_labels(tmp_path / "none.safetensors") is None
    with pytest.raises(LabelsError, match=r"bad\.safetensors"):
        weights.read_labels(tmp_path / "bad.safetensors")


@FORMATS
def test_what_becomes_of_the_file_later_is_of_no_matter(trained: State, tmp_path: Path, name: str) -> None:
    state = weights.read(path := written(tmp_path / name, trained))
    assert str(path) not in Path("/proc/self/maps").read_text()
    os.truncate(path, 0)
    assert same(state, trained)
