"""The pages of docs/: every command, key, file, link and program in them exists."""

import argparse
import ast
import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image

import deocc.data
from deocc import cli, modules
from deocc.commands.ablate_plan import read_plan
from deocc.data import MaskedFaceDataModule
from deocc.evaluation.verification import PairScores, write_scores
from deocc.masking import list_kinds, registry
from tests.conftest import ROOT

PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs/pages").glob("*.md"))}
TEXT = "\n".join(PAGES.values())
_IN_BLOCKS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
]
_IN_LINES = re.findall(r"`((?:srun )?deocc [a-z][^`]*)`", TEXT)
COMMANDS = sorted({line for line in (*_IN_BLOCKS, *_IN_LINES) if re.match(r"(srun )?deocc ", line)})
BY_CONFIG = ("fit", "validate", "test", "ablate")
BLOCKS = [
    (name, block) for name, text in PAGES.items() for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
]

GENERATED = {"bench/results.json"}  # by `make bench`
_MODULES = (modules.InpaintingModule, modules.DistillationModule)
_PUBLIC = [getattr(deocc.data, name) for name in deocc.data.__all__]
_FACE_SETS = [value for value in _PUBLIC if inspect.isclass(value) and issubclass(value, deocc.data.FaceSet)]
KEYS: dict[str, tuple[Callable[..., object], ...]] = {
    "--model.init_args.": _MODULES,
    "--data.face_set.init_args.": tuple(_FACE_SETS),
    "--data.": (MaskedFaceDataModule,),
    "--trainer.": (pl.Trainer,),
}
"""The constructors that take an option, by its beginning; the first match counts."""


def _words(command: str) -> list[str]:
    return shlex.split(command.removeprefix("srun "))[1:]


def test_pages_show_every_command() -> None:
    shown = {_words(command)[0] for command in COMMANDS}
    assert {"mask", "predict", "verify", "identify", "export", "demo", "doctor", "fit", "test"} <= shown


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists(command: str) -> None:
    name = _words(command)[0]
    assert name in cli.COMMANDS, f"deocc has no command {name}"


@pytest.mark.parametrize("command", [each for each in COMMANDS if "--" in each and _words(each)[0] == "ablate"])
def test_plan_is_read(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert read_plan(_words(command)[1:]).rows


@pytest.mark.parametrize("command", [each for each in COMMANDS if "--" in each and _words(each)[0] in BY_CONFIG[:-1]])
def test_keys_of_a_training_command_exist(command: str) -> None:
    unknown = [
        word.split("=")[0] for word in _words(command) if word.startswith("--") and not _is_key(word.split("=")[0])
    ]
    assert not unknown


@pytest.mark.parametrize(
    "command", sorted(line for line in _IN_BLOCKS if line.startswith("deocc ") and _words(line)[0] not in BY_CONFIG)
)
def test_command_is_accepted_by_its_parser(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser: argparse.ArgumentParser, argv: list[str]) -> None:
        parse(parser, argv)
        raise _ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    name, *words = _words(command)
    with pytest.raises(_ParsedError):
        importlib.import_module(f"deocc.commands.{name}").main(words)


class _ParsedError(Exception):
    """A parser has accepted the arguments."""


def _is_key(option: str) -> bool:
    if option in {"--config", "--run", "--ckpt_path", "--checkpoint", "--resume"}:
        return True
    beginning = next((each for each in KEYS if option.startswith(each)), None)
    return beginning is not None and any(
        option.removeprefix(beginning) in inspect.signature(each).parameters for each in KEYS[beginning]
    )


@pytest.mark.parametrize(
    ("option", "known"), [("--data.sise", False), ("--data.size", True), ("--trainer.model", False), ("--size", False)]
)
def test_wrong_key_is_noticed(option: str, known: bool) -> None:
    assert _is_key(option) is known


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`(--[a-z][\w.]*(?:init_args|data|trainer)\.[\w.]+)", TEXT))))
def test_named_key_exists(option: str) -> None:
    assert _is_key(option)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"(?<![\w/])((?:configs|deocc|bench)/[\w/.-]+\w)", TEXT))))
def test_named_file_exists(name: str) -> None:
    assert (ROOT / name).exists() or name in GENERATED


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m ([\w.]+)", TEXT))))
def test_named_program_exists(module: str) -> None:
    assert find_spec(module) is not None


@pytest.mark.parametrize(
    "target",
    sorted(set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)", "\n".join([*_IN_BLOCKS, *re.findall(r"`[^`\n]+`", TEXT)])))),
)
def test_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "extra", sorted({name for names in re.findall(r'"deocc\[([a-z,-]+)\]"', TEXT) for name in names.split(",")})
)
def test_extra_exists(extra: str) -> None:
    assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages(page: str) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", PAGES[page]):
        assert (ROOT / "docs/pages" / target).is_file(), target


def test_navigation_lists_every_page() -> None:
    settings = yaml.safe_load((ROOT / "docs/mkdocs.yml").read_text())
    entries = [value for entry in settings["nav"] for value in entry.values()]
    listed = [
        name
        for entry in entries
        for name in ([entry] if isinstance(entry, str) else [next(iter(each.values())) for each in entry])
    ]
    assert sorted(listed) == sorted(PAGES)


@pytest.mark.skipif(
    find_spec("mkdocs") is None or find_spec("material") is None, reason="mkdocs-material is not installed"
)
def test_site_builds_without_warnings(tmp_path: Path) -> None:
    words = ["build", "--strict", "--config-file", str(ROOT / "docs/mkdocs.yml"), "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", *words], capture_output=True, text=True, check=False, env=environment
    )
    assert built.returncode == 0, built.stderr
    assert {f"{Path(page).stem}.html" for page in PAGES} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_names_used_by_a_program_exist(page: str, block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pipeline":
            assert node.attr in _pipeline_names()


def _pipeline_names() -> set[str]:
    from deocc.inference.pipeline import Pipeline

    return set(dir(Pipeline)) | set(re.findall(r"self\.(\w+)", inspect.getsource(Pipeline.__init__)))


def _program(page: str, part: str) -> str:
    (block,) = [block for name, block in BLOCKS if name == page and part in block]
    return block


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unregister the kinds of a test."""
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))


@pytest.mark.usefixtures("kinds")
def test_own_kinds_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((120, 200, 4), 255, np.uint8)).save("striped.png")
    for part in ("register_texture", "register_kind"):
        exec(_program("own-mask.md", part), {})
    assert list_kinds()[-2:] == ("striped", "patch")
    names: dict[str, torch.Tensor] = {}
    drawing = _program("python.md", "draw_kinds").replace(
        "draw_kinds(seeds)", "draw_kinds(seeds, ['striped', 'patch'])"
    )
    exec(drawing, names)
    covered = names["mask"].mean((1, 2, 3))
    assert bool((covered > 0.02).all()) and bool((covered < 0.6).all())


def test_error_rates_by_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All pairs of group a are correct, none of group b."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "groups.json").write_text(json.dumps({"1": "a", "2": "a", "3": "b", "4": "b"}))
    (tmp_path / "runs/distill").mkdir(parents=True)
    first, second = torch.tensor([1, 2, 1, 3, 4, 3, 1]), torch.tensor([1, 2, 2, 3, 4, 4, 3])
    similarity = torch.tensor([0.9, 0.8, 0.1, 0.1, 0.2, 0.9, 0.99])
    pairs = PairScores(similarity, first == second, first, second, None)
    write_scores("runs/distill/scores.npz", {"student_predicted_mask": pairs})
    exec(_program("responsible-use.md", "groups.json"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["a 2 people, EER 0.0", "b 2 people, EER 1.0"]
