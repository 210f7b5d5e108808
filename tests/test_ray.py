"""What Ray is given; that it works on a cluster is shown by deploy/ray/prove.py."""

import ast
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from running import ROOT

from service.settings import Settings

CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())


def test_the_config_names_what_there_is() -> None:
    (application,) = CONFIG["applications"]
    module, _, name = application["import_path"].partition(":")
    code = (ROOT / "deploy/ray" / f"{module}.py").read_text()
    assert f"\n{name} = " in code
    assert all(f"\nclass {deployment['name']}:" in code for deployment in application["deployments"])
    environment = application["runtime_env"]["env_vars"]
    settings = {key.removeprefix("VOLO_").lower() for key in environment if key.startswith("VOLO_")}
    assert settings <= set(Settings.model_fields)
    assert f"COPY deploy/ray/{module}.py {environment['PYTHONPATH']}/" in (ROOT / "Dockerfile").read_text()


def test_the_config_and_the_code_say_the_same_of_the_deployment() -> None:
    (deployment,) = CONFIG["applications"][0]["deployments"]
    tree = ast.parse((ROOT / "deploy/ray/volo_ray.py").read_text())
    (volo,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    decorated, _ = volo.decorator_list
    assert isinstance(decorated, ast.Call)
    said = {keyword.arg: ast.literal_eval(keyword.value) for keyword in decorated.keywords}
    assert {**said, "name": volo.name, **deployment} == {**said, "name": volo.name}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's
async def test_a_replica_has_started_when_its_model_is_warm_and_tells_what_ails_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install '.[ray]'")
    monkeypatch.setattr(sys, "path", [str(ROOT / "deploy/ray"), *sys.path])
    monkeypatch.setenv("VOLO_MAX_BATCH", "1")
    from volo_ray import Volo, application

    app = application()
    replica = SimpleNamespace(app=app)  # a real one wants a cluster
    with pytest.raises(RuntimeError, match="the engine is starting"):
        Volo.func_or_class.check_health(replica)
    async with app.router.lifespan_context(app):
        Volo.func_or_class.check_health(replica)
