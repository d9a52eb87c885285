"""The configuration of a run: what is read, what is refused and in which words, and that no damage is a traceback."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_common.configuration.yaml_reader import parse_yaml, read_yaml
from training.errors import TrainingError
from training.train.config import Augment, Run, Stage, load_run

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = sorted((ROOT / 'config' / 'train').glob('*.yaml'))


def load(tmp_path: Path, text: str) -> Run:
    (tmp_path / 'run.yaml').write_text(text, encoding='utf-8')
    return load_run(tmp_path / 'run.yaml')


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_what_ships_loads_and_goes_to_plain_data_and_back(path: Path) -> None:
    run = load_run(path)
    assert Run.parse(run.to_dict()) == run
    assert Run.parse(yaml.safe_load(yaml.safe_dump(run.to_dict()))) == run
    assert load_run(path, seed=5).seed == 5


def test_what_the_shipped_bundle_says_of_its_run_is_still_read() -> None:
    run = json.loads((ROOT / 'bundles/demo/manifest.json').read_text(encoding='utf-8'))['provenance']['run']
    for read, said in zip(Run.parse(run).to_dict()['stages'], run['stages'], strict=True):
        assert said.items() <= read.items(), 'a field that came later has its default'


def test_numbers_may_be_written_as_an_engineer_writes_them(tmp_path: Path) -> None:
    stage = load(tmp_path, 'stages: [{rate: 1e-3, actions: 1, steps: 30_000}]').stages[0]
    assert (stage.rate, stage.actions, stage.steps) == (1e-3, 1.0, 30000)
    assert type(stage.actions) is float


def test_one_file_may_stand_for_a_list_of_one(tmp_path: Path) -> None:
    assert load(tmp_path, 'data: {bags: x, vlm: words.jsonl}').data.vlm == ('words.jsonl',)


def test_changes_of_the_preset_stay_as_they_were_written(tmp_path: Path) -> None:
    run = load(tmp_path, 'preset: mini\nmodel: {horizon: 20, vision: {depth: 2}}')
    assert run.model == {'horizon': 20, 'vision': {'depth': 2}}
    assert run.to_dict()['model'] == run.model


REFUSALS = [
    ('presett: tiny', "run.yaml has the unknown field 'presett'; did you mean 'preset'?"),
    ('data: {bags: x, validaton: 0.1}', "run.yaml: data has the unknown field 'validaton'; did you mean 'validation'?"),
    ('data: {}', 'run.yaml: data.bags and arrays are both left out; name the one that there is.'),
    ('data: {bags: a, arrays: b}', "run.yaml: data.bags is 'a' and arrays 'b'; name only one of the two."),
    ('data: {bags: x, validation: 0.95}', 'run.yaml: data.validation is 0.95; write a number from 0 to 0.9.'),
    ('data: {bags: x, outcomes: [won]}', "data.outcomes[0] is 'won'; write one of unlabeled, success, failure, "),
    ('data: {bags: x, vlm: [1]}', 'data.vlm[0] is 1; write a word, in quotes.'),
    ('stages: [{steps: ten}]', "run.yaml: stages[0].steps is 'ten'; write a whole number of at least 1."),
    ('stages: [{steps: 0}]', 'run.yaml: stages[0].steps is 0; write a whole number of at least 1.'),
    ('stages: [{steps: 1.5}]', 'run.yaml: stages[0].steps is 1.5; write a whole number of at least 1.'),
    ('stages: [{rate: fast}]', "run.yaml: stages[0].rate is 'fast'; write a number above 0."),
    ('stages: [{rate: "1e-3"}]', "run.yaml: stages[0].rate is '1e-3'; write a number above 0, without quotes."),
    ('stages: [{final_rate: -1}]', 'run.yaml: stages[0].final_rate is -1; write a number from 0 to 1.'),
    ('stages: [{ema: 1.0}]', 'run.yaml: stages[0].ema is 1.0; write a number of at least 0 and below 1, or leave'),
    ('stages: [{recipe: our}]', "stages[0].recipe is 'our'; did you mean 'ours'? Write one of ours, "),
    ('stages: [{vlm: 1}]', 'run.yaml: data.vlm names no files, and a stage draws vlm samples; name some,'),
    ('stages: [{actions: 0}]', 'run.yaml: stages[0].actions, starts and vlm are all 0, so nothing would be drawn;'),
    ('stages: [{batch: 4, accumulate: 3}]', 'run.yaml: stages[0].batch is 4; write a multiple of accumulate, 3.'),
    ('stages: [{kept: 64}]', 'run.yaml: stages[0].kept is 64, and recipe ours trains the backbone, so nothing stays'),
    ('stages: [{recipe: frozen, kept: 8}]', 'run.yaml: stages[0].kept is 8, batch 32, vlm 0; keep a batch or more,'),
    ('stages: []', 'run.yaml: stages is []; write a list of at least 1 entry.'),
    ('stages: {name: a}', "run.yaml: stages is {'name': 'a'}; write a list of at least 1 entry."),
    ('stages: [{name: a b}]', "run.yaml: stages[0].name is 'a b'; write a plain word; it names a folder."),
    ('stages: [{name: a}, {name: a}]', 'run.yaml: stages have the names a, a; give each its own, they name folders.'),
    ('preset: huge', "run.yaml: preset is 'huge'; write one of tiny, mini, full, or leave it out."),
    ('model: {dept: 4}', "run.yaml: model has the unknown field 'dept'; known are name, vision, "),
    ('model: {vision: {dept: 4}}', "run.yaml: model.vision has the unknown field 'dept'; did you mean 'depth'?"),
    ('model: {horizon: -5}', 'run.yaml: model.horizon is -5; write a whole number above 0.'),
    ('model: {vision: 3}', 'run.yaml: model.vision is 3; write a mapping of fields.'),
    ('model: {head: tail}', "run.yaml: model.head is 'tail'; write one of expert, shared, parallel, none."),
    ('model: {pointer: {layer: 1}}', "is heard beside the state, and state_repr is 'text'; write suffix or both"),
    ('model: {backbone: {depth: 9}}', 'model does not fit the preset tiny: ModelConfig: expert.depth is 3; write '),
    ('model: 4', 'run.yaml: model is 4; write a mapping of fields.'),
    ('augment: {crop: 2}', 'run.yaml: augment.crop is 2; write a number from 0.1 to 1.'),
    ('augment: {rotate: .nan}', 'run.yaml: augment.rotate is nan; write a finite number from 0 to 180.'),
    ('bf16: perhaps', "run.yaml: bf16 is 'perhaps'; write true or false, or leave it out."),
    ('device: cuba', "run.yaml: device is 'cuba'; write one of auto, cpu, cuda."),
    ('normalisation: quantle', "run.yaml: normalisation is 'quantle'; write one of quantile, zscore, or leave it out."),
    ('workers: -3', 'run.yaml: workers is -3; write a whole number of at least 0.'),
    ('seed: true', 'run.yaml: seed is True; write a whole number of at least 0.'),
    ('seed: 1\nname: a\nseed: 2', "run.yaml, line 3: the key 'seed' is given twice; keep one."),
    ('name: a@b', "run.yaml: name is 'a@b'; write a name without blanks, @ and /; it names the bundle."),
    ('simulate: {episodes: -1}', 'run.yaml: simulate.episodes is -1; write a whole number of at least 0.'),
    ('[', 'run.yaml, line 1: '),
    ('hello', "run.yaml holds 'hello'; write a mapping of fields, as in config/train/."),
    ('', 'run.yaml holds None; write a mapping of fields'),
]  # fmt: skip


@pytest.mark.parametrize(('text', 'says'), REFUSALS)
def test_a_mistake_is_told_with_file_field_value_and_what_to_write(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(TrainingError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert says in message
    assert message.startswith(str(tmp_path / 'run.yaml'))
    assert '\n' not in message


def test_what_the_recipe_gives_the_model_is_there_for_what_the_run_changes(tmp_path: Path) -> None:
    run = load(tmp_path, 'data: {bags: x}\nstages: [{recipe: pi0}]\nmodel: {pointer: {layer: 1}}')
    assert run.model == {'pointer': {'layer': 1}}


def test_a_run_made_in_code_is_checked_too() -> None:
    with pytest.raises(TrainingError, match=r'^Stage: steps is -1; write a whole number of at least 1\.$'):
        Stage(steps=-1)
    with pytest.raises(TrainingError, match=r'^Run: device is'):
        Run().replace(device='cuba')
    assert Run(augment=Augment(crop=1)).augment.crop == 1.0


def everywhere(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside plain data."""
    found = [place] if place else []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in entries:
        found += everywhere(each, (*place, key))
    return found


def parsed(data: Any) -> tuple[Run | None, str]:
    """The run in plain data, or the one sentence that refuses it."""
    try:
        return Run.parse(data, 'run.yaml'), ''
    except TrainingError as error:
        return None, str(error)


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4) | st.dates()
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3), max_leaves=8
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SHIPPED), st.randoms(use_true_random=False), TREES)
def test_any_value_anywhere_is_a_sound_run_or_one_sentence(path: Path, chance: random.Random, tree: object) -> None:
    data = load_run(path).to_dict()
    *way, last = chance.choice(everywhere(data))
    target = data
    for key in way:
        target = target[key]
    target[last] = tree
    run, message = parsed(data)
    assert '\n' not in message
    assert len(message) < 2000
    if run is not None:
        assert Run.parse(run.to_dict()) == run


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SHIPPED), st.randoms(use_true_random=False), st.sampled_from(['drop', 'double', 'swap', 'case']))
def test_a_misspelt_key_is_never_ignored(path: Path, chance: random.Random, how: str) -> None:
    data = read_yaml(path)
    *way, key = chance.choice([place for place in everywhere(data) if isinstance(place[-1], str)])
    target = data
    for each in way:
        target = target[each]
    at = chance.randrange(len(key))
    swapped = key[:at] + key[at + 1 : at + 2] + key[at] + key[at + 2 :]
    wrong = {
        'drop': key[:at] + key[at + 1 :],
        'double': key[:at] + key[at] + key[at:],
        'swap': swapped,
        'case': key.upper(),
    }
    if wrong[how] in target or way[-1:] == ['labels']:  # these are names in the data, which the run compares
        return
    target[wrong[how]] = target.pop(key)
    run, message = parsed(data)
    assert run is None
    assert f'unknown field {wrong[how]!r}' in message


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(SHIPPED),
    st.integers(0, 9000),
    st.binary(max_size=4) | st.sampled_from([b'&a [*a]', b'<<: 1', b'!!python/x', b'{', b'\t', b'- ', b': ', b'\n  ']),
)
def test_any_bytes_inside_the_file_give_a_run_or_one_sentence(path: Path, at: int, junk: bytes) -> None:
    raw = path.read_bytes()
    at %= len(raw)
    text = (raw[:at] + junk + raw[at + len(junk) :]).decode('utf-8', errors='replace')
    try:
        data = parse_yaml(text, 'run.yaml', TrainingError)
    except TrainingError as error:
        data = str(error)
        assert '\n' not in data
    _, message = parsed(data)
    assert '\n' not in message


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_comments_order_and_layout_mean_nothing(path: Path, tmp_path: Path) -> None:
    data = read_yaml(path)
    turned = {key: data[key] for key in reversed(data)}
    text = '# a comment\n' + yaml.safe_dump(turned, sort_keys=False, default_flow_style=True)
    assert load(tmp_path, text) == load_run(path)
