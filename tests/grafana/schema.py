"""Makes a dashboard's JSON Schema from Grafana's own types (npm's ``@grafana/schema``) in our image's version."""

import json
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import pytest
import yaml

from tests.grafana.dashboards import REPOSITORY, Node
from tests.support.npm import installed

GENERATOR = "ts-json-schema-generator@2.4.0"
"""Later ones need a newer Node than distributions have."""
TYPES = "./node_modules/@grafana/schema/dist/types/raw"
UNPUBLISHED = {"alertlist"}
TSCONFIG = {
    "compilerOptions": {"module": "esnext", "moduleResolution": "bundler", "strict": True, "types": []},
    "files": ["dashboard.ts"],
}


def image_version() -> str:
    """Return the version of Grafana that docker-compose.yml runs."""
    image = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]["grafana"]["image"]
    return str(image).partition(":")[2]


def dashboard_schema(config: pytest.Config, kinds: Iterable[str]) -> Node:
    """Return the schema of dashboards with these kinds of panels, or skip the test without Node or its registry.

    What a panel leaves out gets its default, so that of options nothing is required. A kind without fields' options of
    its own has none, and one whose types Grafana does not publish has any.
    """
    folder = installed(config, f"@grafana/schema@{image_version()}", GENERATOR)
    imports, members = [f'import * as raw from "{TYPES}/dashboard/x/types.gen";'], ["dashboard: raw.Dashboard;"]
    kinds = [kind for kind in kinds if kind not in UNPUBLISHED]
    for kind in kinds:
        name = kind.replace("-", "")
        types = f"{TYPES}/composable/{name}/panelcfg/x/types.gen"
        has_fields = re.search(r"interface FieldConfig\b", (folder / f"{types}.d.ts").read_text())
        imports.append(f'import * as {name} from "{types}";')
        members.append(
            f'"{kind}": {{options: {name}.Options; custom: {f"{name}.FieldConfig" if has_fields else "{}"}}};'
        )
    (folder / "tsconfig.json").write_text(json.dumps(TSCONFIG))
    (folder / "dashboard.ts").write_text("\n".join([*imports, "export interface Types {", *members, "}", ""]))
    types_of = _generated(folder)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "allOf": [
            types_of["dashboard"],
            {"properties": {"panels": {"items": {"allOf": [_panel(kind, types_of[kind]) for kind in kinds]}}}},
        ],
    }


def _generated(folder: Path) -> Node:
    # Kinds have types of the same names, so that nothing is left to be referred to by its name.
    arguments = ("-p", "dashboard.ts", "-t", "Types", "-f", "tsconfig.json", "--no-type-check", "--expose", "none")
    run = subprocess.run(
        [folder / "node_modules" / ".bin" / "ts-json-schema-generator", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return cast("Node", json.loads(run.stdout)["definitions"]["Types"]["properties"])


def _panel(kind: str, types: Node) -> Node:
    options, custom = (_without_required(types["properties"][part]) for part in ("options", "custom"))
    field_config = {"properties": {"defaults": {"properties": {"custom": custom}}}}
    return {
        "if": {"properties": {"type": {"const": kind}}},
        "then": {"properties": {"options": options, "fieldConfig": field_config}},
    }


def _without_required(schema: object) -> object:
    match schema:
        case dict():
            return {key: _without_required(value) for key, value in schema.items() if key != "required"}
        case list():
            return [_without_required(each) for each in schema]
        case _:
            return schema
