"""Message definitions by type name, without ROS: what a bag needs to explain its own bytes."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

from rosbags.interfaces import Nodetype
from rosbags.typesys import (
    Stores,
    get_types_from_idl,
    get_types_from_msg,
    get_typestore,
)
from rosbags.typesys.store import Typestore

from nora_core.bags.damage import decoding

NS_PER_S = 1_000_000_000
HEADER = (Nodetype.NAME, "std_msgs/msg/Header")


def message_folders() -> tuple[Path, ...]:
    """Folders that hold `PACKAGE/msg/NAME.msg`: the sourced workspaces, then our source tree."""
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    source = Path(__file__).resolve().parents[3]
    return (*(Path(prefix, "share") for prefix in prefixes if prefix), source)


class Definitions:
    """The types of ROS 2 Jazzy, and those whose `.msg` files lie in `folders`.

    Args:
        folders: as from `message_folders`; the first that has a type decides. They are read when
            a type is asked for.
        base: types known beforehand.
        others: know the types that are not found here.
    """

    def __init__(
        self,
        folders: tuple[Path, ...],
        base: Stores = Stores.ROS2_JAZZY,
        others: Definitions | None = None,
    ) -> None:
        self._folders, self._others = folders, others
        self._store = get_typestore(base)

    @classmethod
    def of_bag(cls, others: Definitions | None = None) -> Definitions:
        """Definitions that a bag adds by `learn`; for types that it lacks, those of `others`."""
        return cls((), Stores.EMPTY, others)

    def learn(self, type_name: str, text: str, encoding: str) -> None:
        """Take over a definition as a bag holds it, with all that it is made of.

        Raises:
            ValueError: not a definition in the encoding `ros2msg` or `ros2idl`.
        """
        if encoding not in ("ros2msg", "ros2idl"):
            raise ValueError(f"type {type_name}: expected ros2msg or ros2idl, got {encoding!r}")
        with decoding(f"type {type_name}: "):
            if encoding == "ros2msg":
                types = get_types_from_msg(text, type_name)
            else:
                types = get_types_from_idl(text)
        known = self._store.fielddefs
        new = {name: fields for name, fields in types.items() if name not in known}
        with decoding(f"type {type_name}: "):
            self._store.register(new)

    def learn_if_usable(self, type_name: str, text: str, encoding: str) -> None:
        """Like `learn`, but ignore invalid definitions; call `knows` before the type is used.

        Bags hold an empty one of encoding "" or "unknown" where the recorder found none.
        """
        with contextlib.suppress(ValueError):
            self.learn(type_name, text, encoding)

    def knows(self, type_name: str) -> bool:
        """Whether there is a definition of the type, and of all that it is made of."""
        try:
            self.type_hash(type_name)
        except ValueError:
            return False
        return True

    def store(self, type_name: str) -> Typestore:
        """A type store that knows `type_name` and all that it is made of.

        Raises:
            ValueError: there is no definition of it, or it is not a message definition.
        """
        if type_name not in self._store.fielddefs:
            if self._others is not None:
                return self._others.store(type_name)
            self._register(type_name)
        return self._store

    def type_hash(self, type_name: str) -> str:
        """The hash by which ROS 2 tells versions of a type apart (REP 2016): `RIHS01_...`."""
        store = self.store(type_name)
        with decoding(f"type {type_name}: "):  # a type that it is made of may be missing
            return store.hash_rihs01(type_name)

    def has_header(self, type_name: str) -> bool:
        """Whether messages of this type begin with a `std_msgs/msg/Header`."""
        _, fields = self.store(type_name).fielddefs[type_name]
        return bool(fields) and fields[0][1] == HEADER

    def _register(self, type_name: str) -> None:
        self.learn(type_name, self._file(type_name).read_text(encoding="utf-8"), "ros2msg")
        for _, field in self._store.fielddefs[type_name][1]:
            self._resolve(field)

    def _resolve(self, field: tuple[Nodetype, object]) -> None:
        kind, value = field
        match kind, value:
            case (Nodetype.ARRAY | Nodetype.SEQUENCE, ((Nodetype() as inner, name), _)):
                self._resolve((inner, name))
            case (Nodetype.NAME, str() as name):
                self.store(name)

    def _file(self, type_name: str) -> Path:
        match type_name.split("/"):
            case [package, "msg", name]:
                paths = [folder / package / "msg" / f"{name}.msg" for folder in self._folders]
            case _:
                raise ValueError(f"type: expected PACKAGE/msg/NAME, got {type_name!r}")
        for path in paths:
            if path.is_file():
                return path
        raise ValueError(f"type {type_name}: expected its .msg file in one of {self._folders}")


def header_stamp_ns(data: bytes) -> int:
    """Stamp of a serialised (CDR) message that begins with a header; nothing else is decoded.

    Raises:
        ValueError: fewer bytes than a stamp has.
    """
    if len(data) < 12:
        raise ValueError(f"message: expected a header of at least 12 bytes, got {len(data)}")
    order = "<" if data[1] & 1 else ">"
    sec, nanosec = struct.unpack_from(f"{order}iI", data, 4)
    return int(sec) * NS_PER_S + int(nanosec)
