"""Plug-ins are found late and once; what is wrong with one is one line that names it. Each test asks a new process."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from pathlib import Path

import pytest
from plugin_example import environment, install, install_example, python

#: a registry of its own, so that torch is not needed
ZOO = """
from cmray.core.registry import ComponentConfig, Registry
zoo = Registry("animal", ["{own}"])
"""
ANIMAL = """
from cmray.core.registry import ComponentConfig
from zoo_of_test import zoo
@zoo.register("{name}")
class Animal(ComponentConfig):
    legs: int = 4
"""


@pytest.fixture
def site(tmp_path) -> Path:
    """A folder on the path with a package that has a registry, and `ape` of its own in it."""
    folder = tmp_path / "site"
    (folder / "zoo_own").mkdir(parents=True)
    (folder / "zoo_own" / "__init__.py").write_text("")
    (folder / "zoo_own" / "ape.py").write_text(ANIMAL.format(name="ape"))
    (folder / "zoo_of_test.py").write_text(ZOO.format(own="zoo_own"))
    return folder


def ask(site: Path, code: str, **variables: str):
    """The JSON that `code` prints, or the last line of its error."""
    done = python(site.parent, environment(site, **variables), "-c", f"import json\n{code}")
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


NAMES = "from zoo_of_test import zoo; print(json.dumps(zoo.names()))"


def test_an_installed_package_s_components_are_there_beside_one_s_own(site):
    (site / "bee_module.py").write_text(ANIMAL.format(name="bee"))
    install(site, "bee-package", "1.2", {"bee": "bee_module"})
    assert ask(site, NAMES) == ["ape", "bee"]
    facts = ask(
        site,
        "import sys; from zoo_of_test import zoo; from cmray.core import plugins\n"
        "before = 'bee_module' in sys.modules; names = zoo.names(); unused = plugins.used()\n"
        "zoo.parse('bee'); (bee,) = plugins.used(); own = plugins.plugin_of(zoo.get('bee'))\n"
        "print(json.dumps([before, len(unused), bee.title, bee == own, plugins.stamps([bee]),"
        " plugins.variable_for_workers([bee])]))",
    )
    told = "bee_module@bee-package==1.2"
    assert facts == [False, 0, "bee-package 1.2", True, {"bee-package": "1.2"}, told]


def test_a_file_is_named_by_a_path_and_known_by_its_content(site, tmp_path):
    file = tmp_path / "mine" / "bee.py"
    file.parent.mkdir()
    file.write_text(ANIMAL.format(name="bee"))
    code = (
        "from zoo_of_test import zoo; from cmray.core import plugins; zoo.parse('bee'); (p,) = plugins.used()\n"
        "import sys; print(json.dumps([p.title, zoo.get('bee').__module__, sys.path[-1]]))"
    )
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    assert ask(site, code, CMRAY_PLUGINS="mine/bee.py") == [f"bee.py sha256:{digest}", "bee", str(file.parent)]
    assert ask(site, NAMES, CMRAY_PLUGINS=f"{file}, ,mine/bee.py") == ["ape", "bee"]


GONE = "cannot be imported: ModuleNotFoundError: No module named 'zoo_other'; name its file, or put its folder on"


@pytest.mark.parametrize(
    ("files", "value", "words"),
    [
        ({}, "no.py", "CMRAY_PLUGINS names no.py, which does not exist"),
        ({"a-b.py": ""}, "a-b.py", "CMRAY_PLUGINS names a-b.py, which is no Python file that can be imported"),
        ({"a.txt": ""}, "./a.txt", "which is no Python file that can be imported by its name"),
        ({}, "zoo_other", f"CMRAY_PLUGINS names zoo_other, which {GONE} PYTHONPATH"),
        ({"bad.py": "x = ("}, "bad.py", "bad.py, which cannot be imported: SyntaxError"),
        ({"bad.py": "import torch_of_mars"}, "bad.py", "No module named 'torch_of_mars'; mend it, or take it out of"),
        ({"bad.py": "raise OSError('two\\nlines')"}, "bad.py", "which cannot be imported: OSError: two; mend it"),
        ({"bad.py": "import sys; sys.exit(0)"}, "bad.py", "bad.py, which cannot be imported: SystemExit: 0; mend it"),
        ({"a/x.py": "", "b/x.py": ""}, "a/x.py,b/x.py", "b/x.py, but a plug-in is called so already: "),
        ({}, "@@@", "CMRAY_PLUGINS names '@@@', which is neither a Python file nor a module's dotted name"),
        ({"mine/csv.py": "x = 1"}, "mine/csv.py", "but module csv is "),
        ({}, "bee@bee-package==1.2", "plug-in bee-package 1.2 (module bee) is not installed on HOST; install it on"),
    ],
)
def test_what_is_wrong_with_a_named_plugin_is_one_line(site, tmp_path, files, value, words):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    told = ask(site, NAMES, CMRAY_PLUGINS=value)
    assert told.startswith("cmray.core.plugins.PluginError: ")
    assert words.replace("HOST", socket.gethostname()) in told


def test_a_broken_package_is_named_at_every_look_up(site):
    (site / "bad_module.py").write_text("import torch_of_mars\n")
    install(site, "bad-package", "0.3", {"worse": "bad_module"})
    code = (
        "from zoo_of_test import zoo; from cmray.core.errors import CmrayError; told = []\n"
        "for look in (zoo.names, lambda: zoo.parse('ape'), zoo.classes):\n"
        "    try: look()\n"
        "    except CmrayError as error: told.append([str(error), error.exit_code])\n"
        "print(json.dumps(told))"
    )
    words = (
        "plug-in 'worse' of bad-package 0.3 cannot be imported from bad_module: ModuleNotFoundError: No module named "
        "'torch_of_mars'; mend it, or pip uninstall bad-package"
    )
    assert ask(site, code) == [[words, 2]] * 3


def test_a_taken_name_names_both_modules_whoever_was_imported_first(site):
    (site / "bee_module.py").write_text(ANIMAL.format(name="ape"))
    install(site, "bee-package", "1.2", {"bee": "bee_module"})
    told = ask(site, NAMES)
    assert "plug-in 'bee' of bee-package 1.2 cannot be imported" in told
    assert "animal 'ape' is registered twice: zoo_own.ape and bee_module" in told
    assert "zoo_own.ape and bee_module" in ask(site, f"import bee_module\n{NAMES}")


def test_a_file_is_recorded_alike_where_it_is_and_where_it_has_travelled(site, tmp_path):
    (tmp_path / "cow.py").write_text(ANIMAL.format(name="cow") + "print('moo')\n")
    (site / "bee_module.py").write_text(ANIMAL.format(name="bee"))
    code = (
        "from zoo_of_test import zoo; from cmray.core.plugins import stamps, used, variable_for_workers\n"
        "zoo.parse('cow'); print(json.dumps([stamps(used()), variable_for_workers(used())]))"
    )
    here, variable = ask(site, code, CMRAY_PLUGINS="cow.py")  # one line of JSON: what a plug-in prints is not output
    assert list(here) == ["cow.py"]
    (site / "cow.py").write_bytes((tmp_path / "cow.py").read_bytes())
    there, _ = ask(site, code, CMRAY_PLUGINS=variable)
    assert there == here
    told, _ = ask(site, code.replace("'cow'", "'bee'"), CMRAY_PLUGINS="bee_module")
    assert list(told) == ["bee_module"], "a module is no file"


def test_a_plugin_may_look_components_up_while_it_is_imported(site):
    (site / "bee_module.py").write_text(ANIMAL.format(name="bee") + "assert zoo.get('ape')().legs == 4\n")
    install(site, "bee-package", "1.2", {"bee": "bee_module"})
    assert ask(site, NAMES) == ["ape", "bee"]


def test_ray_s_processes_are_told_of_what_was_used(site, tmp_path):
    (site / "bee_module.py").write_text(ANIMAL.format(name="bee"))
    install(site, "bee-package", "1.2", {"bee": "bee_module"})
    (tmp_path / "cow.py").write_text(ANIMAL.format(name="cow"))
    code = (
        "import os; from pathlib import Path; from zoo_of_test import zoo\n"
        "from cmray.cluster.plugins import plugins_here, plugins_there, pack_plugins\n"
        "from cmray.core.plugins import used\n"
        "nothing = plugins_there(); zoo.parse('bee'); zoo.parse('cow'); there = plugins_there()\n"
        "packed = pack_plugins(used(), Path('job'))\n"
        "with plugins_here(): here = [os.environ['CMRAY_PLUGINS'], os.environ['PYTHONPATH'].split(os.pathsep)]\n"
        "os.environ['RAY_JOB_CONFIG_JSON_ENV_VAR'] = '{}'\n"
        "print(json.dumps([nothing, there, packed, here, plugins_there()]))"
    )
    (tmp_path / "job").mkdir()
    nothing, there, packed, here, in_a_job = ask(site, code, CMRAY_PLUGINS="cow.py")
    variable = {"CMRAY_PLUGINS": "bee_module@bee-package==1.2,cow@file"}
    cow = str(tmp_path / "cow.py")
    assert (nothing, in_a_job) == (None, None)
    assert there == {"env_vars": variable, "py_modules": [cow]}
    assert packed == variable
    assert (tmp_path / "job" / "cow.py").read_text() == (tmp_path / "cow.py").read_text()
    assert here == [cow, [*environment(site)["PYTHONPATH"].split(os.pathsep), str(tmp_path)]]


def test_help_waits_for_no_plugin_and_commands_end_in_one_line(site, tmp_path):
    env = environment(site, CMRAY_PLUGINS="gone.py")
    assert python(tmp_path, env, "-m", "cmray", "sample", "--help").returncode == 0
    done = python(tmp_path, env, "-m", "cmray", "data", "prepare", "digits", "--out", "data")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.strip().splitlines() == ["error: CMRAY_PLUGINS names gone.py, which does not exist"]
    assert not (tmp_path / "data").exists()


def test_a_name_of_cmray_s_is_taken_and_a_trial_s_name_does_not_know_what_is_installed(tmp_path):
    site = install_example(tmp_path / "site")
    code = (
        "from small_run import small; from cmray.config.identity import content_hash\n"
        "from cmray.config.needed_plugins import plugins_of; from cmray.core.distances import distances\n"
        "run = small(); there = 'charbonnier' in distances.names()\n"
        "print(json.dumps([content_hash(run), len(plugins_of(run)), there]))"
    )
    tests = Path(__file__).parents[1]
    bare, with_it = ask(tests, code), ask(tests, code, PYTHONPATH=environment(tests, site)["PYTHONPATH"])
    assert (bare[0], bare[1:], with_it[1:]) == (with_it[0], [0, False], [0, True])
    (site / "taken.py").write_text(  # lpips' own file is not imported when this one is
        "from cmray.core.distances import DistanceConfig, distances\n"
        "@distances.register('lpips')\nclass Mine(DistanceConfig): pass\n"
    )
    told = ask(site, "from cmray.core.distances import distances; distances.names()", CMRAY_PLUGINS="taken")
    assert "distance 'lpips' is registered twice: cmray.metrics.lpips and taken" in told


def test_doctor_lists_what_each_brings_and_goes_on_where_one_is_broken(tmp_path):
    site = install_example(tmp_path / "site")
    code = "from cmray.cli.doctor import _plugins; print(json.dumps([[c.name, c.ok, c.found] for c in _plugins()]))"
    checks = ask(site, code)
    assert ["plug-in lms-2", True, "cmray-plugin-example 0.1.0: sampler lms-2"] in checks
    assert len(checks) == 6
    (site / "cmray_plugin_example" / "blobs.py").write_text("x = (")
    ((name, ok, found),) = ask(site, code)
    assert (name, ok) == ("plug-in blobs", False)
    assert "plug-in 'blobs' of cmray-plugin-example 0.1.0 cannot be imported" in found
