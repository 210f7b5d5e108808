"""The command line: `volo serve`, `volo predict`, `volo bench`, `volo plan`, `volo doctor`, `volo models`."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.metadata import version

from setproctitle import setproctitle

from service import lifeline, logs, multiprocess, process, tls
from service.bench import command as bench_command
from service.doctor import command as doctor_command
from service.options import add_settings, read_settings
from service.plan import command as plan_command
from service.predict import command as predict_command
from service.settings import Settings
from service.terminal import USAGE, fail, print_table


def main() -> None:
    """Run one command; its exit status is the process's."""
    if sys.argv[1:] in (["_engine"], ["_worker"]):
        _child(sys.argv[1][1:])
        return
    arguments = _parser().parse_args()
    try:
        status = arguments.command(arguments)
        sys.stdout.flush()
        sys.exit(status)
    except KeyboardInterrupt:
        sys.exit(process.INTERRUPTED)
    except BrokenPipeError:  # whoever reads what is printed has seen enough, `head` for one
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _child(role: str) -> None:
    """The supervisor's own processes."""
    try:
        orders = lifeline.receive_orders()
    except ValueError as error:
        fail(f"this is for `volo serve` to start: {error}", USAGE)
    settings = Settings.model_validate(orders["settings"])
    name = role if role == "engine" else f"worker {orders['number']}"
    setproctitle(f"volo: {name}")
    logs.configure(settings.log_level, settings.log_format, name)
    try:
        if role == "engine":
            from service import engine_process  # here, because HTTP workers do without torch

            engine_process.main(orders)
        else:
            from service import worker

            worker.main(orders)
    except multiprocess.NoRoom as error:
        logs.logger.critical("cannot start", reason=str(error))
        lifeline.report_refusal(str(error))
        sys.exit(1)  # there may be room again for the next one


def _serve(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments)
    if settings.tls_cert and settings.tls_key:
        try:
            tls.context(settings.tls_cert, settings.tls_key)
        except tls.UnusableCertificate as error:
            fail(str(error), USAGE)
    setproctitle("volo: supervisor")
    try:
        multiprocess.begin()
        from service.supervisor import supervise  # which begins to count
    except OSError as error:
        fail(f"cannot start: {error}", 1)
    return supervise(settings)


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
    print_table(titles, table, right=set(titles[1:-1]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="volo", description="Names what is in a photograph.")
    parser.add_argument("--version", action="version", version=f"volo {version('volo-serve')}")
    parser.set_defaults(command=lambda _: parser.print_help())
    commands = parser.add_subparsers(metavar="COMMAND")

    serve = commands.add_parser("serve", help="answer over HTTP", description="Answer over HTTP.")
    serve.set_defaults(command=_serve)
    add_settings(serve, list(Settings.model_fields))

    predict_command.add_parser(commands)
    bench_command.add_parser(commands)
    plan_command.add_parser(commands)
    doctor_command.add_parser(commands)

    models = commands.add_parser("models", help="list the models", description="The models that have a name.")
    models.set_defaults(command=_models)
    return parser


if __name__ == "__main__":
    main()
