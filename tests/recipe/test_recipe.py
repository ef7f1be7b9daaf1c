"""A recipe that is wrong says where, what must hold, what stands there, and what was meant."""

import pytest

from ftrt.errors import ConfigError
from ftrt.recipe import LossSection, PluginSection, Recipe, load, parse


@pytest.fixture
def read(tmp_path):
    def read(text, *overrides):
        path = tmp_path / "r.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(path, overrides)

    return read


@pytest.fixture
def fault(read, tmp_path):
    def fault(text, *overrides):
        with pytest.raises(ConfigError) as caught:
            read(text, *overrides)
        return str(caught.value).replace(str(tmp_path / "r.yaml"), "r.yaml")

    return fault


def test_a_whole_recipe_is_read(read):
    recipe = read(
        """
        model: {path: ./m, dtype: bfloat16}
        quantization: {dtype: int8, granularity: per_group, group_size: 32}
        method: {name: lora, rank: 16, targets: [q, v]}
        losses:
          - {name: logit_kl, teacher: ./t, temperature: 2.0, weight: 0.5}
        training: {learning_rate: 1e-4, max_steps: 1_000}
        """
    )

    assert recipe.method.options == {"rank": 16, "targets": ["q", "v"]}
    assert recipe.losses[0].teacher == PluginSection(name="online", path="./t")
    assert recipe.losses[0].options == {"temperature": 2.0}
    assert recipe.training == {"learning_rate": 1e-4, "max_steps": 1000}


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "1E-4", ".0001"])
def test_numbers_with_exponents_are_floats(read, text):
    assert read(f"training: {{learning_rate: {text}}}").training["learning_rate"] == 1e-4


def test_yes_and_no_are_words(read):
    assert read("data: {where: {answer: no}}").data.where == {"answer": "no"}


def test_a_byte_order_mark_is_no_key(read):
    assert read(b"\xef\xbb\xbfseed: 3").seed == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # unknown keys, at every depth
        ("modle: {path: m}", "r.yaml: unknown key 'modle'; did you mean 'model'?"),
        ("model: {path: m, dtyp: x}", "r.yaml: unknown key 'model.dtyp'; did you mean 'dtype'?"),
        (
            "data: {max_lenght: 8}",
            "r.yaml: unknown key 'data.max_lenght'; did you mean 'max_length'?",
        ),
        (
            "losses: [{name: a, schedule: {kind: linear, strat: 1}}]",
            "r.yaml: unknown key 'losses.0.schedule.strat'; did you mean 'start'?",
        ),
        (
            "early_stopping: {patience: 1, zzz: 2}",
            "r.yaml: unknown key 'early_stopping.zzz'; known: min_delta, patience",
        ),
        # missing
        ("model: {dtype: float32}", "r.yaml: model.path: must be given"),
        ("method: {rank: 8}", "r.yaml: method.name: must be given"),
        ("losses: [{weight: 1}]", "r.yaml: losses.0.name: must be given"),
        ("early_stopping: {}", "r.yaml: early_stopping.patience: must be given"),
        # wrong type
        ("seed: '1'", "r.yaml: seed: must be an integer; got '1'"),
        ("seed: 1.5", "r.yaml: seed: must be an integer; got 1.5"),
        ("seed: true", "r.yaml: seed: must be an integer; got True"),
        ("seed:", "r.yaml: seed: must be an integer; got None"),
        ("baseline: 1", "r.yaml: baseline: must be true or false; got 1"),
        ("baseline: yes", "r.yaml: baseline: must be true or false; got 'yes'"),
        ("output: [a]", "r.yaml: output: must be a string; got ['a']"),
        ("model: 3", "r.yaml: model: must be a mapping of keys; got 3"),
        ("model: [a]", "r.yaml: model: must be a mapping of keys; got ['a']"),
        ("losses: {name: a}", "r.yaml: losses: must be a list; got {'name': 'a'}"),
        ("losses: [3]", "r.yaml: losses.0: must be a mapping of keys; got 3"),
        ("training: [a]", "r.yaml: training: must be a mapping of keys; got ['a']"),
        ("data: {columns: {text: 3}}", "r.yaml: data.columns.text: must be a string; got 3"),
        (
            "data: {validation: [1]}",
            "r.yaml: data.validation: must be a string or an integer; got [1]",
        ),
        (
            "data: {validation: 1.5}",
            "r.yaml: data.validation: must be a string or an integer; got 1.5",
        ),
        (
            "data: {where: {a: 1.5}}",
            "r.yaml: data.where.a: must be a string or an integer; got 1.5",
        ),
        ("model: {path: m, layers: [0, x]}", "r.yaml: model.layers.1: must be an integer; got 'x'"),
        ("method: lora", "r.yaml: method: must be a mapping with a name; write {name: lora}"),
        ("method: {name: 3}", "r.yaml: method.name: must be a string; got 3"),
        (
            "method: {name: ''}",
            "r.yaml: method.name: must be a string of at least 1 characters; got ''",
        ),
        (
            "losses: [{name: a, teacher: 3}]",
            "r.yaml: losses.0.teacher: must be a mapping of keys; got 3",
        ),
        # values out of range
        ("data: {limit: 0}", "r.yaml: data.limit: must be >= 1; got 0"),
        ("losses: [{name: a, weight: -1}]", "r.yaml: losses.0.weight: must be >= 0; got -1"),
        (
            "losses: [{name: a, weight: .nan}]",
            "r.yaml: losses.0.weight: must be a finite number; got nan",
        ),
        (
            "losses: [{name: a, weight: .inf}]",
            "r.yaml: losses.0.weight: must be a finite number; got inf",
        ),
        (
            "losses: [{name: a, schedule: {kind: linear, fraction: 2}}]",
            "r.yaml: losses.0.schedule.fraction: must be <= 1; got 2",
        ),
        (
            "model: {path: m, dtype: fp16}",
            "r.yaml: model.dtype: must be 'float32', 'bfloat16' or 'float16'; got 'fp16'",
        ),
        (
            "quantization: {granularity: per_group}",
            "r.yaml: quantization: group_size must be given with granularity: per_group,"
            " and only then",
        ),
        (
            "losses: [{name: a}, {name: a}]",
            "r.yaml: losses: each loss term may stand once; 'a' stands 2 times",
        ),
        ("1: 2", "r.yaml: keys must be strings; got 1"),
        # not a mapping, not YAML
        ("", "r.yaml: the recipe must be a mapping of sections; it is empty"),
        ("# nothing\n", "r.yaml: the recipe must be a mapping of sections; it is empty"),
        ("- a\n- b\n", "r.yaml: the recipe must be a mapping of sections; got a list"),
        ("words", "r.yaml: the recipe must be a mapping of sections; got a str"),
    ],
)
def test_fault(fault, text, message):
    assert fault(text) == message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "seed: 1\nseed: 2\n",
            ["r.yaml:2: the recipe must be YAML 1.2 with each key once", "seed"],
        ),
        ("method:\n  name: a\n  rank: 1\n  rank: 2\n", ["r.yaml:4: ", "rank"]),
        ("model:\n\tpath: m\n", ["r.yaml:2: ", r"'\t'"]),
        ("model: {path: m\n", ["r.yaml:", "must be YAML 1.2"]),
        ("a: b: c", ["r.yaml:1: ", "mapping values are not allowed"]),
        (
            "seed: !!python/object/apply:os.system [ls]",
            ["r.yaml:1: ", "python/object/apply:os.system"],
        ),
        ("seed: !mine 3", ["r.yaml:1: ", "!mine"]),
        ("a: 1\n---\nb: 2\n", ["r.yaml:", "document"]),
        ("seed: *gone", ["r.yaml:1: ", "gone"]),
        ("a: \x00", ["r.yaml: the recipe must be YAML 1.2", "special characters"]),
        (b"model: {path: caf\xe9}", ["r.yaml: the recipe must be UTF-8; byte 17 is not"]),
        ("seed: 1".encode("utf-16"), ["r.yaml: the recipe must be UTF-8; byte 0 is not"]),
        ("output: &a [*a]", ["must not contain itself"]),
        ("[" * 5000, ["r.yaml: the recipe must not be nested so deeply"]),
    ],
)
def test_a_file_that_is_no_recipe_says_why(fault, text, parts):
    message = fault(text)

    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_aliases_that_expand_to_billions_are_refused(fault):
    levels = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 10)]

    assert fault("\n".join(["l0: &l0 [x]", *levels])).endswith(
        "the recipe must have at most 100000 values"
    )


def test_all_faults_are_in_one_message(fault):
    assert fault("modle: 1\nseed: x\nmodel: {}").splitlines() == [
        "r.yaml: model.path: must be given",
        "r.yaml: seed: must be an integer; got 'x'",
        "r.yaml: unknown key 'modle'; did you mean 'model'?",
    ]


def test_long_values_are_shortened(fault):
    assert len(fault(f"seed: {'x' * 10_000}")) < 100


def test_a_missing_file_a_folder_and_a_strange_source_are_told_apart(tmp_path):
    for source, says in [
        (tmp_path / "no.yaml", "the recipe must be a file; it does not exist"),
        (tmp_path, "the recipe must be a file; it is a folder"),
        ("a\0b", "the recipe must be readable"),
        (3, "recipe: must be a YAML file, a mapping or a Recipe; got int"),
    ]:
        with pytest.raises(ConfigError, match=says):
            load(source)


def test_a_mapping_is_named_recipe():
    with pytest.raises(ConfigError, match=r"^recipe: unknown key 'metod'; did you mean 'method'"):
        load({"metod": {"name": "lora"}})


def test_a_recipe_is_returned_as_it_is():
    recipe = Recipe()

    assert load(recipe) is recipe


def test_a_recipe_keeps_everything_through_an_override():
    recipe = parse(
        {"method": {"name": "lora", "rank": 8}, "losses": [{"name": "kl", "teacher": "t"}]}
    )

    changed = load(recipe, ["method.alpha=2"])

    assert changed.method.options == {"rank": 8, "alpha": 2}
    assert changed.losses == [LossSection(name="kl", teacher={"name": "online", "path": "t"})]
    assert recipe.method.options == {"rank": 8}


def test_the_callers_mapping_is_not_changed():
    tree = {"method": {"name": "lora"}, "losses": [{"name": "a"}]}

    load(tree, ["method.rank=3", "losses.0.weight=2"])

    assert tree == {"method": {"name": "lora"}, "losses": [{"name": "a"}]}


@pytest.mark.parametrize(
    ("item", "path", "value"),
    [
        ("seed=7", ("seed",), 7),
        ("training.learning_rate=1e-3", ("training", "learning_rate"), 1e-3),
        ("method.targets=[q, v]", ("method", "targets"), ["q", "v"]),
        ("method.rank = 4", ("method", "rank"), 4),
        ("losses.1.weight=0.25", ("losses", 1, "weight"), 0.25),
        ("output=a=b", ("output",), "a=b"),
        ("output=", ("output",), None),
        ("early_stopping={patience: 2}", ("early_stopping",), {"patience": 2}),
    ],
)
def test_set_changes_one_value(item, path, value):
    tree = {"method": {"name": "m"}, "losses": [{"name": "a"}, {"name": "b"}]}

    node = load(tree, [item]).model_dump(exclude_unset=True)
    for part in path:
        node = node[part]

    assert node == value


def test_set_makes_a_section_that_is_not_there():
    assert load({}, ["method.name=lora", "method.rank=2"]).method.options == {"rank": 2}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("rank", "--set rank: must read key=value, say --set method.rank=8"),
        ("=8", "--set =8: must read key=value, say --set method.rank=8"),
        ("method..rank=8", "--set method..rank=8: must read key=value, say --set method.rank=8"),
        ("losses.2.weight=1", "--set losses.2.weight=1: losses has items 0..0; got '2'"),
        ("losses.-1.weight=1", "--set losses.-1.weight=1: losses has items 0..0; got '-1'"),
        ("losses.kl.weight=1", "--set losses.kl.weight=1: losses has items 0..0; got 'kl'"),
        ("seed.x=1", "--set seed.x=1: seed is a value and has no key 'x'"),
        ("data.transforms.0=1", "--set data.transforms.0=1: data.transforms is an empty"
        " list; got '0'"),
        ("method.rnak={a", None),
        ("seed={a: 1, a: 2}", None),
        ("zzz=1", "recipe: unknown key 'zzz'; known: baseline, chunked_loss, compile, data,"
                  " early_stopping, head, losses, method, model, output, quantization, recipe,"
                  " seed, training"),
        ("seed=x", "recipe: seed: must be an integer; got 'x'"),
    ],
)  # fmt: skip
def test_a_bad_set_says_what_to_write(item, message):
    tree = {"seed": 1, "losses": [{"name": "a"}], "data": {"transforms": []}}

    with pytest.raises(ConfigError) as caught:
        load(tree, [item])

    if message is None:
        assert str(caught.value).startswith(
            f"--set {item}: the value must be YAML 1.2 with each key"
        )
    else:
        assert str(caught.value) == message
