"""Shows pictures with PsychoPy at the scanner's triggers, and tells the runtime over LSL what is on screen.

    realtime serve --source folder:/data/export --volumes 225 --markers lsl:PsychoPy --pictures stimuli &
    python docs/examples/psychopy_lsl.py stimuli

Needs psychopy and pylsl, and nothing of this project. The scanner's trigger comes as the key 5, one for each
volume. The folder holds the same PNG files on both machines. If PsychoPy runs on another machine than the
runtime, add --allow with that machine's address to the runtime's options.

The count of triggers goes along, so that the runtime notices if one was missed.
"""

import json
import sys
from pathlib import Path

import pylsl

TRIGGER, STOP = "5", "escape"
EVERY = 3
"""Volumes from picture to picture."""
FIRST = 6
"""Volumes before the first picture."""
PATIENCE_S = 30.0


class Markers:
    """An LSL stream of what is on screen."""

    def __init__(self, stream: str = "PsychoPy") -> None:
        """Offer the stream."""
        self._outlet = pylsl.StreamOutlet(pylsl.StreamInfo(stream, "Markers", 1, 0, "string", stream))

    def wait(self) -> None:
        """Wait for the runtime: what is sent before it follows the stream is lost."""
        if not self._outlet.wait_for_consumers(PATIENCE_S):
            sys.exit("nobody follows the markers: does the runtime run with --markers lsl:PsychoPy?")

    def shown(self, name: str, triggers: int) -> None:
        """Tell that a picture appeared after so many triggers: during the volume that the last one began."""
        marker = {"onset_volume": triggers - 1, "name": name, "triggers": triggers}
        self._outlet.push_sample([json.dumps(marker)])


def main(folder: Path) -> None:
    """Show every picture of a folder."""
    from psychopy import core, event, visual

    markers = Markers()
    window = visual.Window(fullscr=True, color="grey")
    pictures = {file.name: visual.ImageStim(window, str(file)) for file in sorted(folder.glob("*.png"))}
    markers.wait()
    triggers = 0
    for position, (name, picture) in enumerate(pictures.items()):
        while triggers <= FIRST + position * EVERY:
            for key in event.getKeys([TRIGGER, STOP]):
                if key == STOP:
                    core.quit()
                triggers += 1
            core.wait(0.001)
        picture.draw()
        window.callOnFlip(markers.shown, name, triggers)
        window.flip()
    core.wait(EVERY)
    window.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
