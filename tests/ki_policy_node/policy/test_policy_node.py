"""The policy node as a process: services, action, instruction, dry run, status, diagnostics, lifecycle, parameters."""

from __future__ import annotations

import time

import pytest

pytest.importorskip('rclpy')

import yaml
from ki_msgs.action import RunPolicy
from ki_msgs.msg import Instruction, PolicyStatus, StreamHealth
from ki_msgs.srv import LoadPolicy, SetInstruction
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import DescribeParameters, SetParameters
from rclpy.action import ActionClient
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from ki_robot.messages.arrays import to_chunk

pytestmark = pytest.mark.ros
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def ready(rig, **parameters):
    process = rig.start_policy(run_on_activate=False, **parameters)
    rig.until('ready', lambda: rig.status.state == PolicyStatus.STATE_READY)
    return process


def run(rig, **fields):
    """Sends a goal; the accepted handle."""
    client = ActionClient(rig.node, RunPolicy, 'policy_node/run')
    rig.until('the action', client.server_is_ready)
    rig.feedback = []
    future = client.send_goal_async(
        RunPolicy.Goal(**fields), feedback_callback=lambda f: rig.feedback.append(f.feedback)
    )
    rig.until('an answer', future.done)
    return future.result()


def result_of(rig, handle):
    future = handle.get_result_async()
    rig.until('a result', future.done)
    return future.result()


def test_a_run_by_service_publishes_50_absolute_steps_and_says_how_it_is(rig):
    ready(rig, execute_steps=5)
    assert rig.call(Trigger, 'policy_node/start').success
    again = rig.call(Trigger, 'policy_node/start')
    assert (again.success, again.message) == (False, 'A run is on already; stop it first.')
    rig.until('three chunks', lambda: len(rig.chunks) >= 3)
    chunks = [to_chunk(message) for _, message in rig.chunks]
    assert [chunk.chunk_id for chunk in chunks[:3]] == [1, 2, 3]
    assert all(chunk.horizon == 50 and chunk.step_ns == 50_000_000 for chunk in chunks)
    assert chunks[0].names == rig.contract.action_names
    assert all(chunk.start_ns >= chunk.observation_ns > 0 for chunk in chunks)
    assert rig.chunks[0][1].header.frame_id == 'base_link'

    status = rig.status
    assert (status.state, status.policy_id, status.backend) == (3, 'commissioning-sine', 'commissioning')
    assert 0 < status.steps_queued <= 50
    assert [stream.key for stream in status.streams] == ['scene', 'wrist', 'joint_states']
    assert all(stream.state == StreamHealth.STATE_OK for stream in status.streams)
    assert status.streams[0].topic == '/scene/image_raw/compressed'
    stamps = [stamp for stamp, _ in rig.statuses[-20:]]
    assert (stamps[-1] - stamps[0]) / 19 < 200e6, 'many times a second'

    assert rig.call(Trigger, 'policy_node/stop').success
    rig.until('ready', lambda: rig.status.state == PolicyStatus.STATE_READY)
    assert not rig.call(Trigger, 'policy_node/stop').success
    lines = rig.until('diagnostics', lambda: [line for _, m in rig.diagnostics for line in m.status])
    assert {line.name for line in lines} >= {'policy_node: policy', 'policy_node: scene', 'policy_node: joint_states'}


def test_a_dry_run_publishes_only_where_nothing_that_moves_listens(rig):
    ready(rig, dry_run=True)
    assert 'dry run' in rig.call(Trigger, 'policy_node/start').message
    rig.until('a dry chunk', lambda: rig.dry_chunks)
    rig.until('the state', lambda: rig.status.state == PolicyStatus.STATE_DRY_RUN)
    assert not rig.chunks
    request = SetParameters.Request(parameters=[Parameter('dry_run', value=False).to_parameter_msg()])
    assert rig.call(SetParameters, 'policy_node/set_parameters', request).results[0].successful
    rig.until('a chunk', lambda: rig.chunks)


def test_a_run_that_is_made_dry_says_so_before_the_next_chunk(rig):
    ready(rig, latency=1.5, mode='latest')
    rig.call(Trigger, 'policy_node/start')
    rig.until('running', lambda: rig.status.state == PolicyStatus.STATE_RUNNING and rig.chunks)
    begin, known = time.monotonic(), len(rig.chunks)
    request = SetParameters.Request(parameters=[Parameter('dry_run', value=True).to_parameter_msg()])
    assert rig.call(SetParameters, 'policy_node/set_parameters', request).results[0].successful
    rig.until('the state', lambda: rig.status.state == PolicyStatus.STATE_DRY_RUN)
    assert time.monotonic() - begin < 1.0, 'the executor must not go on with the last chunk'
    rig.until('a dry chunk', lambda: rig.dry_chunks)
    assert len(rig.chunks) == known


def test_a_fault_outlives_deactivation_and_loading(rig):
    rig.start_policy(latency=60.0, inference_timeout=0.3)
    rig.until('fault', lambda: rig.status.state == PolicyStatus.STATE_FAULT)
    answer = rig.call(LoadPolicy, 'policy_node/load_policy', LoadPolicy.Request())
    assert (answer.success, answer.message) == (False, 'The inference has not returned; restart the node.')

    assert rig.change_state('policy_node', Transition.TRANSITION_DEACTIVATE)
    assert rig.change_state('policy_node', Transition.TRANSITION_ACTIVATE), 'active, and waiting for the reset'
    assert rig.status.state == PolicyStatus.STATE_FAULT
    assert rig.change_state('policy_node', Transition.TRANSITION_DEACTIVATE)
    assert not rig.change_state('policy_node', Transition.TRANSITION_CLEANUP), 'the engine is in use'
    assert rig.status.state == PolicyStatus.STATE_FAULT


def test_an_action_runs_until_it_is_cancelled_and_reports(rig):
    ready(rig, execute_steps=5)
    handle = run(rig, instruction=Instruction(text='wave', id='i1'))
    assert handle.accepted
    assert not run(rig).accepted, 'one run at a time'
    rig.until('chunks', lambda: len(rig.chunks) >= 2)
    assert rig.chunks[-1][1].instruction_id == 'i1'
    rig.until('cancelled', handle.cancel_goal_async().done)
    answer = result_of(rig, handle)
    assert answer.status == 5, 'CANCELED'
    assert answer.result.termination == RunPolicy.Result.TERMINATION_CANCELED
    assert answer.result.chunks_published >= 2


def test_an_action_ends_when_its_time_is_over(rig):
    ready(rig)
    goal = RunPolicy.Goal()
    goal.max_duration.nanosec = 600_000_000
    handle = run(rig, instruction=Instruction(text='wave'), max_duration=goal.max_duration, dry_run=True)
    answer = result_of(rig, handle).result
    assert (answer.success, answer.termination) == (True, RunPolicy.Result.TERMINATION_TIMEOUT)
    assert rig.feedback
    assert rig.feedback[-1].status.state == PolicyStatus.STATE_DRY_RUN
    assert not rig.chunks
    assert not run(rig, instruction=Instruction(text='x' * 501)).accepted


def test_an_instruction_comes_by_topic_too(rig):
    publisher = rig.node.create_publisher(Instruction, 'instruction', LATCHED)
    publisher.publish(Instruction(id='latched', text='fold the towel'))
    rig.start_policy()
    rig.until('a chunk for it', lambda: rig.chunks and rig.chunks[-1][1].instruction_id == 'latched')


def test_another_policy_is_loaded_only_between_runs_and_a_bad_one_changes_nothing(rig):
    ready(rig)
    assert rig.call(LoadPolicy, 'policy_node/load_policy', LoadPolicy.Request()).success
    assert rig.status.state == PolicyStatus.STATE_READY
    rig.call(Trigger, 'policy_node/start')
    answer = rig.call(LoadPolicy, 'policy_node/load_policy', LoadPolicy.Request())
    assert (answer.success, answer.message) == (False, 'A run is on; stop it before loading another policy.')


def test_the_lifecycle_is_driven_by_a_manager_when_autostart_is_off(rig):
    rig.start_policy(autostart=False)
    rig.start_executor(autostart=False)
    assert rig.call(GetState, 'policy_node/get_state').current_state.label == 'unconfigured'
    answer = rig.call(Trigger, 'policy_node/start')
    assert 'not active' in answer.message
    for name in ('policy_node', 'chunk_executor'):
        assert rig.change_state(name, Transition.TRANSITION_CONFIGURE)
        assert rig.change_state(name, Transition.TRANSITION_ACTIVATE)
    rig.running()
    asked_ns = rig.statuses[-1][0]
    assert rig.change_state('chunk_executor', Transition.TRANSITION_DEACTIVATE)
    assert rig.hold_points(asked_ns)
    assert rig.change_state('chunk_executor', Transition.TRANSITION_CLEANUP)
    assert rig.change_state('policy_node', Transition.TRANSITION_DEACTIVATE)
    rig.until('the run is over', lambda: rig.status.state == PolicyStatus.STATE_READY)
    assert rig.change_state('policy_node', Transition.TRANSITION_CLEANUP)
    assert rig.change_state('policy_node', Transition.TRANSITION_CONFIGURE)
    assert rig.change_state('policy_node', Transition.TRANSITION_ACTIVATE)
    count = len(rig.chunks)
    rig.until('chunks again', lambda: len(rig.chunks) > count)


def test_parameters_are_described_ranged_and_frozen_while_configured(rig):
    ready(rig)
    request = DescribeParameters.Request(names=['mode', 'execute_steps', 'dry_run'])
    mode, steps, dry = rig.call(DescribeParameters, 'policy_node/describe_parameters', request).descriptors
    choices = 'one of auto, latest, queue, temporal_ensemble, rtc, guided'
    assert mode.additional_constraints == f'{choices}; read when the node is configured'
    assert (steps.integer_range[0].from_value, steps.integer_range[0].to_value) == (0, 999)
    assert dry.description

    def set_to(name, value):
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        return rig.call(SetParameters, 'policy_node/set_parameters', request).results[0]

    assert 'read when the node is configured' in set_to('mode', 'latest').reason
    assert 'write one of' in set_to('mode', 'fastest').reason


@pytest.mark.parametrize(
    ('parameters', 'words'),
    [
        ({'mode': 'fastest'}, "parameters: mode is 'fastest'; write one of auto, latest"),
        ({'exectue_steps': 5}, 'Unknown parameter exectue_steps'),
        ({'execute_steps': 'many'}, 'write a whole number'),
        ({'latency': -1.0}, 'latency is -1.0; write a number from 0 to 60'),
    ],
)
def test_a_parameter_that_cannot_be_is_one_sentence_and_status_2(rig, parameters, words):
    process = rig.start_policy(**parameters)
    assert process.popen.wait(15.0) == 2
    assert words in process.text()
    assert 'Traceback' not in process.text()


def test_a_robot_or_policy_that_cannot_be_leaves_the_node_up_and_says_why(rig):
    process = rig.start_policy(backend='onnx')
    rig.until('a sentence', lambda: 'Parameter bundle is empty' in rig.status.message)
    assert rig.status.state == PolicyStatus.STATE_UNCONFIGURED
    rig.until(
        'a diagnostic',
        lambda: [line for _, m in rig.diagnostics for line in m.status if 'Parameter bundle is empty' in line.message],
    )
    assert process.popen.poll() is None
    assert process.text().count('Traceback') == 0


def test_a_publisher_that_cannot_be_heard_is_named_by_topic(rig):
    rig.robot.silent.add('joint_states')
    # The executor wants reliable status; one that offers less is there and is not heard.
    rig.node.create_publisher(
        PolicyStatus, 'policy_node/status', QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    )
    process = rig.start_executor()
    rig.until('a sentence', lambda: '/policy_node/status: a publisher offers an incompatible QoS' in process.text())


def test_broken_messages_are_counted_and_the_node_goes_on(rig):
    ready(rig)
    rig.call(Trigger, 'policy_node/start')
    rig.until('a chunk', lambda: rig.chunks)

    def shorten(message):
        return JointState(header=message.header, name=message.name, position=message.position[:1])

    rig.robot.spoil = shorten
    rig.until('counted', lambda: rig.status.streams[2].rejected > 3)
    assert rig.status.streams[2].state == StreamHealth.STATE_INVALID
    rig.robot.spoil = lambda message: message
    count = len(rig.chunks)
    rig.until('chunks again', lambda: len(rig.chunks) > count)


def test_set_instruction_before_a_run_is_the_one_it_begins_with(rig):
    ready(rig)
    request = SetInstruction.Request(instruction=Instruction(text='wave'))
    answer = rig.call(SetInstruction, 'policy_node/set_instruction', request)
    assert len(answer.instruction_id) == 12
    rig.call(Trigger, 'policy_node/start')
    rig.until('a chunk', lambda: rig.chunks)
    assert rig.chunks[0][1].instruction_id == answer.instruction_id


def test_a_namespace_moves_every_topic(rig, rigs):
    folder = rig.folder
    folder.joinpath('other.yaml').write_text(yaml.safe_dump(rigs.small_robot()))
    arguments = ['-r', '__ns:=/robot2']
    process = rigs.Process(
        'ki_policy_node.executor.executor_node', folder / 'ns.log', {'robot': folder / 'other.yaml'}, arguments
    )
    rig.processes.append(process)

    def topics():
        return {name for name, _ in rig.node.get_topic_names_and_types()}

    wanted = {'/robot2/arm_controller/joint_trajectory', '/robot2/joint_states', '/robot2/policy_node/action_chunk'}
    rig.until('its topics', lambda: wanted <= topics())
