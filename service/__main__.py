"""The command line: `volo serve`, `volo predict`, `volo bench`, `volo models`."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from setproctitle import setproctitle

from service import logs, process
from service.errors import ServiceError
from service.settings import Settings


def main() -> None:
    """Run one command; its exit status is the process's."""
    if len(sys.argv) == 2 and sys.argv[1] in ("engine", "worker"):
        _child(sys.argv[1])
        return
    arguments = _parser().parse_args()
    try:
        sys.exit(arguments.command(arguments))
    except ValidationError as error:
        for fault in error.errors():
            print(f"volo: {'.'.join(map(str, fault['loc']))}: {fault['msg']}", file=sys.stderr)
        sys.exit(2)


def _child(role: str) -> None:
    """The supervisor's own processes."""
    orders = process.receive_orders()
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

    setproctitle("volo: supervisor")
    return supervise(Settings(**_given(arguments)))


def _predict(arguments: argparse.Namespace) -> int:
    from service.device import load_classifier
    from service.images import decode

    settings = Settings(**_given(arguments))
    classifier = load_classifier(settings)
    table = Table("file", "label", "score", box=None, header_style="bold")
    failed = False
    for file in arguments.files:
        try:
            found = classifier.classify(decode(file.read_bytes(), settings.max_pixels), arguments.top_k)
        except (ServiceError, OSError) as error:
            print(f"volo: {file}: {error}", file=sys.stderr)
            failed = True
            continue
        if arguments.json:
            line = {
                "file": str(file),
                "model": classifier.name,
                "predictions": [asdict(each) for each in found],
            }
            print(json.dumps(line, ensure_ascii=False), flush=True)
        for rank, each in enumerate(found):
            table.add_row("" if rank else str(file), each.label, f"{each.score:.1%}")
    if table.rows and not arguments.json:
        Console().print(table)
    return int(failed)


def _bench(arguments: argparse.Namespace) -> int:
    """Time the model's runs of every size, as the engine makes them."""
    from service.device import Device, load_classifier

    settings = Settings(**_given(arguments))
    device = Device(load_classifier(settings), settings.max_batch, settings.timeout_s)
    table = Table("batch", "ms a run", "pictures/s", box=None, header_style="bold")
    for size, seconds in device.warm_up(rounds=10).items():
        table.add_row(str(size), f"{seconds * 1e3:.1f}", f"{size / seconds:.0f}")
    Console().print(table)
    return 0


def _models(arguments: argparse.Namespace) -> int:
    from models.zoo import rows

    table = Table(box=None, header_style="bold")
    for title in ("model", "pixels", "crop", "classes", "params", "GMACs", "top-1", "weights from"):
        table.add_column(title, justify="left" if title in ("model", "weights from") else "right")
    for row in rows():
        table.add_row(
            row.name,
            str(row.image_size),
            f"{row.crop_pct:g}",
            str(row.classes),
            f"{row.parameters / 1e6:.1f} M",
            f"{row.multiply_adds / 1e9:.2f}",
            "" if row.top1 is None else f"{row.top1:.1f} %",
            row.source,
        )
    Console().print(table)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="volo", description="Names what is in a photograph.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="answer over HTTP", description="Answer over HTTP.")
    serve.set_defaults(command=_serve)
    _add_settings(serve, list(Settings.model_fields))

    predict = commands.add_parser("predict", help="name what is in some files", description="No server is needed.")
    predict.set_defaults(command=_predict)
    predict.add_argument("files", nargs="+", type=Path, metavar="FILE")
    predict.add_argument("--top-k", type=int, default=5, help="how many labels (5)")
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
    for name in names:
        field = Settings.model_fields[name]
        default = "" if field.default is None else f" ({field.default})"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            metavar=name.rpartition("_")[2].upper(),
            help=f"{field.description}{default}".replace("%", "%%"),
        )


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name in Settings.model_fields if (value := getattr(arguments, name, None)) is not None}


if __name__ == "__main__":
    main()
