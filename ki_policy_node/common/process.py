"""One node as one process: signals, a spin that survives bad messages, and a stop that publishes the last hold."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rclpy
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.exceptions import ParameterException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from ki_common.errors import KiError
from ki_common.nodes import NODES
from ki_policy_node.common.ros import security_arguments, use_own_dds_profile
from ki_policy_node.common.shared_memory import free_abandoned, ghosts_avoided
from ki_policy_node.common.stop_request import StopRequest
from ki_policy_node.errors import NodeError

SPIN_S = 0.05
NO_SECURITY = (
    'Security is asked for, and the DDS here cannot enforce it: Fast DDS was built without its security libraries, as '
    'in the wheels of PyPI. Use a ROS 2 from apt, or unset KI_SECURITY and ROS_SECURITY_ENABLE.'
)
# For watchdogs: a simulated clock that is slow or stands still must not silence them.
STEADY = Clock(clock_type=ClockType.STEADY_TIME)
SAME_FAILURE_LIMIT = 200  # exceptions in a row before the process gives up


def program_name() -> str:
    """The node that this process is, by the module that was started; the name of the program where it is none."""
    started = getattr(sys.modules['__main__'].__spec__, 'name', '')
    return next((name for name, module in NODES.items() if module == started), Path(sys.argv[0]).stem)


def make_executor(context: Context | None = None) -> Any:
    """The events executor where this ROS 2 has it (Jazzy on): half the CPU of the one that rebuilds its wait set.

    Args:
        context: The one of the nodes; rclpy's own unless given.
    """
    try:
        from rclpy.experimental import EventsExecutor
    except ImportError:
        from rclpy.executors import SingleThreadedExecutor

        return SingleThreadedExecutor(context=context)
    return EventsExecutor(context=context)


def run(make: Callable[[], Any], arguments: list[str] | None = None) -> int:
    """Runs a managed lifecycle node until a signal comes.

    Args:
        make: Makes the node; a KiError from it is told in one sentence.
        arguments: The command line; None takes the one of the process.

    Returns:
        The exit status: 0 after a signal, 1 when the spin cannot go on, 2 when the node cannot be made.
    """
    # Python threads hand the interpreter over every 5 ms by default: longer than a control period.
    sys.setswitchinterval(0.0005)
    stop = StopRequest()
    status, node = 0, None
    try:
        profile, node = start(make, arguments)
        node.get_logger().info(f'DDS profile: {profile}')
        executor = make_executor()
        executor.add_node(node)
        for companion in getattr(node, 'companions', tuple)():
            executor.add_node(companion)
        if node.autostart() and node.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            node.trigger_activate()
        status = spin(node, executor, stop.is_set)
    except KiError as error:
        print(f'{program_name()}: {error}', file=sys.stderr, flush=True)
        status = 2
    finally:
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    return status


def run_plain(make: Callable[[], Any], arguments: list[str] | None = None) -> int:
    """Runs a node without a lifecycle until a signal comes.

    Args:
        make: Makes the node; a KiError from it is told in one sentence.
        arguments: The command line; None takes the one of the process.

    Returns:
        The exit status: 0 after a signal, 1 when the spin cannot go on, 2 when the node cannot be made.
    """
    stop, node = StopRequest(), None
    try:
        _, node = start(make, arguments)
        executor = make_executor()
        executor.add_node(node)
        return spin(node, executor, stop.is_set)
    except KiError as error:
        print(f'{program_name()}: {error}', file=sys.stderr, flush=True)
        return 2
    finally:
        if node is not None:
            getattr(node, 'close', lambda: None)()
            node.destroy_node()
        rclpy.try_shutdown()


def start(make: Callable[[], Any], arguments: list[str] | None = None) -> tuple[str, Any]:
    """Starts ROS for one node and makes it; the DDS profile in force and the node.

    Signals are left to the caller: rclpy's own handler would close the context before the last word is out.

    Raises:
        KiError: a ROS argument, a parameter or a file of them that cannot be used, or what `make` raises.
    """
    profile = use_own_dds_profile()
    freed = free_abandoned()
    try:
        given = sys.argv if arguments is None else arguments
        enclave = security_arguments(program_name(), given, os.environ)
        with ghosts_avoided():
            rclpy.init(args=[*given, *enclave], signal_handler_options=SignalHandlerOptions.NO)
            node = make()
        answer_always(node)
        tell_lost_answers(node.get_logger())
        if freed:
            node.get_logger().info(f'freed {freed / 1e6:.0f} MB of shared memory that killed processes had left')
        return profile, node
    except (RuntimeError, ParameterException) as error:  # what rcl finds wrong with the command line is the former
        if 'security libraries' in str(error):
            raise NodeError(NO_SECURITY) from error
        raise NodeError(f'The node cannot be started: {error}') from error
    except ValueError as error:
        if 'PARAMETER_NOT_SET' not in str(error):
            raise
        raise NodeError(
            'A parameter is given without a value, as `name:` or `name: []` in a file of parameters; write one, or '
            'leave the parameter out.'
        ) from error


def tell_lost_answers(logger: Any) -> None:
    """Says in the log what rclpy warns of with a line of its code: an answer had no way back to its caller.

    A server may hear a client before it has discovered where answers go; our own calls ask again (`service_calls`).
    """
    show = warnings.showwarning

    def tell(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if 'failed to send response' in str(message):
            logger.warning('The answer to a service call was lost, its caller is not discovered yet: ask again.')
        else:
            show(message, category, *where, **more)

    warnings.showwarning = tell


def spin(node: Node, executor: Any, stopped: Callable[[], bool]) -> int:
    """Serves callbacks until `stopped()`; an exception in one callback is logged and does not end the node."""
    failures, last = 0, ''
    while not stopped() and rclpy.ok():
        try:
            executor.spin_once(timeout_sec=SPIN_S)
            failures = 0
        except KiError as error:
            node.get_logger().error(str(error))
        except Exception as error:  # a truncated message, a fault in a callback: the others must go on
            failures += 1
            text = f'{type(error).__name__}: {error}'
            if text != last or failures == 1:
                import traceback

                node.get_logger().error(f'A callback failed, the node goes on. {traceback.format_exc(limit=6)}')
            last = text
            if failures >= SAME_FAILURE_LIMIT:
                node.get_logger().fatal(f'{failures} callbacks failed in a row ({text}); giving up.')
                return 1
    return 0


def answer_always(node: Node) -> None:
    """Lets every service of a node answer whatever happens: an exception becomes `success: false`, and a message.

    Without it the caller would wait for ever. rclpy's own service `change_state` is one of them: a transition that is
    not possible now is an exception there.
    """
    service: Any
    for service in node.services:
        if 'success' in service.srv_type.Response.get_fields_and_field_types():
            service.callback = _answering(node, service.callback)


def _answering(node: Node, serve: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def answer(request: Any, response: Any) -> Any:
        try:
            return serve(request, response)
        except KiError as error:
            text = str(error)
        except Exception as error:  # the file system, a library: the caller is to hear of it as well
            text = f'{type(error).__name__}: {error}'
        node.get_logger().error(f'A request is refused. {text}')
        response.success = False
        if hasattr(response, 'message'):
            response.message = text
        return response

    return answer


def flush(publishers: list[Any], seconds: float = 0.2) -> None:
    """Waits until reliable receivers have acknowledged what was published, at most `seconds` in all."""
    end = time.monotonic() + seconds
    for publisher in publishers:
        publisher.wait_for_all_acked(Duration(seconds=max(0.0, end - time.monotonic())))


def on_clock_jump(node: LifecycleNode, act: Callable[[float], None]) -> Any:
    """Calls `act` with the seconds by which ROS time jumped: back at all, or ahead by more than a second.

    Returns:
        A handle. Call its `unregister()` before letting go of it: the clock holds its bare address, and would call
        freed memory, or refuse a later handle that happens to lie there.
    """
    threshold = JumpThreshold(
        min_forward=Duration(seconds=1.0), min_backward=Duration(nanoseconds=-1), on_clock_change=True
    )
    return node.get_clock().create_jump_callback(
        threshold, post_callback=lambda jump: act(jump.delta.nanoseconds / 1e9)
    )


def told(node: LifecycleNode, transition: Callable[[LifecycleState], None], state: LifecycleState, say: Any) -> Any:
    """Runs the body of a transition; a KiError becomes FAILURE and one sentence, anything else ERROR and a traceback.

    rclpy turns an exception in a transition into ERROR without a word.

    Args:
        node: Whose transition it is.
        transition: The body.
        state: What rclpy passed.
        say: Called with the sentence of a failure.
    """
    try:
        transition(state)
    except KiError as error:
        node.get_logger().error(str(error))
        say(str(error))
        return TransitionCallbackReturn.FAILURE
    except Exception as error:
        import traceback

        node.get_logger().error(traceback.format_exc())
        say(f'{type(error).__name__}: {error}')
        return TransitionCallbackReturn.ERROR
    return TransitionCallbackReturn.SUCCESS
