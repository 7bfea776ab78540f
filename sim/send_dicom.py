"""Stores DICOM images in a node (C-STORE), as Siemens XA consoles and PACS nodes do; by pynetdicom."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, RLELossless
from pynetdicom import AE
from pynetdicom.association import Association

from realtime import wire
from sim.delivery import IsInterrupted, Tell, Voxels
from sim.dialects import Images
from sim.errors import SimError
from sim.sender import RefusedError

TITLE = "SIM"
"""The application entity title of the sender."""
ANY_TITLE = "ANY-SCP"
_ANSWER_S = 60.0
_TRY_AGAIN_S = 0.5
_WARNING = 0xB000  # DICOM: a status of 0xBxxx says that the object was stored

Context = tuple[str, str]
"""SOP class and transfer syntax."""
MADE_HERE: tuple[Context, ...] = (
    (MRImageStorage, ExplicitVRLittleEndian),
    (EnhancedMRImageStorage, ExplicitVRLittleEndian),
    (MRImageStorage, RLELossless),
    (EnhancedMRImageStorage, RLELossless),
)


class StoreNode:
    """An association with a node, in which images are stored one by one.

    :param place: host and port, such as ``//127.0.0.1:11112``
    :param title: the application entity title of the node
    :param contexts: what the images are
    :raises SimError: when the address is not valid
    """

    def __init__(self, place: str, title: str, contexts: Iterable[Context], tell: Tell) -> None:
        host, _, port = place.removeprefix("//").rpartition(":")
        if not host or not port.isdecimal() or not 1 <= len(title) <= 16:
            raise SimError(
                f"dicom:{place}: expected an address like dicom://127.0.0.1:11112?aet=NAME, with a title of "
                f"at most 16 characters, got {title!r}"
            )
        self._host, self._port, self._title = host.strip("[]"), int(port), title
        self._tell = tell
        self._entity = AE(TITLE)
        self._entity.dimse_timeout = _ANSWER_S
        for sop_class, syntax in sorted(set(contexts)):
            self._entity.add_requested_context(sop_class, syntax)
        self._association: Association | None = None

    def connect(self, is_interrupted: IsInterrupted) -> bool:
        """Associate with the node, and wait for it if nobody listens; False if interrupted.

        :raises SimError: when the node rejects the association, or takes none of the images
        """
        has_told = False
        while not is_interrupted():
            made = self._entity.associate(self._host, self._port, ae_title=self._title)
            if made.is_established:
                _leave_answers_to_the_sender(made)
                self._association = made
                return True
            if made.is_rejected:
                raise SimError(
                    f"{self._host}:{self._port}: the node rejects calls to {self._title!r}; `?aet=NAME` "
                    "names its application entity title"
                )
            if not has_told:
                self._tell(f"no DICOM node at {self._host}:{self._port}; trying again (Ctrl-C ends)")
                has_told = True
            time.sleep(_TRY_AGAIN_S)
        return False

    def store(self, image: Dataset) -> None:
        """Store an image. :raises SimError: when the node does not keep it"""
        assert self._association is not None
        try:
            status = self._association.send_c_store(image)
        except (ValueError, RuntimeError) as error:  # no context was accepted, or the association is over
            raise SimError(f"the node does not take image {image.get('InstanceNumber')}: {error}") from error
        if "Status" not in status:
            raise SimError(f"no answer to image {image.get('InstanceNumber')}; the node's log says why")
        if status.Status and status.Status & 0xF000 != _WARNING:
            comment = status.get("ErrorComment", "no reason given")
            raise RefusedError(f"the node refused (status 0x{status.Status:04X}): {comment}")

    def close(self) -> None:
        """End the association."""
        if self._association is not None and self._association.is_established:
            self._association.release()


def _leave_answers_to_the_sender(association: Association) -> None:
    """Keep the association's own thread from an answer that the sender waits for.

    pynetdicom pauses that thread meanwhile, but on a busy machine it sometimes goes on, takes the answer and
    drops it. That thread only looks for messages; the sender waits for them.
    """
    get = association.dimse.get_msg

    def get_if_waited_for(block: bool = False) -> Any:
        return get(block) if block else (None, None)

    association.dimse.get_msg = get_if_waited_for  # type: ignore[method-assign]


class NodeExport:
    """Stores the images of a run, volume by volume. :raises SimError: as `StoreNode`"""

    def __init__(self, place: str, title: str, images: Images, start: wire.RunStart, tell: Tell) -> None:
        self._images = images
        self._start = start
        self._node = StoreNode(place, title, MADE_HERE, tell)

    def begin(self, is_interrupted: IsInterrupted) -> bool:
        """Associate with the node."""
        return self._node.connect(is_interrupted)

    def send(self, index: int, voxels: Voxels) -> None:
        """Store the images of a volume."""
        for _, image in self._images(self._start, index, voxels):
            self._node.store(image)

    def end(self) -> None:
        """End the association."""
        self._node.close()
