"""The architecture as a test: which module may import what, read from the syntax tree.

To add a layer, add a line to `MAY_IMPORT`; to add a dependency that only some layers may have, add it to
`GUARDED`.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("vla", "envs", "policies", "experiments", "conf")
GUARDED = (
    *OURS,
    "torch",
    "mujoco",
    "mink",
    "gymnasium",
    "metaworld",
    "hydra",
    "omegaconf",
    "wandb",
    "onnxruntime",
    "onnx",
    "onnxscript",
    "pyarrow",
    "av",
    "websockets",
    "msgpack",
    "franky",
    "h5py",
)
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 600, 60
GROUND_FLOOR = (
    "vla.disk_faults",
    "vla.errors",
    "vla.spec",
    "vla.interface",
    "vla.files",
    "vla.registry",
    "vla.plugins",
    "vla.resize",
    "vla.geometry",
    "vla.picture_errors",
)

# Module prefix -> the guarded names it may import besides itself. The longest matching prefix decides.
MAY_IMPORT = {
    "vla.errors": (),
    "vla.spec": ("vla.errors",),
    "vla.interface": ("vla.errors", "vla.spec"),
    "vla.registry": ("vla.errors",),
    "vla.plugins": ("vla.errors", "vla.registry"),
    "vla.resize": ("vla.errors", "vla.registry"),
    "vla.geometry": (),
    "vla.picture_errors": (),
    "vla.provenance": (),
    "policies.runtime": GROUND_FLOOR,
    "policies.robots": (*GROUND_FLOOR, "policies.runtime.clock"),
    "policies": (*GROUND_FLOOR, "vla.processing"),
    "policies.vla_policy": (*GROUND_FLOOR, "policies", "vla.processing", "vla.model", "torch"),
    "policies.attention_map": (*GROUND_FLOOR, "policies", "vla.model"),
    "policies.export": (
        *GROUND_FLOOR,
        "policies",
        "vla.processing",
        "vla.model",
        "torch",
        "onnx",
    ),
    "policies.export_graph": (*GROUND_FLOOR, "policies", "vla.processing", "vla.model", "torch", "onnx"),
    "policies.export_loop": (*GROUND_FLOOR, "policies.graph_modules", "vla.model", "torch", "onnx"),
    "policies.graph_modules": (*GROUND_FLOOR, "vla.model", "torch"),
    "policies.exported": (*GROUND_FLOOR, "policies", "vla.processing", "onnxruntime"),
    "policies.serving.wire": (*GROUND_FLOOR, "msgpack"),
    "policies.serving.server": (*GROUND_FLOOR, "policies", "websockets"),
    "policies.serving.intake": ("websockets",),
    "policies.serving.session": (*GROUND_FLOOR, "policies", "websockets"),
    "policies.serving.client": (*GROUND_FLOOR, "policies", "websockets"),
    "vla.disk_faults": (),
    "vla.files": ("vla.disk_faults", "vla.errors"),
    "vla.processing": GROUND_FLOOR,
    "vla.data": (*GROUND_FLOOR, "vla.processing", "pyarrow", "av"),
    "vla.data.hdf5": (*GROUND_FLOOR, "vla.data", "h5py"),
    "vla.model": (*GROUND_FLOOR, "torch"),
    "vla.training": (*GROUND_FLOOR, "vla.model", "vla.processing", "vla.data", "torch"),
    "envs": (
        *GROUND_FLOOR,
        "vla.provenance",
        "policies.runtime",  # one frame history, one chunk schedule, one safety filter for both roads
        "mujoco",
        "mink",
        "gymnasium",
        "av",
    ),
    "envs.metaworld.env": (*GROUND_FLOOR, "envs", "mujoco", "metaworld"),
    "experiments": GUARDED,
    "conf": (),
}

# Module prefix -> names that may not even be reached through other modules of ours.
UPSTAIRS = ("vla.model", "vla.training", "vla.data", "vla.processing", "vla.provenance")
NEVER_REACH = {
    "policies.exported": ("torch", "onnx", "mujoco", "hydra", "vla.model", "vla.training"),
    "policies.bundle": ("torch", "onnxruntime", "mujoco", "hydra"),
    "policies.serving.server": ("torch", "onnxruntime", "mujoco", "hydra", *UPSTAIRS),
    "policies.serving.client": ("torch", "onnxruntime", "mujoco", "hydra", *UPSTAIRS),
    "policies.runtime": ("torch", "onnxruntime", "mujoco", "hydra", "envs", *UPSTAIRS),
    "policies.robots": ("torch", "onnxruntime", "mujoco", "hydra", "envs", *UPSTAIRS),
    "vla.interface": ("torch", "onnxruntime", "mujoco", "hydra", "pyarrow", "av", "policies", "envs"),
    "vla.processing": ("torch", "onnxruntime", "mujoco", "hydra", "policies", "envs"),
    "vla.data": ("torch", "mujoco", "hydra", "policies", "envs"),
    "vla.model": ("mujoco", "hydra", "policies", "envs"),
    "vla.training": ("mujoco", "hydra", "wandb", "policies", "envs"),
    "envs": ("torch", "hydra", "wandb", "vla.model", "vla.training", "vla.data", "vla.processing"),
}


def inside(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = sorted(path for top in OURS for path in (ROOT / top).rglob("*.py"))
MODULES = {module_name(path): path for path in PATHS}


def imports(path: Path) -> set[str]:
    """All imported module names, function-level imports and `from package import module` included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not used here"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = {name for name in names if name in MODULES}
            found |= submodules if submodules == names else {node.module, *submodules}
    return found


def guarded_imports(path: Path) -> set[str]:
    return {name for name in imports(path) if any(inside(name, prefix) for prefix in GUARDED)}


def reached(module: str) -> dict[str, str]:
    """Everything imported by `module` or by modules of ours behind it: name -> the module that imports it."""
    found, queue, seen = {}, [module], {module}
    while queue:
        current = queue.pop()
        for name in imports(MODULES[current]):
            found.setdefault(name, current)
            if name in MODULES and name not in seen:
                seen.add(name)
                queue.append(name)
    return found


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_its_layer_may(module):
    layers = [prefix for prefix in MAY_IMPORT if inside(module, prefix)]
    if not layers:
        assert not MODULES[module].read_text().strip(), f"{module} belongs to no layer of the table"
        return
    layer = max(layers, key=len)
    for name in sorted(guarded_imports(MODULES[module])):
        allowed = any(inside(name, prefix) for prefix in (layer, *MAY_IMPORT[layer]))
        assert allowed, f"{module} (layer {layer}) may not import {name}; it may import {MAY_IMPORT[layer]}"


@pytest.mark.parametrize(
    "module", sorted(name for name in MODULES if any(inside(name, p) for p in NEVER_REACH))
)
def test_a_light_module_reaches_nothing_heavy_through_others(module):
    forbidden = next(names for prefix, names in NEVER_REACH.items() if inside(module, prefix))
    for name, importer in reached(module).items():
        heavy = any(inside(name, prefix) for prefix in forbidden)
        assert not heavy, f"{module} reaches {name}, imported by {importer}"


def test_init_files_are_empty():
    full = [str(p) for p in PATHS if p.name == "__init__.py" and p.read_text().strip()]
    assert not full, "work at import belongs into modules"


def test_modules_stay_small_and_say_what_they_are():
    for module, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        if not text.strip():
            continue
        tree = ast.parse(text)
        assert ast.get_docstring(tree), f"{module} has no docstring"
        assert len(text.splitlines()) <= MOST_LINES, f"{module} has {len(text.splitlines())} lines; split it"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                assert lines <= MOST_LINES_OF_A_FUNCTION, f"{module}.{node.name} has {lines} lines; split it"
