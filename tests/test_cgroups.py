"""What a container's limits are read from, in both versions of control groups."""

from pathlib import Path

import pytest

from service import cgroups, settings


def group(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def membership(folder: Path, text: str) -> Path:
    path = folder / "membership"
    path.write_text(text + "\n")
    return path


def test_the_second_version(tmp_path: Path) -> None:
    root = group(tmp_path / "fs", {"cpu.max": "150000 100000", "memory.max": "4294967296"})
    member = membership(tmp_path, "0::/")
    assert cgroups.processors(root, member) == 1.5
    assert cgroups.memory(root, member) == 4 << 30


def test_the_first_version(tmp_path: Path) -> None:
    files = {
        "cpu/cpu.cfs_quota_us": "200000",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": "1073741824",
    }
    member = membership(tmp_path, "5:memory:/\n3:cpu,cpuacct:/")
    assert cgroups.processors(group(tmp_path / "fs", files), member) == 2.0
    assert cgroups.memory(tmp_path / "fs", member) == 1 << 30


def test_the_groups_around_ours_limit_us_too(tmp_path: Path) -> None:
    files = {"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000", "a/memory.max": "max", "a/b/memory.max": "5"}
    root, member = group(tmp_path / "fs", files), membership(tmp_path, "0::/a/b")
    assert cgroups.processors(root, member) == 1.0
    assert cgroups.memory(root, member) == 5


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"cpu.max": "max 100000", "memory.max": "max"},
        {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
        {"memory/memory.limit_in_bytes": str(2**63 - 4096)},
    ],
)
def test_no_limit_is_none(tmp_path: Path, files: dict[str, str]) -> None:
    root, member = group(tmp_path / "fs", files), membership(tmp_path, "0::/\n5:memory:/\n3:cpu:/")
    assert cgroups.processors(root, member) is None
    assert cgroups.memory(root, member) is None


def test_where_there_are_no_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert cgroups.memory(tmp_path, tmp_path / "missing") is None


def test_a_limit_above_what_the_machine_has_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "memory", lambda: None)
    physical = cgroups.total_memory()
    for limit, expected in ((1 << 20, 1 << 20), (2 * physical, physical)):
        monkeypatch.setattr(cgroups, "memory", lambda limit=limit: limit)
        assert cgroups.total_memory() == expected


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (0.2, 1), (1.5, 2), (100.0, 8)])
def test_a_quota_bounds_the_processors_that_are_counted_on(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(cgroups, "processors", lambda: quota)
    assert settings.cores() == expected
