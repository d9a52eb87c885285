"""The console: a ROS node that serves the operator's page. It has no model, no torch, and decides nothing.

The page runs on http://127.0.0.1:8765/ unless the parameters say otherwise (`settings`).
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from ki_msgs.msg import ActionChunk, EpisodeMarker, ExecutorStatus, Instruction, PolicyStatus, SafetyEvent
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from std_msgs.msg import String

from ki_policy_node.common import process
from ki_policy_node.common.parameters import Parameters
from ki_policy_node.common.streams import INPUT_QOS, LATCHED, NEWEST, STATIC_QOS, hear_everybody, message_type
from ki_policy_node.console.pictures import NewestPictures
from ki_policy_node.console.robot_actions import RobotActions
from ki_policy_node.console.robot_view import RobotView
from ki_policy_node.console.settings import ConsoleSettings
from ki_policy_node.errors import NodeError
from ki_robot.contract.contract import load_contract
from ki_robot.contract.parts import StateStream
from ki_robot.errors import Rejected
from ki_robot.messages.states import StateReader, measured_columns, static_topic

NEWEST_PICTURE = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


class ConsoleNode(Node):
    """Wiring of the console."""

    def __init__(self) -> None:
        super().__init__('console', automatically_declare_parameters_from_overrides=True)
        settings = Parameters(self, ConsoleSettings).values
        contract = load_contract(settings.robot)
        self.view = RobotView(contract)
        self._pictures = NewestPictures(contract.cameras, settings.picture_width)
        self._actions = RobotActions(self, self.view)
        for camera in contract.cameras:
            self.create_subscription(message_type(camera), camera.topic, self._picture(camera.name), NEWEST_PICTURE)
        for stream in contract.state_streams:
            self._listen_to(stream, measured_columns(contract, stream))
        view = self.view
        now = time.monotonic_ns
        self.create_subscription(PolicyStatus, 'policy_node/status', lambda m: view.on_policy(m, now()), LATCHED)
        self.create_subscription(ExecutorStatus, 'chunk_executor/status', lambda m: view.on_executor(m, now()), LATCHED)
        self.create_subscription(String, 'policy_node/subtask', self._on_subtask, LATCHED)
        self.create_subscription(SafetyEvent, 'chunk_executor/safety_event', view.on_event, 100)
        self.create_subscription(EpisodeMarker, 'episode', view.on_episode, LATCHED)
        recorder = f'{self.get_namespace()}/recorder'.lstrip('/')
        self.create_subscription(DiagnosticArray, '/diagnostics', lambda m: view.on_diagnostics(m, recorder), 10)
        self.create_subscription(ActionChunk, 'policy_node/action_chunk', lambda m: view.on_chunk(m, False), NEWEST)
        self.create_subscription(ActionChunk, 'policy_node/dry_run_chunk', lambda m: view.on_chunk(m, True), NEWEST)
        hear_everybody(self, Instruction, 'instruction', lambda m: view.on_instruction(m.text))
        self.server = self._serve(settings)

    def _serve(self, settings: ConsoleSettings) -> Any:
        try:
            from ki_policy_node.console.web_server import ConsoleServer
        except ModuleNotFoundError as error:
            if (error.name or '').partition('.')[0] != 'aiohttp':
                raise
            raise NodeError(
                "The console needs aiohttp, which is not installed; write pip install 'ki_policy_node[console]'."
            ) from error
        server = ConsoleServer(settings, self.view, self._pictures, self._actions)
        hint = f'?token=(what {settings.token_file} holds)' if settings.token_file else ''
        self.get_logger().info(f'The console is at {server.address}{hint}')
        if not settings.is_loopback and not settings.certificate:
            self.get_logger().warning(
                'Who listens on this network reads the token and presses the buttons: name a certificate.'
            )
        return server

    def close(self) -> None:
        """Ends the server; the operator is gone."""
        self.server.close()
        self._actions.beat('')

    def _on_subtask(self, message: Any) -> None:
        self.view.on_subtask(message.data)

    def _picture(self, camera: str) -> Any:
        return lambda message: self._pictures.store(camera, message)

    def _listen_to(self, stream: StateStream, columns: tuple[str, ...]) -> None:
        """What cannot be used is not shown; the state of the stream says why."""
        reader, kind = StateReader(stream, columns), message_type(stream)

        def take(message: Any) -> None:
            with contextlib.suppress(Rejected):
                if (found := reader.read(message)) is not None:
                    self.view.on_measured(dict(zip(columns, found[1].tolist(), strict=True)))

        def take_static(message: Any) -> None:
            with contextlib.suppress(Rejected):
                reader.read_static(message)

        self.create_subscription(kind, stream.topic, take, INPUT_QOS)
        if static_topic(stream):
            self.create_subscription(kind, static_topic(stream), take_static, STATIC_QOS)


def main(arguments: list[str] | None = None) -> int:
    """The process `console`."""
    return process.run_plain(ConsoleNode, arguments)


if __name__ == '__main__':
    raise SystemExit(main())
