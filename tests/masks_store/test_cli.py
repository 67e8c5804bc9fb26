"""The commands that read and tidy a store, as a user types them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from masks_store import Store, TaskpackError, bitmask, cli, decode_units
from tests import zoo

from .stores import artifact, backbone_file, new_store, same_logits

COMMANDS: dict[str, click.Command] = {
    name: getattr(cli, name) for name in ("ls", "show", "export", "rm", "label", "verify")
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed store: birds (two versions), owls on the first of them, art."""
    store = new_store(tmp_path_factory.mktemp("template") / "store")
    birds = store.register(artifact(store, "birds"), prober=same_logits).version.version
    store.register(artifact(store, "birds", "clr", seed=1), prober=same_logits)
    store.register(artifact(store, "owls", on=birds), prober=same_logits)
    store.register(artifact(store, "art", "clr", seed=2), prober=same_logits)
    store.close()
    return store.path


@pytest.fixture
def store(tmp_path: Path, template: Path) -> Store:
    """A copy of it."""
    shutil.copytree(template, tmp_path / "store")
    return Store.open(tmp_path / "store")


def run(*words: object) -> Result:
    """Type a command; what it raises is raised here (the `taskpack` command prints it)."""
    command, *rest = map(str, words)
    return CliRunner().invoke(COMMANDS[command], rest, catch_exceptions=False)


def printed(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def as_json(*words: object) -> Any:
    return json.loads(printed(*words, "--json"))


def test_ls_prints_one_plain_line_per_task_where_nobody_watches(store: Store):
    stable = {task.name: task.labels["stable"][7:19] for task in store.tasks()}
    canary = store.task("birds").labels["canary"][7:19]
    sizes = {task.name: f"{store.resolve(task.name).size:,}" for task in store.tasks()}
    assert printed("ls", store.path).splitlines() == [
        "task\tmethod\tstable\tcanary\tversions\tclasses\ttest\tbytes",
        f"art\tclr\t{stable['art']}\t-\t1\t3\t50.0%\t{sizes['art']}",
        f"birds\tpacknet\t{stable['birds']}\t{canary}\t2\t3\t50.0%\t{sizes['birds']}",
        f"owls\tpacknet\t{stable['owls']}\t-\t1\t3\t50.0%\t{sizes['owls']}",
    ]


@pytest.mark.parametrize(("keep", "method"), [(0.0, "packnet"), (0.5, "packnet"), (1.0, "clr")])
def test_ls_of_an_empty_store_says_how_to_add_a_task(tmp_path: Path, keep: float, method: str):
    path = tmp_path / "my store"
    new_store(path, keep).close()
    result = run("ls", path)
    assert (result.exit_code, result.stdout) == (0, "")
    words = shlex.split(result.stderr.partition("add one: ")[2])
    assert words == ["taskpack", "train", str(path), "NAME", "--data", "SOURCE", "--method", method]
    assert as_json("ls", path)["tasks"] == []


def test_ls_as_json_has_every_task_with_full_digests(store: Store):
    told = as_json("ls", store.path)
    assert told["backbone"] == store.backbone_digest
    assert [task["task"] for task in told["tasks"]] == ["art", "birds", "owls"]
    birds = told["tasks"][1]
    assert birds["labels"] == dict(store.task("birds").labels)
    assert (birds["versions"], birds["method"], birds["test_top1"]) == (2, "packnet", 0.5)


def test_ls_marks_a_task_that_answers_no_more(store: Store):
    store.delete_task("birds", retire=True)
    assert "birds\tpacknet\t-\t-\tretired\t" in printed("ls", store.path)


def test_show_prints_labels_classes_lineage_sizes_and_the_free_weights(store: Store):
    owls = store.resolve("owls")
    text = printed("show", store.path, "owls")
    base = store.task("birds").labels["stable"]
    free = sum(free for free, _ in store.capacity_left().values())
    total = sum(total for _, total in store.capacity_left().values())
    for wanted in (
        f"version       {owls.version} stable\n",
        "classes       3: class 0, class 1, class 2\n",
        f"lineage     backbone <- birds {base[7:19]} <- owls {owls.version[7:19]}\n",
        "accuracy    validation 50.0%, test 50.0%\n",
        f"bytes       {owls.size:,}\n",
        f"free weights  {free:,} of {total:,} ({100 * free / total:.1f}%)\n",
    ):
        assert wanted in text


def test_show_tells_raw_coded_and_entropy_bound_bytes_of_the_masks(store: Store):
    version = as_json("show", store.path, "owls")["versions"][0]
    infos = store.resolve("owls").manifest.masks
    tensors = store.artifact(version["version"]).tensors
    raw = coded = bound = ones = 0
    for name, info in infos.items():
        raw += -(-info.bits // 8)
        coded += tensors[name].nbytes
        bound += bitmask.entropy_bound(info.bits, info.ones)
        ones += info.ones
    sizes = {"raw": raw, "coded": coded, "entropy_bound": round(bound), "ones": ones}
    assert version["masks"] == {"of": "weights", **sizes}
    assert f"{raw:,} bytes raw, {coded:,} coded, {round(bound):,} at the entropy bound of independent bits" in printed(
        "show", store.path, "owls"
    )
    assert as_json("show", store.path, "art")["versions"][0]["masks"]["ones"] == 0
    assert "masks       none" in printed("show", store.path, "art")


def test_show_tells_the_sizes_of_a_selection_beside_those_of_the_claim(store: Store):
    base = store.resolve("owls").version
    pick = store.register(artifact(store, "picks", on=base, pick=0.5)).version
    version = as_json("show", store.path, "picks")["versions"][0]
    for kind, prefix in (("masks", "mask/"), ("selection", "pick/")):
        infos = [info for name, info in pick.manifest.masks.items() if name.startswith(prefix)]
        assert len(infos) == len(store.backbone.kept)
        assert version[kind]["raw"] == sum(-(-info.bits // 8) for info in infos)
        assert version[kind]["ones"] == sum(info.ones for info in infos)
        assert version[kind]["entropy_bound"] == round(sum(bitmask.entropy_bound(i.bits, i.ones) for i in infos))
        said = printed("show", store.path, "picks")
        assert f"{version[kind]['raw']:,} bytes raw, {version[kind]['coded']:,} coded" in said
    assert "selection" not in printed("show", store.path, "owls")


def test_show_counts_the_units_of_a_clnp_task_once_and_the_free_units_of_its_store(tmp_path: Path):
    with Store.create(tmp_path / "store", backbone_file(keep=0.0), capacity="units") as store:
        graph = store.backbone.units
        first = store.register(artifact(store, "first", "clnp", share=0.3), prober=same_logits).version
        second = artifact(store, "second", "clnp", on=first.version, seed=1, share=0.3)
        made = store.register(second, prober=same_logits).version
        mine, below = (decode_units(store.artifact(v.version), graph) for v in (made, first))
    used, new = (sum(int(mask.sum()) for mask in units.values()) for units in (mine.used, mine.new))
    total = sum(graph.sizes.values())
    free = total - new - sum(int(mask.sum()) for mask in below.new.values())
    told, text = as_json("show", store.path, "second"), printed("show", store.path, "second")
    masks = told["versions"][0]["masks"]
    assert 0 < new < used
    assert (masks["of"], masks["ones"], masks["new"]) == ("units", used, new)
    assert masks["raw"] == sum(-(-info.bits // 8) for info in made.manifest.masks.values())
    assert told["capacity"] == {"of": "units", "free": free, "total": total}
    assert f"masks       {used} units, {new} of them new: {masks['raw']} bytes raw, " in text
    assert f"free units    {free} of {total} ({100 * free / total:.1f}%)\n" in text
    assert "weights" not in text


def test_show_as_json_has_every_version_with_its_lineage(store: Store):
    told = as_json("show", store.path, "birds")
    assert [version["version"] for version in told["versions"]] == list(store.task("birds").versions)
    assert [version["labels"] for version in told["versions"]] == [["stable"], ["canary"]]
    owls = as_json("show", store.path, "owls")["versions"][0]
    assert [part["task"] for part in owls["lineage"]] == ["birds", "owls"]
    assert owls["parent"] == owls["lineage"][0]["version"]


def test_a_class_name_cannot_steer_the_terminal(tmp_path: Path):
    store = new_store(tmp_path / "store")
    sound = zoo.task(store.backbone, "birds", "linear")
    escape = "[red]\x1b[2Jcrow\x9b"
    with store.registry.write() as transaction:  # as if an artifact with such a class had been registered
        store.blobs.put(sound)
        from masks_store import read_artifact

        read = read_artifact(sound)
        manifest = read.manifest.model_copy(update={"classes": (escape, "b", "c")})
        seq = transaction.log("x", "register", "birds", read.version)
        transaction.add_version(type(read)(manifest, read.tensors, read.version, read.size), False, seq)
    text = printed("show", store.path, "birds")
    assert "[red]\N{REPLACEMENT CHARACTER}[2Jcrow\N{REPLACEMENT CHARACTER}" in text
    assert "\x1b" not in text


def test_many_classes_are_cut_short_for_people_only(tmp_path: Path):
    store = new_store(tmp_path / "store")
    store.register(zoo.task(store.backbone, "birds", "linear", classes=25))
    assert "class 19, … and 5 more (--json lists all)" in printed("show", store.path, "birds")
    assert len(as_json("show", store.path, "birds")["classes"]) == 25


def test_export_writes_the_artifact_named(store: Store, tmp_path: Path):
    canary = store.resolve("birds", "canary")
    target = tmp_path / "birds.safetensors"
    told = as_json("export", store.path, "birds", "--version", "canary", "-o", target)
    assert told == {"task": "birds", "version": canary.version, "size": canary.size, "file": str(target)}
    assert target.read_bytes() == store.artifact_bytes(canary.version)
    assert canary.version in printed("export", store.path, "birds", "--version", canary.version[7:19], "-o", target)
    assert printed("export", store.path, "birds", "-o", target).startswith(f"{target}: ")
    assert target.read_bytes() == store.artifact_bytes(store.resolve("birds").version)


def test_export_to_standard_output_gives_the_bytes_and_nothing_else(store: Store):
    assert run("export", store.path, "art", "-o", "-").stdout_bytes == store.artifact_bytes(
        store.resolve("art").version
    )


def test_rm_deletes_a_task_or_a_version_and_says_what_went(store: Store):
    canary = store.task("birds").labels["canary"]
    store.drop_label("birds", "canary")
    assert printed("rm", store.path, "birds", "--version", canary[7:19]) == f"deleted birds {canary}\n"
    (art,) = store.task("art").versions
    assert as_json("rm", store.path, "art") == {"task": "art", "deleted": [art], "retired": []}
    assert [task.name for task in store.tasks()] == ["birds", "owls"]


def test_rm_retires_what_others_need_only_when_told_to(store: Store):
    stable, canary = store.task("birds").versions
    with pytest.raises(TaskpackError, match="others are built on it: owls"):
        run("rm", store.path, "birds")
    told = as_json("rm", store.path, "birds", "--retire")
    assert told == {"task": "birds", "deleted": [canary], "retired": [stable]}


def test_rm_of_a_labelled_version_says_the_commands_that_take_its_labels_away(store: Store):
    version = store.resolve("owls").version
    run("label", store.path, "owls", "canary", "stable")
    with pytest.raises(TaskpackError, match="is labelled canary and stable: take the label away") as caught:
        run("rm", store.path, "owls", "--version", version)
    said = re.findall(r"`taskpack label STORE ([^`]*)`", str(caught.value))
    assert len(said) == 2
    for arguments in said:
        run("label", store.path, *arguments.split())
    assert as_json("rm", store.path, "owls", "--version", version)["deleted"] == [version]


def test_label_moves_and_removes_a_label(store: Store):
    stable, canary = store.task("birds").versions
    assert printed("label", store.path, "birds", "stable", "canary") == f"birds stable -> {canary}\n"
    assert as_json("label", store.path, "birds", "stable", stable) == {
        "task": "birds",
        "label": "stable",
        "version": stable,
    }
    assert printed("label", store.path, "birds", "canary", "--remove") == "birds canary removed\n"
    assert store.task("birds").labels == {"stable": stable}
    for words in (
        ("label", store.path, "birds", "stable"),
        ("label", store.path, "birds", "stable", stable, "--remove"),
    ):
        result = run(*words)
        assert result.exit_code == 2
        assert "give either VERSION or --remove" in result.output


def test_changes_are_signed_with_the_users_name(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOGNAME", "ann")
    printed("label", store.path, "birds", "stable", "canary")
    assert store.events(store.last_event() - 1)[0].actor == "cli:ann"


def test_verify_passes_a_sound_store_and_lists_the_faults_of_another(store: Store):
    assert printed("verify", store.path) == f"{store.path}: sound (3 tasks, 4 versions)\n"
    assert as_json("verify", store.path) == {"path": str(store.path), "sound": True, "faults": []}
    for task in ("art", "owls"):
        store.blobs.path(store.resolve(task).version).unlink()
    result = run("verify", store.path)
    assert result.exit_code == 1
    assert f"{store.path}: 2 fault(s) (the store)" in result.stdout
    for task in ("art", "owls"):
        assert f"blob {store.resolve(task).version} is missing" in result.stdout
    result = run("verify", store.path, "--json")
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["faults"]) == 2


def test_verify_checks_a_file_alone_or_against_a_store(store: Store, tmp_path: Path):
    file = tmp_path / "task.safetensors"
    file.write_bytes(artifact(store, "greedy", "packnet", avoid=False))
    assert "sound (the file alone; --store STORE checks lineage, claim and probe too)" in printed("verify", file)
    result = run("verify", file, "--store", store.path)
    assert result.exit_code == 1
    assert "claimed weights belong to" in result.stdout
    file.write_bytes(store.artifact_bytes(store.backbone_digest))
    assert printed("verify", file) == f"{file}: sound (the file)\n"
    file.write_bytes(b"not a task at all")
    assert run("verify", file).exit_code == 1


def test_verify_says_that_a_store_is_checked_by_itself(store: Store):
    assert run("verify", store.path, "--store", store.path).exit_code == 2


@pytest.mark.parametrize(
    "words",
    [
        ("ls",),
        ("show", "birds"),
        ("export", "birds", "-o", "out"),
        ("rm", "birds"),
        ("label", "birds", "stable", "canary"),
        ("verify",),
    ],
)
def test_every_command_says_what_is_wrong_with_its_store(tmp_path: Path, words: tuple[str, ...]):
    command, *rest = words
    for place, match in ((tmp_path / "nothing", "is not a store"), ("http://localhost:8000", "is a server")):
        with pytest.raises(TaskpackError, match=match):
            run(command, place, *rest)


def test_unknown_tasks_and_versions_are_told(store: Store):
    failing: list[Callable[[], Result]] = [
        lambda: run("show", store.path, "nope"),
        lambda: run("rm", store.path, "nope"),
        lambda: run("export", store.path, "birds", "--version", "0" * 12, "-o", "x"),
        lambda: run("label", store.path, "birds", "best", "canary"),
    ]
    for call in failing:
        with pytest.raises(TaskpackError, match=r"nope|is not there|is not a label"):
            call()


def test_every_command_and_option_is_documented():
    for name, command in COMMANDS.items():
        assert command.help, name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts}"
