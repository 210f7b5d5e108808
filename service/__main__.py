"""The command line: `volo serve`, `volo predict`, `volo bench`, `volo models`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from setproctitle import setproctitle

from service import logs, process
from service.errors import ServiceError
from service.settings import Settings

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from models.classifier import Classifier
    from models.prediction import Prediction

USAGE = 2  # exit status of a command that was mistyped


def main() -> None:
    """Run one command; its exit status is the process's."""
    if sys.argv[1:] in (["_engine"], ["_worker"]):
        _child(sys.argv[1][1:])
        return
    arguments = _parser().parse_args()
    try:
        sys.exit(arguments.command(arguments))
    except KeyboardInterrupt:
        sys.exit(process.INTERRUPTED)


def _child(role: str) -> None:
    """The supervisor's own processes."""
    try:
        orders = process.receive_orders()
    except ValueError as error:
        _fail(f"this is for `volo serve` to start: {error}", USAGE)
    settings = Settings.model_validate(orders["settings"])
    name = role if role == "engine" else f"worker {orders['number']}"
    setproctitle(f"volo: {name}")
    logs.configure(settings.log_level, settings.log_format, name)
    if role == "engine":
        from service import engine  # here, because HTTP workers do without torch

        engine.main(orders)
    else:
        from service import worker

        worker.main(orders)


def _serve(arguments: argparse.Namespace) -> int:
    from service.supervisor import supervise

    settings = _settings(arguments)
    setproctitle("volo: supervisor")
    return supervise(settings)


def _predict(arguments: argparse.Namespace) -> int:
    """Name what is in each file; complain about those that cannot be read, and go on."""
    from service.images import decode

    settings = _settings(arguments)
    classifier = _classifier(settings)
    answered: list[tuple[Path, list[Prediction]]] = []
    for file in arguments.files:
        try:
            found = classifier.classify(decode(file.read_bytes(), settings.max_pixels), arguments.top_k)
        except (ServiceError, OSError) as error:
            print(f"volo: {file}: {error.strerror if isinstance(error, OSError) else error}", file=sys.stderr)
            continue
        answered.append((file, found))
        if arguments.json:
            line = {"file": str(file), "model": classifier.name, "predictions": [asdict(each) for each in found]}
            print(json.dumps(line, ensure_ascii=False), flush=True)
    if answered and not arguments.json:
        _print_predictions(answered)
    return int(len(answered) < len(arguments.files))


def _print_predictions(answered: list[tuple[Path, list[Prediction]]]) -> None:
    rows = [
        ("" if rank else str(file), each.label, f"{each.score:.1%}")
        for file, found in answered
        for rank, each in enumerate(found)
    ]
    _print_table(("file", "label", "score"), rows, right={"score"})


def _bench(arguments: argparse.Namespace) -> int:
    """Time the model's runs of every size, as the engine makes them."""
    settings = _settings(arguments)
    classifier = _classifier(settings)
    from service.device import Device

    costs = Device(classifier, settings.max_batch, settings.timeout_s).warm_up(rounds=10)
    print(f"{classifier.name} on {classifier.device}, {classifier.image_size} x {classifier.image_size} pixels")
    rows = [(str(size), f"{seconds * 1e3:.1f}", f"{size / seconds:.0f}") for size, seconds in costs.items()]
    titles = ("batch", "ms a run", "pictures/s")
    _print_table(titles, rows, right=set(titles))
    return 0


def _models(arguments: argparse.Namespace) -> int:
    from models.zoo import rows

    titles = ("model", "px", "crop", "labels", "params", "GMACs", "top-1", "weights from")  # fits 80 columns
    table = [
        (
            row.name,
            str(row.image_size),
            f"{row.crop_pct:g}",
            str(row.classes),
            f"{row.parameters / 1e6:.1f}M",
            f"{row.multiply_adds / 1e9:.1f}",
            "" if row.top1 is None else f"{row.top1:.1f}%",
            row.source,
        )
        for row in rows()
    ]
    _print_table(titles, table, right=set(titles[1:-1]))
    return 0


def _print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: set[str]) -> None:
    """On a terminal long texts are folded; elsewhere a row is a line, however long."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in titles:
        table.add_column(title, justify="right" if title in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 1000, highlight=False, markup=False).print(table)


def _classifier(settings: Settings) -> Classifier:
    from service.device import DeviceMissing, load_classifier

    try:
        return load_classifier(settings)
    except (DeviceMissing, OSError, ValueError) as error:
        _fail(str(error), 1)


def _settings(arguments: argparse.Namespace) -> Settings:
    """The settings, of which those on the command line come first."""
    names = Settings.model_fields
    given: dict[str, Any] = {name: value for name in names if (value := getattr(arguments, name, None)) is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        _fail("\nvolo: ".join(map(_fault, error.errors())), USAGE)


def _fault(details: ErrorDetails) -> str:
    name = str(details["loc"][0])
    return f"VOLO_{name.upper()} / {_option(name)}: {details['msg']} (got {details['input']!r})"


def _fail(reason: str, status: int) -> NoReturn:
    print(f"volo: {reason}", file=sys.stderr)
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="volo", description="Names what is in a photograph.")
    parser.add_argument("--version", action="version", version=f"volo {version('volo-serve')}")
    parser.set_defaults(command=lambda _: parser.print_help())
    commands = parser.add_subparsers(metavar="COMMAND")

    serve = commands.add_parser("serve", help="answer over HTTP", description="Answer over HTTP.")
    serve.set_defaults(command=_serve)
    _add_settings(serve, list(Settings.model_fields))

    predict = commands.add_parser("predict", help="name what is in some files", description="No server is needed.")
    predict.set_defaults(command=_predict)
    predict.add_argument("files", nargs="+", type=Path, metavar="FILE")
    predict.add_argument("--top-k", type=_positive, default=5, metavar="N", help="how many labels (5)")
    predict.add_argument("--json", action="store_true", help="one JSON object a line")
    _add_settings(predict, ["model", "labels", "weights_sha256", "device", "max_pixels"])

    bench = commands.add_parser("bench", help="time the model", description="Time the model by batch size.")
    bench.set_defaults(command=_bench)
    _add_settings(bench, ["model", "labels", "weights_sha256", "device", "max_batch"])

    models = commands.add_parser("models", help="list the models", description="The models that have a name.")
    models.set_defaults(command=_models)
    return parser


def _add_settings(parser: argparse.ArgumentParser, names: list[str]) -> None:
    """Options for settings; what is not given is left to the environment."""
    metavars: dict[Any, str] = {int: "N", float: "SECONDS"}
    group = parser.add_argument_group(
        "settings", "Each can be set in the environment too: --max-batch as VOLO_MAX_BATCH."
    )
    for name in names:
        field = Settings.model_fields[name]
        default = "" if field.default is None else f" ({field.default})"
        group.add_argument(
            _option(name),
            dest=name,
            metavar=metavars.get(field.annotation, name.upper()),
            help=f"{field.description}{default}".replace("%", "%%"),
        )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


if __name__ == "__main__":
    main()
