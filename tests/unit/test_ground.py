"""What everything stands on: packages, dependency direction, locks, the search for a Python."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("pipeline", "components", "schemas", "serving", "kubeflow")
PYPROJECT = ROOT / "pyproject.toml"
LOCKS = ("tfx-1.16", "tfx-1.21")
# Libraries whose packages go by another name.
PACKAGES = {
    "PIL": "pillow",
    "absl": "absl-py",
    "google": "protobuf",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "jwt": "pyjwt",
    "sklearn": "scikit-learn",
    "tensorflow_serving": "tensorflow-serving-api",
    "yaml": "pyyaml",
}
# Which folders the code of a folder may import.
ALLOWED = {
    "serving": {"serving"},
    "schemas": {"schemas", "serving"},
    "components": {"components", "serving"},
    "pipeline": {"pipeline", "components", "schemas", "serving"},
    "kubeflow": set(FOLDERS),
}


def modules_after(statement: str) -> set[str]:
    """Names of all modules that a fresh Python has loaded after a statement."""
    command = f"import sys\n{statement}\nprint(*sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    )
    return set(ended.stdout.split())


def imports(source: str) -> set[str]:
    """Full names of the modules that a source imports, wherever in it the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_folders(source: str) -> set[str]:
    return {name.split(".")[1] for name in imports(source) if name.startswith("graftline.")}


def asked_for(heading: str) -> list[str]:
    """The requirements under a heading of pyproject.toml."""
    listed = re.search(rf"^{heading} = \[\n(.*?)^\]", PYPROJECT.read_text(), re.M | re.S)
    assert listed
    return re.findall(r'"(.*)"', listed.group(1))


def allowed(folder: str, file: Path) -> set[str]:
    """The command line may import every folder."""
    return set(FOLDERS) if "cli" in file.relative_to(ROOT).parts else ALLOWED[folder]


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def find_python(*versions: str, path: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Runs the search with a PATH of one folder, beside what the script itself calls."""
    bash = shutil.which("bash")
    assert bash
    return subprocess.run(
        [bash, ROOT / "requirements" / "find_python.sh", *versions],
        env={"PATH": str(path), "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


# The Python that runs the tests, under a name of the test's choice.
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
WORKING = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'
SHIM = f'#!/bin/sh\necho "pyenv: python{VERSION}: command not found" >&2\nexit 127\n'


def test_a_wheel_made_from_the_sdist_holds_every_package_under_graftline(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in FOLDERS:
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    uv = Path(sys.executable).with_name("uv")
    subprocess.run(
        [uv, "build", "--quiet", "--no-build-isolation", "--python", sys.executable, source],
        check=True,
    )
    (wheel,) = (source / "dist").glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"graftline/{file.relative_to(ROOT)}"
        for folder in FOLDERS
        for pattern in ("*.py", "*.pbtxt", "*.html", "*.css", "*.js", "requirements.lock")
        for file in (ROOT / folder).rglob(pattern)
        # A notebook server's settings, say, are for an image and no module.
        if pattern != "*.py" or (file.parent / "__init__.py").exists()
    }
    assert wanted <= packed
    assert not [name for name in packed if name.startswith(FOLDERS)]


@pytest.mark.parametrize("folder", FOLDERS)
def test_dependencies_point_one_way(folder: str) -> None:
    against = {
        f"{file.relative_to(ROOT)} imports {other}"
        for file in (ROOT / folder).rglob("*.py")
        for other in imported_folders(file.read_text()) - allowed(folder, file)
    }
    assert not against


def test_an_import_inside_a_function_counts_as_a_dependency() -> None:
    source = "def late():\n    from graftline.kubeflow import compile\n"
    assert imported_folders(source) == {"kubeflow"}


def test_every_library_that_is_imported_is_asked_for_by_name() -> None:
    named = {re.split(r"[=<>]", line)[0] for line in asked_for("dependencies")}
    elsewhere = ROOT / "kubeflow" / "compile_package.py"  # which runs in an environment of its own
    imported = {
        name.split(".")[0]
        for folder in FOLDERS
        for file in (ROOT / folder).rglob("*.py")
        if file != elsewhere
        for name in imports(file.read_text())
    } - {"graftline", *sys.stdlib_module_names}
    assert imported
    assert "kfp" in {name.split(".")[0] for name in imports(elsewhere.read_text())}
    assert re.search("^kfp>=", elsewhere.with_name("requirements.in").read_text(), re.M)
    assert not {PACKAGES.get(name, name.replace("_", "-")) for name in imported} - named


def test_the_command_starts_without_the_heavy_libraries() -> None:
    loaded = modules_after(
        "from graftline.pipeline.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0"
    )
    assert not loaded & {"tensorflow", "tf_keras", "tfx", "apache_beam", "scipy", "pandas", "rich"}


def test_the_gateway_runs_without_tensorflow_and_numpy() -> None:
    loaded = modules_after("import graftline.serving.gateway.service")
    assert "graftline.serving.gateway.application" in loaded
    assert not loaded & {"tensorflow", "tensorflow_serving", "numpy", "tfx", "apache_beam"}


def test_tf_keras_is_keras_2_wherever_components_are_imported() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    command = """
import graftline.components
import tensorflow as tf
import tf_keras
assert tf_keras.__version__.startswith("2.")
assert tf.keras.layers.Layer is tf_keras.layers.Layer
"""
    ended = subprocess.run([sys.executable, "-c", command], env=environment, check=False)
    assert ended.returncode == 0


def test_the_client_decides_nothing_about_its_users_keras() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    command = """
import os
import graftline.serving.client.client
assert "TF_USE_LEGACY_KERAS" not in os.environ
"""
    ended = subprocess.run([sys.executable, "-c", command], env=environment, check=False)
    assert ended.returncode == 0


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_holds_pinned_versions_and_no_address(name: str) -> None:
    lines = (ROOT / "requirements" / f"{name}.lock").read_text().splitlines()
    pinned = re.compile(r"[a-z0-9-]+==[a-z0-9.!+]+( ; [a-zA-Z0-9_ '.<>=!]+)?")
    assert not [line for line in lines if not pinned.fullmatch(line)]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_holds_what_the_stack_and_the_project_ask_for(name: str) -> None:
    folder = ROOT / "requirements"
    locked = (folder / f"{name}.lock").read_text()
    asked = re.findall(r"^[a-z].*$", (folder / f"{name}.in").read_text(), re.M)
    asked += [*asked_for("dependencies"), *asked_for("development"), *asked_for("lite")]
    assert not {
        line
        for line in asked
        if not re.search(
            rf"^{line if '==' in line else line.split('<')[0] + '=='}", locked, re.M | re.I
        )
    }


def test_a_python_on_the_path_is_found(tmp_path: Path) -> None:
    python = executable(tmp_path / "bin" / f"python{VERSION}", WORKING)
    ended = find_python(VERSION, path=tmp_path / "bin", home=tmp_path)
    assert (ended.returncode, ended.stdout.strip()) == (0, str(python))


def test_a_shim_that_fails_is_passed_over_for_a_python_of_pyenv(tmp_path: Path) -> None:
    executable(tmp_path / "bin" / f"python{VERSION}", SHIM)
    python = executable(tmp_path / f".pyenv/versions/{VERSION}.99/bin/python", WORKING)
    ended = find_python(VERSION, path=tmp_path / "bin", home=tmp_path)
    assert (ended.returncode, ended.stdout.strip()) == (0, str(python))


def test_a_shim_that_fails_is_passed_over_for_a_python_of_uv(tmp_path: Path) -> None:
    executable(tmp_path / "bin" / f"python{VERSION}", SHIM)
    managed = tmp_path / ".local/share/uv/python" / f"cpython-{VERSION}.99-linux-x86_64-gnu"
    python = executable(managed / "bin" / "python3", WORKING)
    ended = find_python(VERSION, path=tmp_path / "bin", home=tmp_path)
    assert (ended.returncode, ended.stdout.strip()) == (0, str(python))


def test_the_next_version_is_taken_where_the_first_is_absent(tmp_path: Path) -> None:
    python = executable(tmp_path / "bin" / f"python{VERSION}", WORKING)
    ended = find_python("3.99", VERSION, path=tmp_path / "bin", home=tmp_path)
    assert (ended.returncode, ended.stdout.strip()) == (0, str(python))


def test_a_python_of_another_version_is_not_believed_by_its_name(tmp_path: Path) -> None:
    executable(tmp_path / "bin" / "python3.99", WORKING)
    assert find_python("3.99", path=tmp_path / "bin", home=tmp_path).returncode == 2


def test_where_no_python_starts_a_sentence_says_what_to_install(tmp_path: Path) -> None:
    executable(tmp_path / "bin" / f"python{VERSION}", SHIM)
    ended = find_python(VERSION, "3.99", path=tmp_path / "bin", home=tmp_path)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert f"No Python {VERSION} or 3.99 that starts" in ended.stderr
    assert f"uv python install {VERSION}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_unknown_stack_is_named_with_those_there_are() -> None:
    ended = subprocess.run(
        [ROOT / "requirements" / "environment.sh"],
        env={"PATH": "/usr/bin:/bin", "GRAFTLINE_STACK": "tfx-9"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr == "GRAFTLINE_STACK is 'tfx-9': it must be tfx-1.16 or tfx-1.21.\n"
