"""The command line of `volo predict`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from service.errors import ServiceError
from service.options import add_settings, given_settings, positive, read_settings
from service.process import INTERRUPTED
from service.terminal import USAGE, fail, print_table

if TYPE_CHECKING:
    from models.classifier import Classifier
    from models.prediction import Prediction
    from service.predict.scorers import Scorer
    from service.settings import Settings

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

T = TypeVar("T")

_EXAMPLES = """examples:
  volo predict cat.jpg dog.jpg
  volo predict photos/ --out labels.csv
  volo predict photos/ --out labels.parquet --url http://host:8000

Interrupted, the same command goes on where it was. Bad pictures are in the
results too, with their error. A server's key is taken from VOLO_API_KEY.
"""


def add_parser(commands: Commands) -> None:
    """Add `predict` to the commands."""
    predict = commands.add_parser(
        "predict",
        help="name what is in files and folders",
        description="Name what is in pictures: shown, or written to a table.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    predict.set_defaults(command=run)
    predict.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="pictures, and folders of them")
    predict.add_argument("--top-k", type=positive, default=5, metavar="N", help="how many labels (5)")
    predict.add_argument("--threshold", type=_probability, default=0.0, metavar="P", help="least score of a label (0)")
    predict.add_argument("--json", action="store_true", help="one JSON object a line")
    predict.add_argument("--out", type=Path, metavar="FILE", help="write to a .jsonl, .csv or .parquet file")
    predict.add_argument("--overwrite", action="store_true", help="forget what is in that file")
    predict.add_argument("--url", help="have a running service look, instead of a model of this process")
    add_settings(predict, ["model", "labels", "weights_sha256", "device", "precision", "max_pixels", "decode"])


def run(arguments: argparse.Namespace) -> int:
    """Predict as told; the exit status."""
    settings = read_settings(arguments)
    if arguments.out is None:
        if arguments.url:
            fail("--url needs --out: say where the results go", USAGE)
        return _show(arguments, settings)
    return _write(arguments, settings)


def _write(arguments: argparse.Namespace, settings: Settings) -> int:
    from service.predict.bulk import predict_all
    from service.predict.results import Results, ResultsError, format_of
    from service.predict.scorers import ServiceGone

    try:
        format_of(arguments.out)
        scorer = _scorer(arguments, settings)
        if arguments.overwrite:
            Results.remove(arguments.out)
        with Results(arguments.out, scorer.model) as results:
            return int(predict_all(arguments.paths, results, scorer) > 0)
    except ResultsError as error:
        fail(str(error), USAGE)
    except (ServiceGone, OSError) as error:
        fail(f"{error}\nvolo: what is done is kept; the same command goes on from there", 1)
    except KeyboardInterrupt:
        print("\nvolo: interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


def _scorer(arguments: argparse.Namespace, settings: Settings) -> Scorer:
    from service.predict.scorers import LocalScorer, RemoteScorer

    if arguments.url:
        model = given_settings(arguments).get("model")
        return RemoteScorer(arguments.url, model, arguments.top_k, arguments.threshold)
    return _loaded(LocalScorer, settings, arguments.top_k, arguments.threshold)


def _show(arguments: argparse.Namespace, settings: Settings) -> int:
    """Name what is in each file; complain about those that cannot be read, and go on."""
    from service.device import load_classifier
    from service.images import decode
    from service.predict.pictures import find

    classifier: Classifier = _loaded(load_classifier, settings)
    answered: list[tuple[Path, list[Prediction]]] = []
    failed = 0
    for file in find(arguments.paths):
        try:
            image = decode(file.read_bytes(), settings.max_pixels)
        except (ServiceError, OSError) as error:
            print(f"volo: {file}: {error.strerror if isinstance(error, OSError) else error}", file=sys.stderr)
            failed += 1
            continue
        found = classifier.classify(image, arguments.top_k, arguments.threshold)
        if arguments.json:
            line = {"file": str(file), "model": classifier.name, "predictions": [asdict(each) for each in found]}
            print(json.dumps(line, ensure_ascii=False), flush=True)
        else:
            answered.append((file, found))
    if answered:
        _print_predictions(answered)
    return int(failed > 0)


def _loaded(load: Callable[..., T], settings: Settings, *rest: object) -> T:
    """What loads a model, or the command's end in one line that says why not."""
    from service.device import DeviceMissing

    try:
        return load(settings, *rest)
    except (DeviceMissing, OSError, ValueError) as error:
        fail(str(error), 1)


def _print_predictions(answered: list[tuple[Path, list[Prediction]]]) -> None:
    rows = [
        ("" if rank else str(file), each.label, f"{each.score:.1%}")
        for file, found in answered
        for rank, each in enumerate(found)
    ]
    print_table(("file", "label", "score"), rows, right={"score"})


def _probability(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {number:g}")
    return number
