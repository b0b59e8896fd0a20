"""The recorder node: episodes by service, bags on disk, a status twice a second."""

from __future__ import annotations

from pathlib import Path

from nora_msgs.msg import RecorderStatus
from nora_msgs.srv import EndEpisode, StartEpisode

from nora_bringup.nodes.raw_subscriptions import RawSubscriptions
from nora_core.bags.audit import expectations
from nora_core.bags.definitions import Definitions, message_folders
from nora_core.bags.provenance import provenance
from nora_core.bags.recorder import Ended, EndError, Recorder, StartError
from nora_core.bags.recording import Item
from nora_core.bags.writer import Topic
from nora_core.ros import convert
from nora_core.ros.managed_node import ManagedNode, load_embodiment, parameter, run
from nora_core.types import Rejection

STATUS_PERIOD_S = 0.5
INACTIVE = "the recorder is not active"
ENDS = "the recorder node ended"


class RecorderNode(ManagedNode):
    """Hands messages and requests to a `Recorder`, which decides."""

    def __init__(self) -> None:
        super().__init__("recorder")
        self.embodiment = load_embodiment(self)
        self.record_dir = parameter(self, "record_dir", "", "Folder for the bags (required).")
        self.checkpoint = parameter(self, "checkpoint", "", "Checkpoint that drives the arm.")
        self.min_free_gb = parameter(
            self,
            "min_free_gb",
            2.0,
            "With less on the disk no episode begins, and an open one ends.",
        )

    # lifecycle

    def configure(self) -> None:
        if not self.record_dir:
            raise ValueError("parameter record_dir: the folder for the bags is missing")
        directory = Path(self.record_dir, self.embodiment.name)
        directory.mkdir(parents=True, exist_ok=True)
        self.expected = expectations(self.embodiment, self.resolve_topic_name)
        definitions = Definitions(message_folders())
        self.recorder = Recorder(
            directory=directory,
            provenance=provenance(
                Path(self.get_parameter("embodiment_file").value),
                self.embodiment.name,
                self.checkpoint,
            ),
            definitions=definitions,
            expected=self.expected,
            min_free_bytes=int(self.min_free_gb * 1e9),
        )
        self.topics = RawSubscriptions(
            self,
            names=tuple(self.expected),
            definitions=definitions,
            on_message=self._on_message,
        )
        self.status = self.create_publisher(RecorderStatus, "recorder/status", 10)
        self.requests = (
            self.create_service(StartEpisode, "recorder/start_episode", self._start),
            self.create_service(EndEpisode, "recorder/end_episode", self._end),
        )

    def activate(self) -> None:
        self.topics.refresh()
        self.timer = self.create_timer(STATUS_PERIOD_S, self._tick)
        self.get_logger().info(f"ready: {len(self.expected)} topics to {self.record_dir}")

    def deactivate(self) -> None:
        self.destroy_timer(self.timer)
        if problem := self.recorder.close(ENDS, self._now_ns(), self.topics.unpublished):
            self.get_logger().warning(problem)

    def cleanup(self) -> None:
        self.topics.close()
        for service in self.requests:
            self.destroy_service(service)
        self.destroy_publisher(self.status)

    # inputs

    def _on_message(self, topic: Topic, data: bytes) -> None:
        self.recorder.put(Item(topic, self._now_ns(), data))

    def _start(
        self, request: StartEpisode.Request, response: StartEpisode.Response
    ) -> StartEpisode.Response:
        rejection: Rejection[StartError] | None = Rejection(StartError.NOT_ACTIVE, INACTIVE)
        if self.is_active:
            rejection = self.recorder.start(request.instruction, request.notes, self._now_ns())
        response.episode, response.path = self._episode()
        if rejection is not None:
            response.error_code, response.error_msg = int(rejection.reason), rejection.detail
        else:
            self.get_logger().info(f"recording {response.path}: {request.instruction}")
        return response

    def _end(
        self, request: EndEpisode.Request, response: EndEpisode.Response
    ) -> EndEpisode.Response:
        ended = Ended(rejection=Rejection(EndError.NOT_ACTIVE, INACTIVE))
        if self.is_active:
            ended = self._ended(request)
        if ended.rejection is not None:
            response.error_code = int(ended.rejection.reason)
            response.error_msg = ended.rejection.detail
        response.episode, response.path = self._episode()
        if ended.report is not None:
            response.is_green = ended.report.is_green
            response.audit = "\n".join(ended.report.reasons)
            verdict = "green" if ended.report.is_green else f"RED: {response.audit}"
            self.get_logger().info(f"recorded {response.path}: {verdict}")
        return response

    def _ended(self, request: EndEpisode.Request) -> Ended:
        if request.discard:
            return self.recorder.discard()
        return self.recorder.end(
            outcome=request.outcome,
            distractor_grasps=request.distractor_grasps,
            notes=request.notes,
            now_ns=self._now_ns(),
            unpublished=self.topics.unpublished,
        )

    # outputs

    def _tick(self) -> None:
        self.topics.refresh()
        now_ns = self._now_ns()
        if problem := self.recorder.watch(now_ns, self.topics.unpublished):
            self.get_logger().error(problem)
        recorder = self.recorder
        msg = RecorderStatus(header=convert.header(now_ns, ""))
        msg.is_recording = recorder.is_recording
        msg.episode, msg.path = self._episode()
        if recorder.label is not None:
            msg.instruction = recorder.label.instruction
            if recorder.is_recording:
                msg.duration = (now_ns - recorder.label.start_ns) * 1e-9
        msg.topics, msg.counts = list(self.expected), list(recorder.counts)
        msg.unpublished = list(self.topics.unpublished)
        msg.dropped, msg.free_bytes = recorder.num_dropped, recorder.free_bytes()
        problems = [f"{name}: {text}" for name, text in self.topics.problems.items()]
        msg.problem = "; ".join(filter(None, [recorder.problem, *problems]))
        self.status.publish(msg)

    def _episode(self) -> tuple[int, str]:
        if self.recorder.label is None:
            return 0, ""
        return self.recorder.label.episode, str(self.recorder.folder)

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)


def main() -> None:
    """Entry point of `ros2 run nora_bringup recorder`."""
    run(RecorderNode)


if __name__ == "__main__":
    main()
