"""Datasets go out to LeRobot's layout and come back; real ones come in as recordings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ki_bags.writer import BagWriter
from ki_robot.contract.contract import Contract, load_contract
from training.errors import TrainingError
from training.fit.stats import compute_stats
from training.index.index import Index, index_bags
from training.lerobot.column_map import column_of
from training.lerobot.read import LerobotDataset, dataset_folders
from training.lerobot.to_bags import contract_of, from_lerobot, misfit
from training.lerobot.write import to_lerobot
from training.samples.dataset import EpisodeDataset

MakeBag = Callable[..., Path]
START_NS = 1_700_000_000_000_000_000


@pytest.fixture
def index(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> Index:
    make_bag('a', seconds=1.0, task='lift the cup')
    make_bag('b', seconds=1.5, task='open the drawer')
    return index_bags(tmp_path / 'bags', toy, tmp_path / 'index')


@pytest.mark.parametrize('codec', ['h264', 'copy'])
def test_what_is_written_reads_back(index: Index, tmp_path: Path, codec: str) -> None:
    problems = to_lerobot(index, tmp_path / 'out', codec)
    assert len(problems) == 0
    dataset = LerobotDataset(tmp_path / 'out')
    ours = EpisodeDataset(index, resize=False)
    assert dataset.numbers == (0, 1)
    assert dataset.cameras == ('scene', 'wrist')
    assert dataset.state_names == ('joint1', 'joint2', 'gripper', 'base/linear/x/velocity')
    position = 0
    for number, length in ((0, 21), (1, 31)):
        episode = dataset.episode(number)
        assert episode.state.shape == (length, 4)
        assert set(episode.tasks) == {('lift the cup', 'open the drawer')[number]}
        frames = {camera: list(dataset.frames(clip, episode.timestamps)) for camera, clip in episode.clips.items()}
        for step in range(length):
            sample = ours[position]
            np.testing.assert_allclose(episode.state[step], sample.state_S, atol=1e-6)
            np.testing.assert_allclose(episode.action[step], sample.actions_HN[0], atol=1e-6)
            assert episode.timestamps[step] == pytest.approx(step / 20, abs=1e-6)
            for camera, shown in frames.items():
                difference = np.abs(shown[step].astype(int) - sample.images[camera])
                assert difference.mean() < 3.0, (camera, number, step)
            position += 1


def test_the_metadata_says_what_the_format_asks_for(index: Index, tmp_path: Path) -> None:
    to_lerobot(index, tmp_path / 'out')
    info = json.loads((tmp_path / 'out/meta/info.json').read_text())
    assert info['codebase_version'] == 'v3.0'
    assert (info['total_episodes'], info['total_frames'], info['total_tasks'], info['fps']) == (2, 52, 2, 20)
    assert info['features']['observation.images.scene']['shape'] == [24, 32, 3]
    assert info['features']['observation.state']['names'][0] == 'joint1'
    for name in ('timestamp', 'frame_index', 'episode_index', 'index', 'task_index'):
        assert info['features'][name]['shape'] == [1]
    rows = pq.read_table(tmp_path / 'out/meta/episodes/chunk-000/file-000.parquet').to_pylist()
    assert [(row['dataset_from_index'], row['dataset_to_index']) for row in rows] == [(0, 21), (21, 52)]
    assert rows[1]['videos/observation.images.wrist/from_timestamp'] == pytest.approx(21 / 20)
    data = pq.ParquetFile(tmp_path / 'out/data/chunk-000/file-000.parquet')
    assert data.num_row_groups == 2
    assert data.read()['index'].to_pylist() == list(range(52))
    tasks = pq.read_schema(tmp_path / 'out/meta/tasks.parquet')
    assert json.loads(tasks.metadata[b'pandas'])['index_columns'] == ['task']
    stats = json.loads((tmp_path / 'out/meta/stats.json').read_text())
    every = np.concatenate([EpisodeDataset(index).arrays(number)['state'] for number in (0, 1)])
    np.testing.assert_allclose(stats['observation.state']['mean'], every.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(stats['observation.state']['std'], every.std(axis=0), atol=1e-6)
    assert np.shape(stats['observation.images.scene']['mean']) == (3, 1, 1)


def test_any_frame_is_two_decodings_away(index: Index, tmp_path: Path) -> None:
    import av

    to_lerobot(index, tmp_path / 'out')
    with av.open(str(tmp_path / 'out/videos/observation.images.scene/chunk-000/file-000.mp4')) as container:
        keys = [frame.key_frame for frame in container.decode(video=0)]
    assert len(keys) == 52
    assert all(keys[0::2])


def test_stretches_without_input_are_left_out(toy: Contract, tmp_path: Path, scribe: Any) -> None:
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag, without=('/joint_states', '/wrist/image_raw/compressed'))
        writer.stretch(3.0)
        writer.without = ()
        for tick in [*range(101), *range(200, 301)]:
            writer.joints(START_NS + tick * 10**7, (0.1, 0.2, 0.03))
    index = index_bags(tmp_path / 'bag', toy, tmp_path / 'index')
    problems = to_lerobot(index, tmp_path / 'out')
    assert problems.kinds() == {'left_out', 'camera_left_out'}
    dataset = LerobotDataset(tmp_path / 'out')
    assert dataset.cameras == ('scene',)
    assert [len(dataset.episode(number).state) for number in dataset.numbers] == [23, 21]


def test_there_and_back_gives_the_same_numbers(index: Index, tmp_path: Path) -> None:
    to_lerobot(index, tmp_path / 'out', 'copy')
    contract, problems = from_lerobot(tmp_path / 'out', tmp_path / 'back')
    assert contract == index.contract
    assert len(problems) == 0
    back = index_bags(tmp_path / 'back', contract, tmp_path / 'index2')
    assert not back.problems.kinds()
    for number in range(2):
        one, two = EpisodeDataset(index).arrays(number), EpisodeDataset(back).arrays(number)
        np.testing.assert_allclose(one['state'], two['state'], atol=1e-6)
        np.testing.assert_allclose(one['actions'], two['actions'], atol=1e-6)


def test_a_task_that_changes_within_an_episode_is_told_from_that_step_on(index: Index, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    to_lerobot(index, out, 'copy')
    file = out / 'data/chunk-000/file-000.parquet'
    table = pq.read_table(file)
    tasks = table['task_index'].to_numpy().copy()
    tasks[35:] = tasks[0]  # step 14 of the second episode
    place = table.schema.get_field_index('task_index')
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(tasks)), file)
    contract, _ = from_lerobot(out, tmp_path / 'back')
    back = index_bags(tmp_path / 'back', contract, tmp_path / 'index2')
    data = EpisodeDataset(back)
    said = [data.index.episodes[1][1].texts[text] for text in data.arrays(1)['text']]
    assert said == ['open the drawer'] * 14 + ['lift the cup'] * (len(said) - 14)


@pytest.mark.parametrize('named', [False, True])
def test_pictures_in_the_table_or_named_by_it_are_read_like_a_film(index: Index, tmp_path: Path, named: bool) -> None:
    out = tmp_path / 'out'
    to_lerobot(index, out, 'copy')
    with_films = LerobotDataset(out)
    clips = [with_films.episode(number).clips['scene'] for number in (0, 1)]
    pictures = [
        each
        for clip, steps in zip(clips, (21, 31), strict=True)
        for each in with_films.frames(clip, np.arange(steps) / 20)
    ]
    cells = []
    for number, pixels in enumerate(pictures):
        data = cv2.imencode('.png', cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
        (out / f'{number}.png').write_bytes(data)
        cells.append({'bytes': None if named else data, 'path': f'{number}.png'})
    file, info = out / 'data/chunk-000/file-000.parquet', out / 'meta/info.json'
    kind = pa.struct([('bytes', pa.binary()), ('path', pa.string())])
    table = pq.read_table(file).append_column('observation.images.scene', pa.array(cells, kind))
    pq.write_table(table, file)
    about = json.loads(info.read_text())
    about['features']['observation.images.scene']['dtype'] = 'image'
    info.write_text(json.dumps(about))
    shutil.rmtree(out / 'videos' / 'observation.images.scene')
    dataset = LerobotDataset(out)
    assert dataset.numbers == (0, 1)
    found = list(dataset.frames(dataset.episode(1).clips['scene'], np.arange(31) / 20))
    assert all(np.array_equal(one, other) for one, other in zip(found, pictures[21:], strict=True))
    with pytest.raises(TrainingError, match='ends after 31 of 32 pictures'):
        list(dataset.frames(dataset.episode(1).clips['scene'], np.arange(32) / 20))
    if named:
        (out / '30.png').write_bytes(b'nothing')
        with pytest.raises(TrainingError, match='scene of episode 1 does not decode after 9 pictures'):
            list(dataset.frames(dataset.episode(1).clips['scene'], np.arange(31) / 20))


def test_a_real_dataset_becomes_recordings_that_index_without_a_word(ki_data: Path, tmp_path: Path) -> None:
    """Unitree G1, v2.1, AV1; of a hundred episodes in its metadata six are on disk."""
    source = ki_data / 'unitree_g1_lerobot_v21'
    dataset = LerobotDataset(source)
    assert dataset.numbers == (1, 2, 4, 5, 7, 8)
    assert [problem.count for problem in dataset.problems] == [94]
    short = tmp_path / 'g1'
    shutil.copytree(source / 'meta', short / 'meta')
    number = 2
    for part in ('data/chunk-000/episode_000002.parquet',):
        (short / part).parent.mkdir(parents=True)
        table = pq.read_table(source / part).slice(0, 60)
        pq.write_table(table, short / part)
    video = 'videos/chunk-000/observation.images.cam_high/episode_000002.mp4'
    (short / video).parent.mkdir(parents=True)
    shutil.copy(source / video, short / video)
    contract, _ = from_lerobot(short, tmp_path / 'bags', 'g1_upper_body')
    index = index_bags(tmp_path / 'bags', contract, tmp_path / 'index')
    assert not index.problems.kinds()
    [(_, about)] = index.episodes
    assert (about.steps, about.usable, about.texts[0]) == (60, 60, 'Pick up the yellow bottle on the table.')
    arrays = EpisodeDataset(index).arrays(0)
    stored = dataset.episode(number)
    np.testing.assert_array_equal(arrays['state'], stored.state[:60])
    np.testing.assert_array_equal(arrays['actions'], stored.action[:60])
    sample = EpisodeDataset(index, resize=False)[30]
    [thirtieth] = list(dataset.frames(stored.clips['cam_high'], np.arange(31) / 30))[30:]
    assert np.abs(sample.images['cam_high'].astype(int) - thirtieth).mean() < 2.0


def test_the_shipped_contract_holds_the_real_recordings(ki_data: Path) -> None:
    contract = load_contract('g1_upper_body')
    dataset = LerobotDataset(ki_data / 'unitree_g1_lerobot_v21')
    assert [column_of(name) for name in dataset.action_names] == list(contract.action_names)
    for number in dataset.numbers:
        action = dataset.episode(number).action
        for index, column in enumerate(contract.actions):
            limits = column.limits
            assert limits.lower is not None
            assert limits.upper is not None
            assert limits.velocity is not None
            assert limits.lower - 1e-6 <= action[:, index].min()
            assert action[:, index].max() <= limits.upper + 1e-6
            assert np.abs(np.diff(action[:, index])).max() * 30.0 <= limits.velocity


def test_a_contract_is_made_where_there_is_none(index: Index, tmp_path: Path) -> None:
    to_lerobot(index, tmp_path / 'out')
    (tmp_path / 'out/meta/contract.json').unlink()
    made = contract_of(LerobotDataset(tmp_path / 'out'))
    assert made.state_names == index.contract.state_names
    assert made.rate_hz == 20.0
    assert [column.representation for column in made.actions] == ['delta', 'delta', 'delta', 'absolute']


def test_an_episode_that_its_file_does_not_hold_costs_only_itself(index: Index, tmp_path: Path) -> None:
    """Without a contract one is made from the episodes, which this one must not end either."""
    out = tmp_path / 'out'
    to_lerobot(index, out)
    (out / 'meta/contract.json').unlink()
    [path] = (out / 'data').rglob('*.parquet')
    table = pq.read_table(path)
    renumbered = [7 if number == 1 else number for number in table['episode_index'].to_pylist()]
    place = table.schema.get_field_index('episode_index')
    pq.write_table(table.set_column(place, 'episode_index', pa.array(renumbered, pa.int64())), path)
    _, problems = from_lerobot(out, tmp_path / 'in')
    assert [each.name for each in sorted((tmp_path / 'in').iterdir())] == ['contract.yaml', 'episode_000000']
    [problem] = problems
    assert (problem.field, problem.kind) == ('episode 1', 'unreadable')
    assert 'no row has this episode_index' in problem.text


def test_an_episode_shorter_than_the_metadata_says_is_told(index: Index, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    to_lerobot(index, out)
    [path] = (out / 'data').rglob('*.parquet')
    table = pq.read_table(path)
    pq.write_table(table.slice(0, len(table) - 5), path)
    _, problems = from_lerobot(out, tmp_path / 'in')
    assert [(each.kind, each.text) for each in problems] == [
        ('length', 'episode 1 has 26 steps; the metadata promises 31')
    ]


def test_what_cannot_be_used_is_named(index: Index, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    to_lerobot(index, out)
    with pytest.raises(TrainingError, match='exists already'):
        to_lerobot(index, out)
    with pytest.raises(TrainingError, match='has no episode 7; on disk are 0, 1'):
        from_lerobot(out, tmp_path / 'x', episodes=[7])
    with pytest.raises(TrainingError, match='has no state column kLeftShoulderPitch/position'):
        from_lerobot(out, tmp_path / 'x', 'g1_upper_body')
    path = out / 'meta/info.json'
    text = path.read_text()
    for old, new, match in (
        ('"v3.0"', '"v9"', 'codebase_version is v9'),
        ('"joint1",', '', 'does not name its 4 columns'),
        ('data/chunk-{chunk_index:03d}', '../{chunk_index}', 'leads out of the dataset'),
        ('{', '[', 'cannot be read'),
    ):
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(TrainingError, match=match):
            from_lerobot(out, tmp_path / 'x')
    path.write_text(text)
    file = out / 'data/chunk-000/file-000.parquet'
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TrainingError, match=r'episode 0 cannot be read'):
        LerobotDataset(out).episode(0)


def test_datasets_are_found_below_a_folder_and_matched_with_a_robot(index: Index, tmp_path: Path) -> None:
    place = tmp_path / 'data' / 'many'
    place.mkdir(parents=True)
    for name in ('b', 'a'):
        to_lerobot(index, place / name)
    deep = place / 'c' / 'd' / 'e' / 'f'
    (deep / 'meta').mkdir(parents=True)
    (deep / 'meta' / 'info.json').write_text('{}')
    assert dataset_folders(tmp_path / 'data') == [place / 'a', place / 'b']
    assert dataset_folders(place / 'a') == [place / 'a']
    assert dataset_folders(place / 'c')[0] == deep
    dataset = LerobotDataset(place / 'a')
    assert misfit(dataset, index.contract) == ''
    assert 'no state column kLeftShoulderPitch/position' in misfit(dataset, load_contract('g1_upper_body'))


def test_a_video_that_ends_early_costs_its_episode_only(index: Index, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    to_lerobot(index, out)
    rows = out / 'meta/episodes/chunk-000/file-000.parquet'
    table = pq.read_table(rows).to_pylist()
    table[1]['videos/observation.images.scene/from_timestamp'] += 0.5
    pq.write_table(pa.Table.from_pylist(table), rows)
    _, problems = from_lerobot(out, tmp_path / 'back')
    [problem] = problems
    assert problem.field == 'episode 1'
    assert 'ends after 21 of 31 pictures' in problem.text
    assert [path.name for path in sorted((tmp_path / 'back').iterdir())] == [
        'contract.yaml',
        'episode_000000',
        'episode_000001.partial',
    ]


def test_a_flipped_bit_in_our_own_tables_is_noticed(index: Index, tmp_path: Path) -> None:
    to_lerobot(index, tmp_path / 'out')
    [file] = (tmp_path / 'out/data').rglob('*.parquet')
    sound = file.read_bytes()
    state = np.concatenate([LerobotDataset(tmp_path / 'out').episode(number).state for number in (0, 1)])
    place = sound.index(state[5].astype(np.float32).tobytes()[:8])  # a number as it lies in its page
    file.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
    with pytest.raises(TrainingError, match='episode 0 cannot be read'):
        LerobotDataset(tmp_path / 'out').episode(0)


@pytest.mark.parametrize(('codec', 'film_mb'), [('h264', 200), ('copy', 200), ('copy', 0)])
def test_a_camera_of_two_sizes_is_refused_with_a_way(
    toy: Contract, tmp_path: Path, scribe: Any, monkeypatch: pytest.MonkeyPatch, codec: str, film_mb: int
) -> None:
    """Lerobot's loader would stack pictures of both, and fail in the middle of training: in one film, or in several."""
    monkeypatch.setattr('training.lerobot.write.VIDEO_MB', film_mb)
    for name, size in (('a', (24, 32)), ('b', (48, 64))):
        with BagWriter(tmp_path / 'bags' / name, custom={'task': 'x'}) as bag:
            writer = scribe(bag, without=('/scene/image_raw/compressed', '/wrist/image_raw/compressed'))
            writer.stretch(0.5)
            writer.without = ()
            for number in range(16):
                data = cv2.imencode('.jpg', np.full((*size, 3), 8 * number, np.uint8))[1].reshape(-1)
                writer.image('scene', START_NS + number * 10**9 // 30, data)
    index = index_bags(tmp_path / 'bags', toy, tmp_path / 'index')
    with pytest.raises(TrainingError, match=r'is 64 x 48, the first 32 x 24; .*--store model'):
        to_lerobot(index, tmp_path / 'out', codec)
    assert not (tmp_path / 'out').exists()


def test_pictures_of_odd_sides_are_written_and_read_back(toy: Contract, tmp_path: Path, scribe: Any) -> None:
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag, without=('/scene/image_raw/compressed', '/wrist/image_raw/compressed'))
        writer.stretch(0.5)
        writer.without = ()
        for number in range(16):
            data = cv2.imencode('.jpg', np.full((25, 33, 3), 8 * number, np.uint8))[1].reshape(-1)
            writer.image('scene', START_NS + number * 10**9 // 30, data)
    to_lerobot(index_bags(tmp_path / 'bag', toy, tmp_path / 'index'), tmp_path / 'out')
    dataset = LerobotDataset(tmp_path / 'out')
    episode = dataset.episode(0)
    shown = list(dataset.frames(episode.clips['scene'], episode.timestamps))
    assert {each.shape for each in shown} == {(25, 33, 3)}
    assert abs(float(shown[4].mean()) - 8 * 6) < 4
    assert json.loads((tmp_path / 'out/meta/info.json').read_text())['features']['observation.images.scene'][
        'shape'
    ] == [25, 33, 3]


@pytest.mark.parametrize(('fps', 'steps'), [(25, 25), (12, 13)])
def test_a_rate_that_is_no_whole_number_has_a_way(
    toy: Contract, tmp_path: Path, scribe: Any, fps: int, steps: int
) -> None:
    slow = toy.replace(rate_hz=12.5)
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        scribe(bag).stretch(1.0)
    index = index_bags(tmp_path / 'bag', slow, tmp_path / 'index')
    with pytest.raises(TrainingError, match=r'give --fps 25 \(steps are repeated\) or --fps 12'):
        to_lerobot(index, tmp_path / 'out')
    to_lerobot(index, tmp_path / 'out', fps=fps)
    episode = LerobotDataset(tmp_path / 'out').episode(0)
    assert abs(episode.steps - steps) <= 1
    np.testing.assert_allclose(episode.timestamps, np.arange(episode.steps) / fps, atol=1e-6)
    held = np.floor(episode.timestamps * 12.5 + 1e-4).astype(int)
    every = EpisodeDataset(index).arrays(0)['state']
    np.testing.assert_allclose(episode.state, every[held], atol=1e-6)
    contract, problems = from_lerobot(tmp_path / 'out', tmp_path / 'back')
    assert contract.rate_hz == fps
    assert not problems


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.mark.parametrize(
    'shared', [{'workers': 2}, pytest.param({'ray': 'local'}, marks=pytest.mark.slow)], ids=['processes', 'ray']
)
def test_any_number_of_machines_gives_the_same_dataset_and_the_same_recordings(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: dict[str, Any]
) -> None:
    monkeypatch.setattr('training.lerobot.write.VIDEO_MB', 0)  # so that each episode has a film of its own
    if 'ray' in shared:
        ray = pytest.importorskip('ray')
        ray.init(address='local', num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        to_lerobot(index, tmp_path / 'one')
        to_lerobot(index, tmp_path / 'two', **shared)
        _, problems = from_lerobot(tmp_path / 'one', tmp_path / 'bags_one')
        _, others = from_lerobot(tmp_path / 'one', tmp_path / 'bags_two', **shared)
        statistics = [compute_stats(EpisodeDataset(index), **each)['actions'].mean for each in ({}, shared)]
        again = index_bags(tmp_path / 'bags', index.contract, tmp_path / 'other', **shared)
    finally:
        if 'ray' in shared:
            ray.shutdown()
    assert len(list((tmp_path / 'one').rglob('*.mp4'))) == 4
    assert content_of(tmp_path / 'two') == content_of(tmp_path / 'one')
    assert content_of(tmp_path / 'bags_two') == content_of(tmp_path / 'bags_one')
    assert list(problems) == list(others)
    np.testing.assert_array_equal(*statistics)
    assert [each.files for each in again.entries] == [each.files for each in index.entries]
