"""Shows on one machine, without a GPU, what the service does on a Ray cluster of two nodes: two replicas, one on each,
share the load; one is killed under it; what that cuts off is sent again; all is answered, and nothing is left behind.

    pip install 'volo-serve[ray]'
    python deploy/ray/prove.py
"""

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

# Ray's proxy prefers its own node's replica; here, where one proxy stands for a balancer, it shall prefer none.
os.environ["RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING"] = "0"

import httpx
import ray
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.cluster_utils import Cluster
from ray.util import list_named_actors
from volo_ray import Volo

URL = "http://127.0.0.1:8123"
CALLERS = 8
REQUESTS = 400
PICTURE = (files("models.data") / "samples" / "coffee.jpg").read_bytes()


@contextmanager
def cluster_of_two() -> Iterator[None]:
    """Two nodes with a replica each."""
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR")  # ours; each replica has its own, as on a cluster that runs already
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2)
    try:
        environment = {"VOLO_DEVICE": "cpu", "VOLO_MAX_BATCH": "4", "PYTHONPATH": ":".join(sys.path)}
        ray.init(
            address=cluster.address,
            runtime_env={"env_vars": environment},
            logging_level="error",
            log_to_driver=False,
        )
        serve.start(http_options={"host": "127.0.0.1", "port": 8123}, proxy_location="HeadOnly")
        deployment = Volo.options(
            num_replicas=2,
            max_replicas_per_node=1,
            autoscaling_config=None,
            max_ongoing_requests=16,
            ray_actor_options={"num_cpus": 1},
        )
        serve.run(deployment.bind(), name="volo")
        yield
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def replicas() -> list[str]:
    """The names of the replicas' actors."""
    return [actor["name"] for actor in list_named_actors(all_namespaces=True) if "SERVE_REPLICA" in actor["name"]]


def predict(client: httpx.Client) -> Counter[str]:
    """One picture, sent again until it is answered: it may be, for to ask twice changes nothing."""
    seen: Counter[str] = Counter()
    for _ in range(50):
        try:
            status = client.post("/predict", content=PICTURE).status_code
        except httpx.TransportError as error:
            seen[type(error).__name__] += 1
        else:
            seen[str(status)] += 1
            if status == 200:
                break
        time.sleep(0.2)
    return seen


def load(count: int, then: Callable[[], None] = lambda: None) -> Counter[str]:
    """Send so many pictures, do something in the middle of it, and say what came of all tries."""
    halfway = threading.Semaphore(0)

    def one(number: int) -> Counter[str]:
        if number == count // 2:
            halfway.release()
        return predict(client)

    with httpx.Client(base_url=URL, timeout=60) as client, ThreadPoolExecutor(CALLERS + 1) as pool:
        meanwhile = pool.submit(lambda: (halfway.acquire(), then()))
        answers = list(pool.map(one, range(count)))
        meanwhile.result()
    return sum(answers, Counter())


def shares() -> dict[str, int]:
    """How many pictures went through each engine, by its process's metrics."""
    found: dict[str, int] = {}
    with httpx.Client(base_url=URL, timeout=60) as client:
        while len(found) < len(replicas()):  # each answer is of whichever replica Ray chose
            text = client.get("/metrics").text
            values = {s.name: s for family in text_string_to_metric_families(text) for s in family.samples}
            warm_up = values["volo_model_warm_up_seconds"].value  # no two are the same: it tells replicas apart
            found[f"warm in {warm_up:.3f} s"] = int(values["volo_pictures_total"].value)
    return found


def kill_one() -> None:
    name = replicas()[0]
    print(f"killing {name}")
    ray.kill(ray.get_actor(name, namespace="serve"))


def engines() -> int:
    """Our engines' processes on this machine."""
    return sum(_title(entry).startswith("volo: engine") for entry in Path("/proc").iterdir() if entry.name.isdecimal())


def _title(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_text()
    except OSError:
        return ""


def until(holds: Callable[[], Any], within_s: float = 60.0) -> float:
    """Wait until it holds: how long that took."""
    started_s = time.monotonic()
    while not holds():
        if time.monotonic() - started_s > within_s:
            raise SystemExit(f"it did not happen within {within_s:.0f} s")
        time.sleep(0.1)
    return time.monotonic() - started_s


def main() -> None:
    before = engines()
    with cluster_of_two():
        print(f"{len(replicas())} replicas; {REQUESTS} pictures from {CALLERS} callers: {dict(load(REQUESTS))}")
        pictures = shares()
        print(f"pictures by replica: {pictures}")
        assert min(pictures.values()) >= REQUESTS / len(pictures) / 4
        tries = load(REQUESTS, kill_one)
        assert tries["200"] == REQUESTS
        print(f"with one killed on the way, all tries: {dict(tries)}; answered: {tries['200']} of {REQUESTS}")
        again_s = until(lambda: len(replicas()) == 2 and engines() - before == 2)
        print(f"two replicas again {again_s:.1f} s after the last answer, and no engine without a replica")
    until(lambda: engines() == before)
    print("all gone")


if __name__ == "__main__":
    main()
