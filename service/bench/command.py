"""The command line of `volo bench`. What measures is imported when it is asked for: some of it needs torch."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from service.options import add_settings, positive
from service.settings import Settings
from service.terminal import fail

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_EXTRA = "pip install 'volo-serve[bench]'"
_SERVER = [name for name in Settings.model_fields if name not in ("host", "port")]


def add_parser(commands: Commands) -> None:
    """Add `bench` to the commands."""
    bench = commands.add_parser(
        "bench", help="measure the model, the decoder or a service", description="Measure what this machine can do."
    )
    bench.set_defaults(command=lambda _: bench.print_help())
    kinds = bench.add_subparsers(metavar="WHAT")
    _add_model(kinds)
    _add_preprocess(kinds)
    _add_serve(kinds)
    _add_overhead(kinds)
    _add_costs(kinds)


def _add_model(kinds: Commands) -> None:
    model = kinds.add_parser(
        "model",
        help="the forward alone",
        description="Time a model's forward, without HTTP or decoding. Published models are timed with random "
        "weights, so that nothing is downloaded.",
    )
    model.set_defaults(command=_model)
    model.add_argument("model", nargs="?", metavar="NAME", help="from `volo models`, or a path (the one that is set)")
    model.add_argument("--batch", type=_counts, metavar="N,N", help="pictures in a run (1,8,32; on CUDA 128 too)")
    model.add_argument(
        "--precision",
        dest="precisions",
        type=_precisions,
        metavar="P,P",
        help="auto, float32, bfloat16, float16 (the one that is set)",
    )
    model.add_argument("--threads", type=positive, metavar="N", help="on the CPU (as many as cores)")
    model.add_argument("--lanes", action="store_true", help="on the CPU: runs of one thread against one of all threads")
    model.add_argument("--versus", choices=["timm"], help="time timm's model of the same name in turn")
    model.add_argument("--seconds", type=_amount, default=5.0, metavar="S", help="each is timed for about (5)")
    _add_outputs(model)
    add_settings(model, ["device"])


def _add_preprocess(kinds: Commands) -> None:
    preprocess = kinds.add_parser(
        "preprocess",
        help="decoding and cropping alone",
        description="Time what HTTP workers do with a photo, on one core: decode it, and crop it for a model.",
    )
    preprocess.set_defaults(command=_preprocess)
    preprocess.add_argument("names", nargs="*", metavar="NAME", help="whose crops (the model that is set)")
    preprocess.add_argument("--seconds", type=_amount, default=2.0, metavar="S", help="each is timed for about (2)")
    _add_json(preprocess)
    add_settings(preprocess, ["model", "max_pixels", "decode"])


def _add_serve(kinds: Commands) -> None:
    serve = kinds.add_parser(
        "serve",
        help="load on a service",
        description="Load on a running service at URL, whoever made it, or else on one started for it with the "
        "settings given. Without a load, closed loops of 1, 8, 32 and 64 connections.",
    )
    serve.set_defaults(command=_serve)
    serve.add_argument("url", nargs="?", metavar="URL", help="such as http://127.0.0.1:8000")
    serve.add_argument("--path", default="/predict", help="where pictures are posted (/predict)")
    loads = serve.add_argument_group("load", "Several of a kind are separated by commas.")
    loads.add_argument("--connections", type=_counts, metavar="N,N", help="closed loops of so many callers")
    loads.add_argument("--rates", type=_rates, metavar="R,R", help="open loops: Poisson arrivals a second")
    loads.add_argument(
        "--slo-ms", type=_amount, metavar="MS", help="find the highest rate at which p99 stays under it, with no error"
    )
    loads.add_argument("--seconds", type=_amount, default=10.0, metavar="S", help="each load is measured for (10)")
    loads.add_argument("--warm-up", type=_time, default=1.0, metavar="S", help="and is on for so long before (1)")
    loads.add_argument("--cap", type=positive, default=4096, metavar="N", help="most requests under way (4096)")
    loads.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the arrivals (0)")
    loads.add_argument("--processes", type=positive, metavar="N", help="generators (one for every four cores)")
    requests = serve.add_argument_group("requests")
    requests.add_argument("--pictures", type=Path, metavar="DIR", help="JPEG files to send (those that come with it)")
    requests.add_argument("--multipart", metavar="FIELD", help="send forms with the picture for this field")
    requests.add_argument("--header", type=_header, action="append", default=[], metavar="'NAME: VALUE'")
    requests.add_argument("--expect", metavar="TEXT", help="what a good answer contains")
    requests.add_argument("--patience", type=_amount, default=30.0, metavar="S", help="then give up on an answer (30)")
    requests.add_argument("--pid", type=positive, metavar="PID", help="the server's process, to see what it uses")
    _add_outputs(serve)
    add_settings(serve, _SERVER)


def _add_overhead(kinds: Commands) -> None:
    overhead = kinds.add_parser(
        "overhead",
        help="the service around a device that computes nothing",
        description="Put load on one HTTP worker and an engine that computes nothing, with pictures that are cropped "
        "already: what is left is what the service itself costs.",
    )
    overhead.set_defaults(command=_overhead)
    overhead.add_argument("--connections", type=_counts, default=[1, 8, 32], metavar="N,N", help="(1,8,32)")
    overhead.add_argument("--image-size", type=positive, default=64, metavar="PIXELS", help="of a crop (64)")
    overhead.add_argument("--classes", type=positive, default=1000, metavar="N", help="of the answers (1000)")
    overhead.add_argument("--seconds", type=_amount, default=10.0, metavar="S", help="each load is measured for (10)")
    overhead.add_argument("--warm-up", type=_time, default=1.0, metavar="S", help="and is on for so long before (1)")
    _add_json(overhead)


def _add_costs(kinds: Commands) -> None:
    costs = kinds.add_parser(
        "costs",
        help="what `volo plan` needs to know",
        description="Measure a model's runs by batch size as the engine does them, and what a picture costs an HTTP "
        "worker. Published models are timed with random weights, so that nothing is downloaded.",
    )
    costs.set_defaults(command=_costs)
    costs.add_argument("model", nargs="?", metavar="NAME", help="from `volo models`, or a path (the one that is set)")
    costs.add_argument("--out", type=Path, metavar="FILE", help="where to keep them, as JSON (in a cache)")
    costs.add_argument("--pictures", type=Path, metavar="DIR", help="JPEG files to send (those that come with it)")
    costs.add_argument("--seconds", type=_amount, default=3.0, metavar="S", help="each is timed for about (3)")
    add_settings(costs, ["device", "precision", "max_batch", "timeout_s"])


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)
    parser.add_argument("--plot", type=_plot, metavar="FILE", help="a picture of throughput and latency: .svg or .png")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, with machine, versions and settings")


def _model(arguments: argparse.Namespace) -> int:
    from service.bench import model

    return model.run(arguments)


def _preprocess(arguments: argparse.Namespace) -> int:
    from service.bench import preprocess

    return preprocess.run(arguments)


def _serve(arguments: argparse.Namespace) -> int:
    _need_client()
    from service.bench import serve

    return serve.run(arguments)


def _overhead(arguments: argparse.Namespace) -> int:
    _need_client()
    from service.bench import overhead

    return overhead.run(arguments)


def _costs(arguments: argparse.Namespace) -> int:
    _need_client()
    from service.bench import costs

    return costs.run(arguments)


def _need_client() -> None:
    if find_spec("aiohttp") is None:
        fail(f"the load generator needs aiohttp: {_EXTRA}", 1)


def _seed(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {number}")
    return number


def _counts(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def _precisions(text: str) -> list[str]:
    if unknown := set(names := text.split(",")) - {"auto", "float32", "bfloat16", "float16"}:
        raise argparse.ArgumentTypeError(f"there is no precision {unknown.pop()!r}")
    return names


def _rates(text: str) -> list[float]:
    return [_amount(part) for part in text.split(",")]


def _amount(text: str) -> float:
    if not 0 < (amount := _number(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return amount


def _time(text: str) -> float:
    if not 0 <= (seconds := _number(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return seconds


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"a header is 'NAME: VALUE', not {text!r}")
    return name.strip().title(), value.strip()  # so that it replaces one of ours, however it is written


def _plot(text: str) -> Path:
    if Path(text).suffix not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"{text} must end in .svg or .png")
    if find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError(f"it needs matplotlib: {_EXTRA}")
    return Path(text)
