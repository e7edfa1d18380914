"""Maps the top-level folders to the `graftline` namespace; what Beam workers and images install.

Metadata and tool settings are in pyproject.toml. The folders stand at the top of the repository
and are imported as `graftline.<folder>`: bare names such as `kubeflow` would collide with other
packages of anyone's environment.
"""

from setuptools import find_packages, setup

FOLDERS = ("pipeline", "components", "schemas", "serving", "kubeflow")

setup(
    package_dir={f"graftline.{folder}": folder for folder in FOLDERS},
    packages=[
        package
        for folder in FOLDERS
        for package in (
            f"graftline.{folder}",
            *(f"graftline.{folder}.{inner}" for inner in find_packages(folder)),
        )
    ],
    package_data={
        "graftline.kubeflow": ["requirements.lock"],
        "graftline.schemas": ["*.pbtxt"],
        "graftline.serving.gateway": ["*.html", "*.css", "*.js"],
    },
)
