import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models import cost, zoo
from models.volo import VARIANTS, Volo, VoloConfig
from models.zoo import CATALOGUE, Model, Remote, UnknownModel

GOLDEN = json.loads((Path(__file__).parent / "golden" / "volo_state_dict.json").read_text())
TINY_64 = VoloConfig(
    layers=(2, 2, 4, 1),
    dims=(96, 192, 192, 192),
    heads=(3, 6, 6, 6),
    stem_width=32,
    patch_size=4,
    image_size=64,
    num_classes=200,
)
# giga multiply-adds at 224 pixels: timm's results tables, and table 1 of the paper (arXiv 2106.13112)
PUBLISHED = {
    "volo_d1": (6.94, 6.8),
    "volo_d2": (14.34, 14.1),
    "volo_d3": (20.78, 20.6),
    "volo_d4": (44.34, 43.8),
    "volo_d5": (72.4, 69.0),
}


def golden_config(name: str) -> VoloConfig:
    variant, size = name.split("_")
    return TINY_64 if variant == "tiny" else replace(VARIANTS[f"volo_{variant}"], image_size=int(size))


def meta_model(config: VoloConfig) -> Volo:
    with torch.device("meta"):
        return Volo(config).eval()


@pytest.mark.parametrize("name", GOLDEN)
def test_every_variant_has_the_official_names_and_shapes(name: str) -> None:
    state = meta_model(golden_config(name)).state_dict()
    official = {key: shape for key, shape in GOLDEN[name].items() if key != "#parameters"}
    assert {key: list(tensor.shape) for key, tensor in state.items()} == official


@pytest.mark.parametrize("name", GOLDEN)
def test_every_variant_has_the_official_number_of_parameters(name: str) -> None:
    assert cost.count(golden_config(name)).parameters == GOLDEN[name]["#parameters"]


@pytest.mark.parametrize("config", [TINY_64, VARIANTS["volo_d1"]], ids=["tiny", "d1"])
def test_multiply_adds_are_those_that_torch_counts_in_a_forward(config: VoloConfig) -> None:
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), torch.no_grad(), counter:
        Volo(config).eval()(torch.empty(1, 3, config.image_size, config.image_size))
    assert 2 * cost.multiply_adds(config) == counter.get_total_flops()


@pytest.mark.parametrize("variant", PUBLISHED)
def test_multiply_adds_are_in_line_with_the_published(variant: str) -> None:
    giga, (timm, paper) = cost.multiply_adds(VARIANTS[variant]) / 1e9, PUBLISHED[variant]
    assert giga == pytest.approx(timm, rel=0.004)
    assert giga == pytest.approx(paper, rel=0.05)


def test_the_catalogue_holds_the_eleven_published_models_and_the_embedded_one() -> None:
    published = ["d1_224", "d1_384", "d2_224", "d2_384", "d3_224", "d3_448"]
    published += ["d4_224", "d4_448", "d5_224", "d5_448", "d5_512"]
    assert list(CATALOGUE) == [*(f"volo_{name}" for name in published), "embedded"]


@pytest.mark.parametrize("model", CATALOGUE.values(), ids=CATALOGUE)
def test_every_model_can_be_built_as_the_catalogue_says(model: Model) -> None:
    config = replace(VARIANTS[model.variant], image_size=model.image_size, num_classes=len(model.labels))
    assert meta_model(config).config.image_size == model.image_size


def test_published_weights_are_at_the_hub_and_in_the_authors_release() -> None:
    assert CATALOGUE["volo_d4_448"].weights == Remote(
        hub_repo="timm/volo_d4_448.sail_in1k",
        release_url="https://github.com/sail-sg/volo/releases/download/volo_1/d4_448_86.79.pth.tar",
        hub_file="model.safetensors",
    )


def test_the_release_file_of_a_model_is_named_by_its_size_and_accuracy() -> None:
    for model in CATALOGUE.values():
        if isinstance(model.weights, Remote) and model.top1 is not None:
            file = model.weights.release_url.rpartition("/")[2].removesuffix(".pth.tar")
            variant, size, top1 = file.split("_")
            assert f"volo_{variant}_{size}" == model.name
            assert float(top1) == pytest.approx(model.top1, abs=0.05)


def test_a_name_means_a_model_or_else_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    file.touch()
    assert zoo.resolve("volo_d1_224") is CATALOGUE["volo_d1_224"]
    assert zoo.resolve(str(file)) == file


def test_an_unknown_name_is_an_error_that_says_what_was_meant() -> None:
    with pytest.raises(UnknownModel, match="did you mean 'volo_d1_224'"):
        zoo.resolve("volo-d1-224")


def test_the_crop_goes_with_variant_and_size() -> None:
    assert zoo.crop_pct("volo_d3", 448) == 1.0
    assert zoo.crop_pct("volo_d5", 448) == 1.15
    assert zoo.crop_pct("volo_d1", 320) == 0.96


def test_a_row_of_the_table_says_all_of_a_model() -> None:
    row = zoo.rows()[0]
    assert row == zoo.Row(
        name="volo_d1_224",
        image_size=224,
        crop_pct=0.96,
        classes=1000,
        parameters=26_632_040,
        multiply_adds=6_918_741_504,
        top1=84.2,
        source="timm/volo_d1_224.sail_in1k",
    )


def test_catalogue_labels_and_download_do_without_torch() -> None:
    code = "import sys, models.zoo, models.labels, models.download; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
