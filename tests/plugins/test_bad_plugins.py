"""What is wrong with a plug-in is said where it is passed: the file, the name and the way out."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from envs.registry import ENVIRONMENTS
from experiments.config.plugins import load_plugins, module_of, plugins_in, recorded_plugins
from policies.bundle import read_bundle
from vla.files import write_manifest
from vla.plugins import PluginError
from vla.processing.registry import CODECS
from vla.registry import SettingError

BUNDLE = Path(__file__).parents[1] / "golden" / "bundle_v1"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a plug-in and returns its path; what it adds and imports is forgotten afterwards."""
    before, path = set(sys.modules), list(sys.path)
    for registry in (CODECS, ENVIRONMENTS):
        monkeypatch.setattr(registry, "_entries", registry.entries())

    def write(name, text):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return str(file)

    yield write
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.startswith("lab_"):
            del sys.modules[name]


def test_a_file_and_a_package_are_passed_by_path(write):
    file = write("one/lab_file.py", '__version__ = "1.2"\n')
    package = Path(write("two/lab_package/__init__.py", "")).parent
    load_plugins([file, str(package)])
    assert recorded_plugins([file, str(package)]) == {"lab_file": "1.2", "lab_package": None}
    assert str(package.parent) in sys.path  # where worker processes look too


def test_a_plugin_that_raises_is_named_with_its_line(write):
    file = write("lab_raises.py", "\nx = 1 / 0\n")
    with pytest.raises(SettingError, match=rf"lab_raises.*ZeroDivisionError.*{file}:2; mend that line"):
        load_plugins([file])


def test_a_plugin_that_exits_does_not_end_the_program(write):
    with pytest.raises(SettingError, match="SystemExit: 0"):
        load_plugins([write("lab_exits.py", "import sys\nsys.exit(0)\n")])


def test_a_plugin_that_is_no_python_is_named_with_its_line(write):
    file = write("lab_syntax.py", "x = 1\ndef\n")
    with pytest.raises(SettingError, match=rf"SyntaxError.*{file}:2"):
        load_plugins([file])


def test_a_package_that_a_plugin_lacks_is_named(write):
    with pytest.raises(SettingError, match="raised ModuleNotFoundError: No module named 'no_such_package'"):
        load_plugins([write("lab_lacks.py", "import no_such_package\n")])


def test_a_name_that_is_taken_is_refused(write):
    text = 'from vla.processing.registry import CODECS\nCODECS.add("uniform", "lab_taken:Mine")\n'
    file = write("lab_taken.py", text)
    message = rf"action codec 'uniform' is already vla.*choose another name for lab_taken:Mine at {file}:2"
    with pytest.raises(SettingError, match=message):
        load_plugins([file])


def test_two_plugins_of_one_name_are_refused(write):
    first, second = write("a/lab_same.py", ""), write("b/lab_same.py", "")
    with pytest.raises(SettingError, match=rf"'{second}', but 'lab_same' is {first} here already.*rename"):
        load_plugins([first, second])


def test_a_plugin_never_hides_a_module_of_ours(write):
    with pytest.raises(SettingError, match=r"'envs' is .*here already"):
        module_of(write("envs.py", ""))


def test_a_folder_without_a_package_names_its_files(write):
    folder = Path(write("stuff/lab_inside.py", "")).parent
    with pytest.raises(SettingError, match=r"there is no file .*__init__.py; give one of lab_inside.py"):
        load_plugins([str(folder)])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SettingError, match=r"there is no file .*lab_gone.py; give a file"):
        load_plugins([str(tmp_path / "lab_gone.py")])


def test_a_part_that_a_plugin_does_not_define_is_named(write):
    text = 'from vla.processing.registry import CODECS\nCODECS.add("lab", "lab_forgot:Codec")\n'
    file = write("lab_forgot.py", text)
    load_plugins([file])
    with pytest.raises(SettingError, match=rf"lab_forgot defines no Codec; define it in {file}"):
        CODECS.get("lab")


def test_a_part_whose_module_raises_is_named_in_the_parent(write):
    write("lab_parts.py", "raise OSError('no camera')\n")
    text = 'from envs.registry import ENVIRONMENTS\nENVIRONMENTS.add("lab", "lab_parts:Env")\n'
    load_plugins([write("lab_env.py", text)])
    with pytest.raises(SettingError, match=r"env 'lab' needs module 'lab_parts'.*OSError.*lab_parts.py:1"):
        ENVIRONMENTS.get("lab")


def test_the_former_key_is_explained():
    with pytest.raises(SettingError, match=r"'extensions'; it is now plugins"):
        plugins_in(["extensions=[a]", "env=toy"])


def bundle_with(folder, *, codec, plugins):
    """Copy a bundle, with another codec and with plug-ins in its provenance."""
    shutil.copytree(BUNDLE, folder)
    (folder / "manifest.json").unlink()
    file = folder / "processor.json"
    data = json.loads(file.read_text())
    data["action_tokenizer"]["kind"] = codec or data["action_tokenizer"]["kind"]
    file.write_text(json.dumps(data))
    write_manifest(folder, {"plugins": plugins})
    return folder


def test_a_bundle_names_the_plugin_that_it_lacks(tmp_path):
    bundle = bundle_with(tmp_path / "bundle", codec="lab_law", plugins={"lab_law": "1.0"})
    with pytest.raises(
        PluginError, match=r"trained with the plug-ins lab_law 1.0. Pass plugins=\[lab_law\]"
    ) as e:
        read_bundle(bundle)
    assert "export it again" not in str(e.value)
    assert "lab_law" not in sys.modules  # never because a file says so


def test_a_bundle_that_names_no_plugin_asks_for_one(tmp_path):
    bundle = bundle_with(tmp_path / "bundle", codec="lab_law", plugins={})
    with pytest.raises(PluginError, match=r"if a plug-in of yours adds it, pass plugins=\["):
        read_bundle(bundle)


def test_a_bundle_that_needs_no_part_of_a_plugin_needs_no_plugin(tmp_path):
    read_bundle(bundle_with(tmp_path / "bundle", codec=None, plugins={"lab_env": "1.0"}))


def test_another_version_of_a_plugin_is_refused_unless_it_says_that_it_reads_the_old(tmp_path, write):
    bundle = bundle_with(tmp_path / "bundle", codec=None, plugins={"lab_versions": "1.0"})
    file = write("lab_versions.py", '__version__ = "2.0"\n')
    load_plugins([file])
    with pytest.raises(PluginError, match=rf"plug-in lab_versions 1.0, but {file} is 2.0.*READS_VERSIONS"):
        read_bundle(bundle)
    sys.modules["lab_versions"].READS_VERSIONS = ("1.0",)
    read_bundle(bundle)
