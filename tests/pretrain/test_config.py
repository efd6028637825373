"""A config that is wrong is refused before anything starts, by a message that names the key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from infty.errors import UserError
from infty.memory.presets import preset
from infty_pretrain import config as configs
from infty_pretrain import typed
from infty_pretrain.config import Config
from support import small_run

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def make(**changes) -> Config:
    return small_run.config(Path("run"), Path("data"), **changes)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("optimizer__leraning_rate", 1, "unknown key 'leraning_rate'"),
        ("optimizer__memory_rl", 1, "did you mean 'memory_lr'?"),
        ("modell", {}, "did you mean 'model'?"),
        ("model__hiden_size", 8, "did you mean 'hidden_size'?"),
        ("model__memory__bassis", 8, "did you mean 'basis'?"),
        ("checkpoint__keep_lst", 8, "did you mean 'keep_last'?"),
        ("model__memory__preset", "papre-sorting", "there is no 'papre-sorting'"),
        ("model__memory__overrides", {9: {"basis": 8}}, "model.memory.overrides"),
        ("model__memory__overrides", {0: {"bassis": 8}}, "model.memory.overrides.0: bassis"),
        ("model__memory", {"kind": "compressive", "lenght": 8}, "did you mean 'length'?"),
        ("run__seed", -1, "run.seed: -1 must be a whole number from 0"),
        ("run__seed", 2**31, "run.seed"),
        (
            "optimizer__lr",
            float("inf"),
            "optimizer.lr: inf must be a number above 0 and at most 100",
        ),
        ("optimizer__weight_decay", float("nan"), "optimizer.weight_decay"),
        ("batch__lanes", 10**16, "batch.lanes"),
        ("run__steps", "many", "run.steps: many must be a whole number"),
        ("run__steps", 2.5, "run.steps: 2.5 must be a whole number"),
        ("run__steps", [], "run.steps: [] must be a whole number"),
        ("optimizer__lr", "fast", "optimizer.lr: fast must be a number"),
        ("optimizer__lr", None, "optimizer.lr: None must be a number"),
        ("optimizer__betas", "fast", "optimizer.betas: fast must be a list"),
        ("optimizer", "fast", "optimizer: fast must be a section"),
        ("checkpoint__overlap", "maybe", "checkpoint.overlap: maybe must be true or false"),
        ("checkpoint__memory", "forget", "forget must be save, reset or replay"),
        ("model__memory__contraction", "unform", "or one of uniform, doubling, learned"),
        ("run__folder", ["a"], "run.folder: ['a'] must be text"),
        ("run__steps", 0, "run.steps"),
        ("run__tokens", 10, "give either run.steps or run.tokens"),
        ("optimizer__lr", -1.0, "optimizer.lr"),
        ("optimizer__betas", [0.9], "optimizer.betas"),
        ("schedule__kind", "cosin", "schedule.kind"),
        ("schedule__min_ratio", 2, "schedule.min_ratio"),
        ("parallel__zero_stage", 4, "parallel.zero_stage"),
        ("parallel__tensor", 3, "model.heads"),
        ("parallel__sequence", True, "parallel.sequence"),
        ("precision", "fp16", "precision"),
        ("model__hidden_size", 30, "model.heads"),
        ("model__stm_length", 5, "model.stm_length"),
        ("model__memory__basis", 0, "model.memory.basis"),
        ("model__memory__contraction", 2.0, "model.memory.contraction"),
        ("batch__lanes", 0, "batch.lanes"),
        ("checkpoint__memory", "forget", "checkpoint.memory"),
        ("checkpoint__every", 0, "checkpoint.every"),
        ("evaluation__every", 5, "data.validation"),
        ("evaluation__windows", 0, "evaluation.windows"),
        ("logging__peak_tflops", -1, "logging.peak_tflops"),
        ("run__minutes", -5, "run.minutes"),
        ("optimizer__weight_decay", -0.1, "optimizer.weight_decay"),
        ("optimizer__eps", 0.0, "optimizer.eps"),
        ("optimizer__betas", [0.9, 1.5], "optimizer.betas"),
        ("optimizer__memory_lr", -1.0, "optimizer.memory_lr"),
        ("checkpoint__keep_every", 0, "checkpoint.keep_every"),
        ("checkpoint__minutes", 0.0, "checkpoint.minutes"),
    ],
)
def test_what_is_wrong_is_named(key, value, message):
    with pytest.raises(UserError) as error:
        make(**{key: value})
    assert message in str(error.value)


def test_bf16_at_stage_0_is_refused():
    with pytest.raises(UserError, match="zero_stage"):
        make(precision="bf16", parallel__zero_stage=0)


@pytest.mark.parametrize(
    "world, changes, message",
    [
        (3, {"parallel__tensor": 2}, "parallel.tensor"),
        (3, {}, "batch.lanes"),
        (2, {"batch__micro_batch": 3}, "batch.micro_batch"),
    ],
)
def test_layouts_that_do_not_fit(world, changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes).check_layout(world)


def test_layouts_that_fit():
    config = make(batch__lanes=8, batch__micro_batch=2, parallel__tensor=2)
    config.check_layout(4)
    assert config.micro_batches(2) == 2
    assert make().micro_batches(2) == 1


def test_a_budget_in_tokens_is_rounded_up_to_steps():
    config = make(run__steps=None, run__tokens=97)
    assert config.tokens_per_step == 4 * 3 * 8
    assert config.total_steps == 2


def test_overrides(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_run.values(tmp_path / "run", tmp_path / "data")))
    config = configs.load(
        path,
        [
            "optimizer.lr=1e-4",
            "model.memory.basis=32",
            "model.memory.layers=[1]",
            "data.validation=held/out",
        ],
    )
    assert config.optimizer.lr == 1e-4
    assert config.model.memory.basis == 32 and config.model.memory.layers == (1,)
    assert config.data.validation == Path("held/out")
    assert configs.load(path, ["model.memory=null"]).model.memory is None
    with pytest.raises(UserError, match="did you mean 'optimizer'"):
        configs.load(path, ["optimiser.lr=1"])
    with pytest.raises(UserError, match="not an override"):
        configs.load(path, ["optimizer.lr"])


def test_files_that_are_no_config(tmp_path):
    with pytest.raises(UserError, match="there is no config"):
        configs.load(tmp_path / "none.yaml")
    for text in ("a: [", "- 1", "\x00", "? [a]\n: 1\n", "a: &x [*x]\n", "a: !!python/none x\n"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UserError, match=r"bad\.yaml"):
            configs.load(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_text("run:\nmodel: {}\n")
    with pytest.raises(UserError):
        configs.load(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not valid YAML"):
        configs.load(tmp_path / "bad.yaml")


def test_the_stored_config_is_the_config(tmp_path):
    config = make(
        run__tokens=None,
        optimizer__lr=1.1e-05,
        model__memory__widths=[0.01, 0.05],
        model__memory__contraction=0.5,
    ).with_vocab(40)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert configs.load(tmp_path / "config.yaml") == config


def test_vocabulary_comes_from_the_dataset():
    assert make().with_vocab(40).model.vocab_size == 40
    with pytest.raises(UserError, match=r"leave model\.vocab_size out"):
        make(model__vocab_size=50).with_vocab(40)


def test_differences_are_listed():
    old, new = (
        make(),
        make(optimizer__lr=1.0, model__memory__contraction=0.5, run__folder="elsewhere"),
    )
    assert configs.differences(old, new) == [
        "model.memory.contraction: uniform -> 0.5",
        "model.memory.sticky: quantile -> off",
        "optimizer.lr: 0.003 -> 1.0",
    ]
    assert configs.differences(old, old) == []
    assert configs.differences(old, make(model__memory=None))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_the_configs_of_this_repository_are_valid(path):
    config = configs.load(path)
    config.check_layout(config.parallel.tensor)


def test_a_memory_may_begin_from_a_preset():
    config = make(model__memory={"preset": "paper-sorting", "basis": 64})
    assert config.model.memory == preset("paper-sorting", basis=64)
    assert configs.from_dict(config.to_dict()) == config  # the stored config names every value


def test_layers_may_differ():
    config = make(
        model__memory={"basis": 16, "overrides": {0: {"basis": 8}, "1": {"contraction": "learned"}}}
    )
    assert [config.model.memories_of(i)["memory"].basis for i in range(2)] == [8, 16]
    assert config.model.memories_of(1)["memory"].contraction == "learned"
    assert configs.from_dict(yaml.safe_load(config.to_yaml())) == config


WRITTEN = {  # what is written after `key: ` in a file and `key=` on a command line, and what it means
    "model.memory.sticky": {"off": "off", "quantile": "quantile"},
    "model.memory.contraction": {"0.5": 0.5, "uniform": "uniform", "5e-1": 0.5},
    "model.memory.map_bias": {"no": False, "yes": True, "off": False, "on": True, "true": True},
    "model.memory.basis": {"32": 32, "3_2": 32, "0x20": 32, "3.2e1": 32},
    "model.memory.widths": {"[1e-2, 0.05]": (0.01, 0.05), "null": (0.046875,)},
    "model.memory.layers": {"[1]": (1,), "null": None, "~": None},
    "run.folder": {
        "2024": Path("2024"),
        "010": Path("010"),
        "1:30": Path("1:30"),
        "2026-11-25": Path("2026-11-25"),
        "off": Path("off"),
        "1e4": Path("1e4"),
        "'null'": Path("null"),
        "'a b'": Path("a b"),
    },
    "run.steps": {"1e3": 1000, "1_000": 1000},
    "optimizer.lr": {"1e-4": 1e-4, "2": 2.0, ".5": 0.5},
    "parallel.zero_stage": {"3": 3},
    "run.minutes": {"null": None, "90": 90.0},
}


@pytest.mark.parametrize(
    ("key", "text"), [(key, text) for key, texts in WRITTEN.items() for text in texts]
)
def test_a_value_means_what_its_key_says(tmp_path, key, text):
    plain = small_run.values(tmp_path / "run", tmp_path / "data")
    section, *_, name = key.split(".")
    inner = plain["model"]["memory"] if key.startswith("model.memory.") else plain[section]
    inner[name] = "@@"
    (tmp_path / "in-file.yaml").write_text(yaml.safe_dump(plain).replace("'@@'", text))
    del inner[name]
    if key == "run.steps":
        inner[name] = 6
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump(plain))
    for config in (
        configs.load(tmp_path / "in-file.yaml"),
        configs.load(tmp_path / "bare.yaml", [f"{key}={text}"]),
    ):
        value = config
        for part in key.split("."):
            value = getattr(value, part)
        assert value == WRITTEN[key][text] and type(value) is type(WRITTEN[key][text])
        again = tmp_path / "again.yaml"
        again.write_text(config.to_yaml())
        assert configs.load(again) == config


@pytest.mark.parametrize(
    "text",
    [
        "run: {steps: 5}\noptimizer: {lr: 2e-3}\noptimizer: {clip: 1}\n",
        "optimizer:\n  lr: 1\n  clip: 1\n  lr: 2\n",
    ],
)
def test_a_key_that_is_given_twice_is_an_error(tmp_path, text):
    (tmp_path / "twice.yaml").write_text(text)
    lines = [
        i
        for i, line in enumerate(text.splitlines(), 1)
        if line.split(":")[0].strip() in ("optimizer", "lr")
    ]
    with pytest.raises(
        UserError, match=rf"twice\.yaml .* given twice: in line {lines[-2]} and in line {lines[-1]}"
    ):
        configs.load(tmp_path / "twice.yaml")


def test_overrides_of_layers_are_read_by_type(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_run.values(tmp_path / "run", tmp_path / "data")))
    given = "model.memory.overrides={0: {basis: 8, sticky: off}, 1: {widths: [2e-1]}}"
    overrides = configs.load(path, [given]).model.memory.overrides
    assert overrides == {0: {"basis": 8, "sticky": "off"}, 1: {"widths": (0.2,)}}
    with pytest.raises(UserError, match=r"model\.memory\.overrides\.0\.basis: .*many"):
        configs.load(path, ["model.memory.overrides={0: {basis: many}}"])


@pytest.mark.parametrize(
    "text",
    [
        "? [a]\n: 1",
        "? {a: 1}\n: 2",
        "{<<: 1}",
        "<<",
        "!!binary x",
        "!!timestamp x",
        "!!set {a}",
        "!!python/object:os.system x",
        "&a [*a]",
        "&a {b: *a}",
        "[" * 3000,
        "*a",
        "\0",
        "\udcff",
        "run:\n  a: b: c",
        "%",
    ],
)
def test_a_yaml_that_means_nothing_is_one_sentence(text):
    with pytest.raises(UserError, match=r"^x\.yaml is not valid YAML: [^\n]+$"):
        typed.read_yaml(text, "x.yaml")


def test_explicit_tags_of_plain_values_are_read_by_the_type_of_their_key():
    assert typed.read_yaml("a: !!int 7\nb: !!str 8\nc: !!float x\nd: !!bool x", "x") == dict(
        a="7", b="8", c="x", d="x"
    )


@pytest.mark.parametrize(
    "text",
    [
        "optimizer.lr=nan",
        "optimizer.lr=inf",
        "optimizer.betas=[.9, nan]",
        "run.minutes=1e400",
        "batch.lanes=1e30",
        f"batch.lanes={10**400}",
        "model.memory.kl_sigma=-inf",
        "model.memory.widths=[inf]",
        "model.hidden_size=999999999999999999999999",
        "model.memory.overrides={0: {ridge: nan}}",
        "run.seed=-1",
        "run.seed=4294967296",
    ],
)
def test_a_number_that_cannot_be_used_is_refused_by_name(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_run.values(tmp_path / "run", tmp_path / "data")))
    with pytest.raises(
        UserError, match=text.split("=")[0].replace("overrides", r"overrides\.0\.ridge")
    ):
        configs.load(path, [text])


def test_a_folder_may_be_called_as_a_number_that_is_none(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_run.values(tmp_path / "run", tmp_path / "data")))
    assert configs.load(path, ["run.folder=inf"]).run.folder == Path("inf")


@pytest.mark.parametrize(
    "text",
    [
        "model.memory=2",
        "model.memory=''",
        "model.memory=[1]",
        "model.memories=x",
        "model.memories=[1]",
        "model.memories={a: 1}",
        "model=1",
        "model=",
        "run=[]",
    ],
)
def test_a_value_in_the_place_of_a_section_is_refused_by_name(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_run.values(tmp_path / "run", tmp_path / "data")))
    with pytest.raises(UserError, match=text.split("=")[0].replace(".", r"\.")):
        configs.load(path, [text])


@pytest.mark.parametrize("text", ["optimizer.lr=? [a]\n: 1", "a\nb"])
def test_an_override_of_several_lines_is_refused_in_one(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_run.values(tmp_path / "run", tmp_path / "data")))
    with pytest.raises(UserError, match=r"^[^\n]+$"):
        configs.load(path, [text])


def test_a_section_that_is_none_is_refused_by_name(tmp_path):
    for name in ("init", "model", "run"):
        values = small_run.values(tmp_path / "run", tmp_path / "data") | {name: "on"}
        with pytest.raises(UserError, match=name):
            configs.from_dict(values)
