"""What several processes count is one sum, and nothing that ended is counted as there."""

import os
import struct
import subprocess
import sys
from pathlib import Path

from disks import small_disk
from running import environment

COUNT = """
from service import metrics
metrics.requests.labels("/predict", "m", "ok").inc(2)
metrics.stage_seconds.labels("m", "decode").observe(0.004)
metrics.queue_depth.labels("m").set(3)
"""
SHOW = "from service import multiprocess; print(multiprocess.exposition().decode())"
FORGET = "import sys; from service import multiprocess; multiprocess.forget(int(sys.argv[1]))"


def python(code: str, *arguments: str, **variables: str) -> tuple[int, str]:
    """The process id and the output of a process that runs the code."""
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(command, env={**environment(), **variables}, stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate()
    assert process.returncode == 0
    return process.pid, output


def test_all_processes_are_one_truth_and_the_dead_keep_what_they_counted(tmp_path: Path) -> None:
    folder = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    ended = [python(COUNT, **folder)[0] for _ in range(2)]
    _, text = python(SHOW, **folder)
    assert 'volo_requests_total{endpoint="/predict",model="m",outcome="ok"} 4.0' in text
    assert 'volo_stage_seconds_bucket{le="0.005",model="m",stage="decode"} 2.0' in text
    assert 'volo_stage_seconds_bucket{le="0.0025",model="m",stage="decode"} 0.0' in text
    assert 'volo_stage_seconds_count{model="m",stage="decode"} 2.0' in text
    assert 'volo_queue_depth{model="m"} 6.0' in text
    python(FORGET, str(ended[0]), **folder)
    _, text = python(SHOW, **folder)
    assert 'volo_requests_total{endpoint="/predict",model="m",outcome="ok"} 4.0' in text
    assert 'volo_queue_depth{model="m"} 3.0' in text


def test_processes_that_end_again_and_again_leave_one_set_of_files_and_all_that_they_counted(tmp_path: Path) -> None:
    folder = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(3):
        python(FORGET, str(python(COUNT, **folder)[0]), **folder)
    _, text = python(SHOW, **folder)
    assert 'volo_requests_total{endpoint="/predict",model="m",outcome="ok"} 6.0' in text
    assert 'volo_stage_seconds_bucket{le="0.005",model="m",stage="decode"} 3.0' in text
    assert 'volo_stage_seconds_bucket{le="+Inf",model="m",stage="decode"} 3.0' in text
    assert "volo_queue_depth{" not in text
    assert {file.name for file in tmp_path.glob("*.db")} == {"counter_ended.db", "histogram_ended.db"}


def test_a_process_that_ended_as_it_began_to_count_spoils_no_scrape(tmp_path: Path) -> None:
    folder = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    python(COUNT, **folder)
    (tmp_path / "counter_1.db").touch()
    python(FORGET, "1", **folder)
    assert 'outcome="ok"} 2.0' in python(SHOW, **folder)[1]


def test_the_first_process_makes_the_directory_and_removes_it(tmp_path: Path) -> None:
    _, used = python(
        "import os; from service import metrics; print(os.environ['PROMETHEUS_MULTIPROC_DIR'])", TMPDIR=str(tmp_path)
    )
    assert Path(used.strip()).parent == tmp_path
    assert os.listdir(tmp_path) == []


def test_a_directory_that_somebody_else_made_stays(tmp_path: Path) -> None:
    python(COUNT, PROMETHEUS_MULTIPROC_DIR=str(tmp_path))
    assert os.listdir(tmp_path)


def test_what_cannot_be_read_any_more_is_lost_and_spoils_no_scrape(tmp_path: Path) -> None:
    folder = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    python(COUNT, **folder)
    torn = struct.pack("iii", 255, 0, 1000)  # so many bytes are used, and the first key would be longer
    (tmp_path / "counter_1.db").write_bytes(torn.ljust(300, b"x"))
    forget = "from contextlib import suppress; from service import multiprocess\nwith suppress(Exception): "
    python(f"{forget}multiprocess.forget(1)", **folder)
    assert 'outcome="ok"} 2.0' in python(SHOW, **folder)[1]


BEGIN = "from service import multiprocess; multiprocess.begin()"


def test_what_an_earlier_service_left_is_not_told_for_ever(tmp_path: Path) -> None:
    folder = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "made" / "anew")}
    python(BEGIN, **folder)
    python(COUNT, **folder)
    (tmp_path / "made/anew/notes").touch()
    python(BEGIN, **folder)
    assert "volo_queue_depth{" not in python(SHOW, **folder)[1]
    assert {file.name for file in (tmp_path / "made/anew").iterdir()} == {
        "counter_ended.db",
        "histogram_ended.db",
        "lock",
        "notes",
    }


GROW = """
from service import metrics, multiprocess
try:
    for number in range(100_000):
        metrics.queue_depth.labels(str(number)).set(1)
except multiprocess.NoRoom as error:
    print(error)
"""


def test_without_room_to_grow_it_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    with small_disk(tmp_path / "metrics", "1m") as disk:
        command = [*disk.within, sys.executable, "-c", GROW]
        variables = {**environment(), "PROMETHEUS_MULTIPROC_DIR": str(disk.path)}
        ended = subprocess.run(command, env=variables, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert f"bytes of metrics in {disk.path}: No space left on device" in ended.stdout
