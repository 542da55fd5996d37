"""Eyes that kill the process they look in, as a decoder's fault or the system would."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from corit_cli.detection.eye import Eye


@dataclass(frozen=True)
class Deadly(Eye):
    """Is killed by every file that is called poison, and by the one called 011 the first time: ``mark`` says that it
    was."""

    mark: str = ""

    def look(self, source: Any) -> Any:
        name = Path(source).stem
        first = name == "011" and not os.path.exists(self.mark)
        if first:
            Path(self.mark).touch()
        if first or name.startswith("poison"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().look(source)
