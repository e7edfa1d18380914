"""Builds an image from its Dockerfile without a container engine, in a Debian 13 tree.

Steps are executed one by one, as root, in a chroot: a stage is an overlay of what it changes over
the stage or the tree that it starts from, so the tree stays as it is. Official Python images are
represented by the tree, whose `python3` gets the name `python`. What is copied from another stage
is mounted read-only in place of a copy of gigabytes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import TextIO

import pytest

from deployment import REPOSITORY

TREE = REPOSITORY / "build" / "debian13"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The machine's way to the package index, which an engine is told by its own settings.
_INDEX = re.compile(r"^(PIP_|UV_|SSL_CERT_|REQUESTS_CA_BUNDLE)|_proxy$", re.IGNORECASE)


@dataclass(frozen=True)
class Instruction:
    """One line of a Dockerfile, its continuations joined."""

    name: str
    flags: dict[str, str]
    value: str

    def words(self) -> list[str]:
        """The arguments, of either form."""
        if self.value.startswith("["):
            found: list[str] = json.loads(self.value)
            return found
        return shlex.split(self.value)


def instructions(dockerfile: Path) -> list[Instruction]:
    """What a Dockerfile says, comments and line ends taken away."""
    lines = [
        line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")
    ]
    found = []
    for line in "\n".join(lines).replace("\\\n", "").splitlines():
        if line.strip():
            name, rest = line.split(maxsplit=1)
            flags = {}
            while match := re.match(r"--([a-z-]+)=(\S+)\s+", rest):
                flags[match[1]] = match[2]
                rest = rest[match.end() :]
            found.append(Instruction(name.upper(), flags, rest.strip()))
    return found


def stages(dockerfile: Path) -> dict[str, list[Instruction]]:
    """The instructions of each stage by its name, FROM first; what stands before all under ''."""
    found: dict[str, list[Instruction]] = {"": []}
    current = found[""]
    for instruction in instructions(dockerfile):
        if instruction.name == "FROM":
            name = re.search(r" AS (\S+)$", instruction.value, re.IGNORECASE)
            current = found.setdefault(name[1] if name else "last", [])
        current.append(instruction)
    return found


@dataclass
class Stage:
    """What a stage has come to."""

    layers: list[Path]
    environment: dict[str, str]
    arguments: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    folder: str = "/"
    command: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    # Folders of other stages: there -> (stage, here).
    copies: dict[str, tuple[str, str]] = field(default_factory=dict)


class Build:
    """The stages of a Dockerfile, executed as far as they are asked for.

    Args:
        dockerfile: what is built, with the repository's root as context.
        folder: where layers are kept; on a file system that can be an overlay's upper layer.
        arguments: build arguments.
    """

    def __init__(self, dockerfile: Path, folder: Path, **arguments: str) -> None:
        self._stages = stages(dockerfile)
        self.folder = folder
        self._given = arguments
        self._context = folder / "context"
        self._built: dict[str, Stage] = {}
        self._defaults = {
            name: arguments.get(name, default)
            for instruction in self._stages[""]
            for name, _, default in [instruction.value.partition("=")]
        }
        _copy_context(self._context)

    def stage(self, name: str) -> Stage:
        """A stage, executed on first use, as are those that it starts from.

        Raises:
            RuntimeError: a step failed; with its output.
        """
        if name not in self._built:
            first, *others = self._stages[name]
            origin = Template(first.value.split()[0]).substitute(self._defaults)
            upper = self.folder / name
            upper.mkdir()
            if origin in self._stages:
                base = self.stage(origin)
                built = Stage(
                    [upper, *base.layers],
                    dict(base.environment),
                    # As an engine does where one stage continues another.
                    dict(base.arguments),
                    base.user,
                    base.folder,
                    base.command,
                    base.entrypoint,
                    base.health,
                    dict(base.copies),
                )
            else:
                if not re.match(r"python:3\.13\.\d+-slim-trixie$", origin):
                    pytest.skip(f"{origin} is not represented by a Debian 13 tree")
                (upper / "usr/local/bin").mkdir(parents=True)
                (upper / "usr/local/bin/python").symlink_to("/usr/bin/python3")
                built = Stage([upper, TREE], {"PATH": _PATH})
            for instruction in others:
                self._execute(built, instruction)
            self._built[name] = built
        return self._built[name]

    def run(self, name: str, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a command as a container of this stage would: its user, folder, environment.

        What it writes is gone with it.
        """
        stage = self.stage(name)
        script = f"exec {shlex.join(self.entering(stage, *command, **environment))}"
        return _run(self._mounting(stage, script))

    def start(
        self, name: str, *command: str, output: TextIO, **environment: str
    ) -> subprocess.Popen[bytes]:
        """Starts a command as `run` does, in a process group of its own."""
        stage = self.stage(name)
        script = f"exec {shlex.join(self.entering(stage, *command, **environment))}"
        return subprocess.Popen(
            self._mounting(stage, script),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )

    def entering(self, stage: Stage, *command: str, **environment: str) -> list[str]:
        """The command line that enters a mounted stage."""
        given = {"HOME": "/root", **stage.environment, **environment}
        variables = [f"{name}={value}" for name, value in given.items()]
        inner = ["sh", "-c", f'cd {shlex.quote(stage.folder)} && exec "$@"', "sh", *command]
        enter = ["chroot", f"--userspec={stage.user}", f"--groups={stage.user.partition(':')[2]}"]
        return [*enter, "root", "/usr/bin/env", "-i", *variables, *inner]

    def _execute(self, stage: Stage, instruction: Instruction) -> None:
        known = {**stage.arguments, **stage.environment}
        value = Template(instruction.value).safe_substitute(known)
        match instruction.name:
            case "ARG":
                name, _, default = value.partition("=")
                default = default.strip('"') or self._defaults.get(name, "")
                stage.arguments[name] = self._given.get(name, default)
            case "ENV":
                stage.environment |= dict(pair.split("=", 1) for pair in shlex.split(value))
            case "USER":
                stage.user = value
            case "WORKDIR":
                stage.folder = value
                self._step(stage, instruction, f"mkdir -p root{value}")
            case "COPY":
                self._copy(stage, instruction, shlex.split(value))
            case "RUN":
                self._run(stage, instruction)
            case "CMD":
                stage.command = instruction.words()
            case "ENTRYPOINT":
                stage.entrypoint = instruction.words()
            case "HEALTHCHECK":
                stage.health = Instruction("CMD", {}, value.partition("CMD ")[2]).words()
            case "LABEL" | "EXPOSE":
                pass
            case _:
                raise NotImplementedError(f"{instruction.name} is not executed here")

    def _copy(self, stage: Stage, instruction: Instruction, words: list[str]) -> None:
        *sources, target = words
        target = os.path.normpath(Path(stage.folder) / target) + "/" * target.endswith("/")
        if "from" in instruction.flags:
            [source] = sources
            self.stage(instruction.flags["from"])
            stage.copies[target] = (instruction.flags["from"], source)
            return
        into = shlex.quote(f"root{target}")
        commands = []
        for source in sources:
            found = self._context / source
            if not found.exists():
                raise RuntimeError(f"COPY {source}: not in the context; see .dockerignore")
            quoted = shlex.quote(str(found))
            if found.is_dir():
                commands.append(f"mkdir -p {into} && cp -a {quoted}/. {into}")
            elif target.endswith("/") or len(sources) > 1 or target == stage.folder:
                commands.append(f"mkdir -p {into} && cp -a {quoted} {into}")
            else:
                commands.append(f"mkdir -p $(dirname {into}) && cp -a {quoted} {into}")
        self._step(stage, instruction, "\n".join(commands))

    def _run(self, stage: Stage, instruction: Instruction) -> None:
        index = {name: value for name, value in os.environ.items() if _INDEX.search(name)}
        index.pop("UV_CACHE_DIR", None)
        command = self.entering(
            stage, "sh", "-ec", instruction.value, **{**index, **stage.arguments}
        )
        mounts = ""
        if "mount" in instruction.flags:
            mount = dict(part.split("=") for part in instruction.flags["mount"].split(","))
            assert mount["type"] == "cache"
            cache = shlex.quote(f"{TREE}{mount['target']}")
            there = f"root{mount['target']}"
            mounts = f"mkdir -p {cache} {there}\nmount --bind {cache} {there}\n"
        self._step(stage, instruction, f"{mounts}exec {shlex.join(command)}")

    def _step(self, stage: Stage, instruction: Instruction, script: str) -> None:
        done = _run(self._mounting(stage, script, layer=stage.layers[0]))
        if done.returncode != 0:
            output = (done.stdout + done.stderr)[-4000:]
            raise RuntimeError(f"{instruction.name} {instruction.value} failed:\n{output}")

    def _mounting(self, stage: Stage, script: str, layer: Path | None = None) -> list[str]:
        """The command that runs a script in a namespace of mounts in which `root` is the stage.

        Args:
            stage: what is mounted.
            script: of the shell.
            layer: which of its layers takes what is written; None: one that is thrown away, so
                that several may run at once.
        """
        work = self.folder / "work"
        work.mkdir(exist_ok=True)
        upper = layer or work / "upper"
        lower = [one for one in stage.layers if one != layer]
        lines = [
            f"cd {shlex.quote(str(self.folder))}",
            "mount -t tmpfs tmpfs work",
            f"mkdir -p work/root {shlex.quote(str(upper))} {shlex.quote(f'{upper}.work')}",
            _overlay(lower, "work/root", upper),
        ]
        for number, (there, (name, here)) in enumerate(stage.copies.items()):
            other = f"work/from{number}"
            lines += [
                f"mkdir {other}",
                _overlay(self._built[name].layers, other),
                f"mkdir -p work/root{there}",
                f"mount --bind {other}{here} work/root{there}",
                f"mount -o remount,ro,bind work/root{there}",
            ]
        lines += [
            "cd work",
            "mount --bind /dev root/dev",
            "mount -t tmpfs -o mode=1777 tmpfs root/dev/shm",
            "mount -t proc proc root/proc",
            # As an engine does: who answers to names is the machine's matter.
            "for file in /etc/hosts /etc/resolv.conf /etc/ssl/certs/ca-certificates.crt; do",
            '  if [ -f "$file" ] && [ -f "root$file" ]; then mount --bind "$file" "root$file"; fi',
            "done",
            script,
        ]
        return ["unshare", "--mount", "sh", "-euc", "\n".join(lines)]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )


def _overlay(lower: list[Path], there: str, upper: Path | None = None) -> str:
    options = f"lowerdir={':'.join(map(str, lower))}"
    if upper is not None:
        options += f",upperdir={upper},workdir={upper}.work"
    return f"mount -t overlay overlay -o {shlex.quote(options)} {there}"


def ignored(paths: list[str]) -> set[str]:
    """Which of the repository's files .dockerignore keeps out of the context."""
    from pathspec import GitIgnoreSpec

    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    return {path for path in paths if _ignored(lines, path, GitIgnoreSpec)}


def _ignored(lines: list[str], path: str, spec: type) -> bool:
    """The last pattern that matches a file or a folder above it decides, as for an engine."""
    kept_out = False
    parents = [path, *(str(parent) for parent in Path(path).parents if parent != Path())]
    for line in lines:
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        matcher = spec.from_lines(["/" + pattern.lstrip("!/")])
        if any(matcher.match_file(parent) for parent in parents):
            kept_out = not pattern.startswith("!")
    return kept_out


def _copy_context(folder: Path) -> None:
    """The files that an engine would be sent, of those that are or may be committed."""
    listed = subprocess.run(
        [
            *("git", "-c", "safe.directory=*", "ls-files", "-z"),
            *("--cached", "--others", "--exclude-standard"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split("\0")
    paths = [path for path in listed if path and (REPOSITORY / path).is_file()]
    if not paths:
        pytest.skip("the files of the context are not known: this is no Git checkout")
    for path in set(paths) - ignored(paths):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / path, target)


def can_build() -> str:
    """Why images cannot be built here; empty where they can."""
    if os.geteuid() != 0:
        return "a chroot can be entered by root only"
    if not (TREE / "complete").is_file():
        return "requirements/debian13.sh has made no Debian 13 tree here"
    mount = "mount -t tmpfs tmpfs /mnt && cd /mnt && mkdir a b c d && "
    mount += "mount -t overlay overlay -o lowerdir=a,upperdir=b,workdir=c d"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount], capture_output=True, check=False
    )
    if done.returncode != 0:
        return "this root may not mount an overlay"
    uv = Path(sys.executable).with_name("uv")
    asked = [uv, "pip", "compile", "--quiet", "--no-cache", "--no-deps", "-"]
    done = subprocess.run(asked, input=b"uv", capture_output=True, check=False)
    return "" if done.returncode == 0 else "the package index cannot be reached"
