"""The bag of one episode in a `Cell`, with the topics that the recorder node would write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from nora_core.bags.audit import Audit, expectations
from nora_core.bags.definitions import Definitions, header_stamp_ns
from nora_core.bags.label import Label, Provenance
from nora_core.bags.messages import Encoded, Encoder
from nora_core.bags.recorder import AUDIT, BY_OPERATOR
from nora_core.bags.writer import BagWriter, Topic
from nora_core.control.safety_gate import SafeTarget
from nora_core.embodiment import GRIPPER_JOINT, Embodiment
from nora_core.sim.cell import Cell
from nora_core.topics import full_name
from nora_core.types import Frame, Outcome

COMMAND = "bridge/command"


class CellBag:
    """Records the current trial of a cell until `close`; chunks are compressed with zstd.

    Args:
        folder: of the bag, new.
        cell: that was just reset.
        embodiment: of the cell.
        definitions: of the messages of ROS 2 and of this project.
        label: with everything that is known before the episode.

    Raises:
        OSError: from every method, when the file system refuses.
    """

    def __init__(
        self,
        folder: Path,
        cell: Cell,
        *,
        embodiment: Embodiment,
        definitions: Definitions,
        label: Label,
    ) -> None:
        assert embodiment.driver is not None  # the simulator requires it
        self._folder, self._cell, self._embodiment = folder, cell, embodiment
        self._definitions = definitions
        self._state_topic = embodiment.driver.state_topic
        self._camera_topics = {camera.name: camera.topic for camera in embodiment.cameras}
        self._encoder = Encoder(definitions, embodiment.action.frame)
        self._label = replace(label, start_ns=cell.now_ns)
        self._audit = Audit(expectations(embodiment, full_name), cell.now_ns)
        self._writer = BagWriter(folder, definitions, compress=True)
        self._write("instruction", self._encoder.text(label.instruction))

    def tick(self, target: SafeTarget | None, command_topic: str = COMMAND) -> None:
        """Record this control period; a step that begins in it goes to `command_topic`."""
        encoder, now_ns = self._encoder, self._cell.now_ns
        state = self._cell.arm_state()
        finger = self._embodiment.gripper.to_driver(state.gripper)
        names = (*self._cell.simulator.joint_names, GRIPPER_JOINT)
        values = (*state.joints_rad.tolist(), finger)
        self._write(self._state_topic, encoder.joints(names, values, state.stamp_ns))
        pose = self._cell.kinematics.forward(state.joints_rad)
        self._write("bridge/ee_pose", encoder.pose(pose, state.stamp_ns))
        if target is not None:
            self._write("bridge/target_pose", encoder.pose(target.pose, now_ns))
        if (executed := self._cell.controller.executed) is not None:
            delta = executed.delta
            moved = (delta.translation_m, delta.rotation_rad, delta.gripper)
            stamps = (executed.start_ns, executed.observation_stamp_ns)
            self._write(command_topic, encoder.delta(*moved, *stamps))

    def look(self, frames: Mapping[str, Frame]) -> None:
        """Record the camera images and the status of bridge and task."""
        for name, frame in frames.items():
            self._write(self._camera_topics[name], self._encoder.image(frame, name))
        self._write("bridge/status", self._status())
        self._write("task_outcome", self._outcome())

    def close(self, notes: str) -> Label:
        """Finish bag, label and audit."""
        state, now_ns = self._cell.task_state, self._cell.now_ns
        self._write("task_outcome", self._outcome())
        report = self._audit.report(now_ns, {}, ())
        label = replace(
            self._label,
            outcome=state.outcome.text,
            distractor_grasps=state.distractor,
            notes=notes,
            end_ns=now_ns,
            ended=BY_OPERATOR,
            is_green=report.is_green,
        )
        self._writer.close(label.custom_data())
        label.save(self._folder)
        (self._folder / AUDIT).write_text(report.markdown(self._folder.name), encoding="utf-8")
        return label

    def _status(self) -> Encoded:
        status, now_ns = self._cell.controller.status, self._cell.now_ns
        fields = status.message_fields(now_ns)
        return self._encoder.stamped("nora_msgs/msg/CommandStatus", now_ns, fields)

    def _outcome(self) -> Encoded:
        state = self._cell.task_state
        fields = {
            "instruction": state.instruction,
            "outcome": int(state.outcome),
            "distractor_grasps": state.distractor,
        }
        return self._encoder.stamped("nora_msgs/msg/TaskOutcome", self._cell.now_ns, fields)

    def _write(self, name: str, message: Encoded) -> None:
        topic, now_ns = full_name(name), self._cell.now_ns
        self._writer.write(Topic(topic, message.type_name), now_ns, message.data)
        has_header = self._definitions.has_header(message.type_name)
        stamp_ns = header_stamp_ns(message.data) if has_header else None
        self._audit.add(topic, now_ns, stamp_ns)


def open_label(episode: int, instruction: str, provenance: Provenance) -> Label:
    """The label of an episode that has not begun."""
    return Label(
        episode=episode,
        instruction=instruction,
        outcome=Outcome.UNKNOWN.text,
        distractor_grasps=0,
        notes="",
        start_ns=0,
        end_ns=0,
        ended="",
        is_green=None,
        provenance=provenance,
    )
