"""The command line of `volo predict`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from service.errors import ServiceError
from service.options import add_settings, given_settings, positive, read_settings
from service.process import INTERRUPTED
from service.terminal import USAGE, fail, print_table

if TYPE_CHECKING:
    from service.predict.results import Record
    from service.predict.scorers import RemoteScorer, Scorer
    from service.settings import Settings

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

T = TypeVar("T")

_KEY = "VOLO_API_KEY"

_EXAMPLES = f"""examples:
  volo predict cat.jpg dog.jpg
  volo predict photos/ --out labels.csv
  volo predict photos/ --out labels.parquet --url http://host:8000

A table has a row for each picture, bad ones with their error. Interrupted, the
same command goes on where it was. Folders are searched for pictures by suffix;
a file that is named itself is tried whatever it is called.

A service's key is taken from {_KEY} or --api-key-file. Exit status: 0 if all
pictures were named, 1 if some were not, 2 if the command was mistyped.
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
    where = predict.add_mutually_exclusive_group()
    where.add_argument("--json", action="store_true", help="show one JSON object a line, instead of a table")
    where.add_argument("--out", type=Path, metavar="FILE", help="write to a .csv, .jsonl or .parquet file, or go on")
    predict.add_argument("--overwrite", action="store_true", help="forget what is in that file")
    predict.add_argument("--url", help="have the service there look, instead of a model of this process")
    predict.add_argument("--api-key-file", type=Path, metavar="FILE", help="file with the key to show to that service")
    add_settings(predict, ["model", "labels", "weights_sha256", "device", "precision", "max_pixels", "decode"])


def run(arguments: argparse.Namespace) -> int:
    """Predict as told; the exit status."""
    settings = read_settings(arguments)
    return _show(arguments, settings) if arguments.out is None else _write(arguments, settings)


def _write(arguments: argparse.Namespace, settings: Settings) -> int:
    from service.predict.bulk import predict_all
    from service.predict.results import Results, ResultsError, format_of
    from service.predict.scorers import CannotGoOn, LocalScorer

    scorer: Scorer
    try:
        format_of(arguments.out)  # now, because to load a model takes its time
        if arguments.url:
            scorer = _remote(arguments, settings)
        else:
            scorer = _loaded(LocalScorer, settings, arguments.top_k, arguments.threshold)
        if arguments.overwrite:
            Results.remove(arguments.out)
        with Results(arguments.out, scorer.model) as results:
            predict_all(arguments.paths, results, scorer)
        return int(results.failed > 0)
    except ResultsError as error:
        fail(str(error), USAGE)
    except (CannotGoOn, OSError) as error:
        unnamed = isinstance(error, OSError) and not error.filename  # by what writes to a file that is open
        fail(
            f"{f'{arguments.out}: ' * unnamed}{error}\nvolo: what is done is kept; the same command goes on from there",
            1,
        )
    except KeyboardInterrupt:
        print("\nvolo: interrupted; the same command goes on from here", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)  # because an orderly end would wait for whom we have asked


def _show(arguments: argparse.Namespace, settings: Settings) -> int:
    """Show what is in each file; complain about those that cannot be read, and go on."""
    shown: list[Record] = []
    failed = 0
    for record in (_asked if arguments.url else _seen)(arguments, settings):
        if "error" in record:
            print(f"volo: {record['file']}: {record['detail']}", file=sys.stderr)
            failed += 1
        elif arguments.json:
            print(json.dumps(record, ensure_ascii=False), flush=True)
        else:
            shown.append(record)
    if shown:
        _print_predictions(shown)
    return int(failed > 0)


def _asked(arguments: argparse.Namespace, settings: Settings) -> Iterator[Record]:
    """What a service says of each file."""
    from service.predict.bulk import scored
    from service.predict.pictures import find
    from service.predict.scorers import CannotGoOn

    try:
        yield from scored(find(arguments.paths), _remote(arguments, settings))
    except CannotGoOn as error:
        fail(str(error), 1)


def _seen(arguments: argparse.Namespace, settings: Settings) -> Iterator[Record]:
    """What a model says of each file, one by one: for a few there is nothing to gain from more."""
    from service.device import load_classifier
    from service.images import decode
    from service.predict.pictures import failure, find, name_of, read

    classifier = _loaded(load_classifier, settings)
    for file in find(arguments.paths):
        record = {"file": name_of(file), "model": classifier.name}
        try:
            image = decode(read(file, settings.max_pixels), settings.max_pixels)
        except (ServiceError, OSError) as error:
            yield record | failure(error)
            continue
        found = classifier.classify(image, arguments.top_k, arguments.threshold)
        yield record | {"predictions": [asdict(each) for each in found]}


def _remote(arguments: argparse.Namespace, settings: Settings) -> RemoteScorer:
    """The service that was asked for, or the command's end in one line that says why not."""
    from service.predict.scorers import CannotGoOn, RemoteScorer

    model = given_settings(arguments).get("model")
    try:
        return RemoteScorer(arguments.url, settings, arguments.top_k, arguments.threshold, model, _key(arguments))
    except CannotGoOn as error:
        fail(str(error), 1)


def _key(arguments: argparse.Namespace) -> str:
    """The key for the service, if there is one; no option of its own, because `ps` shows options."""
    try:
        key = arguments.api_key_file.read_text() if arguments.api_key_file else os.environ.get(_KEY, "")
    except (OSError, ValueError) as error:
        fail(f"{arguments.api_key_file} has no key: {error}", USAGE)
    if not (key.strip().isascii() and key.strip().isprintable()):
        fail("a key is visible ASCII, because it travels in a header", USAGE)
    return str(key.strip())


def _loaded(load: Callable[..., T], settings: Settings, *rest: object) -> T:
    """What loads a model, or the command's end in one line that says why not."""
    from service.device import DeviceFault, DeviceMissing, OutOfMemory

    try:
        return load(settings, *rest)
    except (DeviceMissing, DeviceFault, OutOfMemory, OSError, ValueError) as error:
        fail(str(error), 1)


def _print_predictions(records: list[Record]) -> None:
    rows = [
        ("" if rank else record["file"], each["label"], f"{each['score']:.1%}")
        for record in records
        for rank, each in enumerate(record["predictions"])
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
