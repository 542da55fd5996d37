"""What a file declares itself to be, in sum: of several claims the one that matters most, and on what ground."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

AI_GENERATED, AI_EDITED, CAMERA = "ai-generated", "ai-edited", "camera"
#: In the order in which they matter where a file claims several, and how each is said without and with a maker.
_SAID = {
    AI_GENERATED: ("made by a generative model", "made by {}"),
    AI_EDITED: ("edited with a generative model", "edited by {}"),
    CAMERA: ("taken by a camera", "taken by {}"),
}


class Claim(Protocol):
    """One thing that a file says: the sentence, what it claims the picture to be, by what, and whether a signature on
    a list of trusted ones vouches for it."""

    text: str
    says: str | None
    by: str | None
    verified: bool


@dataclass(frozen=True)
class Declared:
    """What a file declares itself to be.

    ``kind`` is ai-generated, ai-edited or camera; ``by`` the program, model or camera it names; ``ground`` the
    sentences on where in the file that stands. Without a ``verified`` signature it is a claim that anybody could
    have written."""

    kind: str
    by: str | None
    ground: str
    verified: bool

    @property
    def words(self) -> str:
        """Such as "made by ComfyUI (a claim)"."""
        plain, named = _SAID[self.kind]
        said = named.format(self.by) if self.by else plain
        return f"{said} ({'a verified signature' if self.verified else 'a claim'})"


def declared(claims: Iterable[Claim]) -> Declared | None:
    """The sum of what a file says; None where it claims none of the three. Being edited by a program that has nothing
    to do with models is no declaration."""
    claims = list(claims)
    for kind in _SAID:
        found = [claim for claim in claims if claim.says == kind]
        if found:
            verified = [claim for claim in found if claim.verified]
            by = next((claim.by for claim in verified or found if claim.by), None)
            return Declared(kind, by, " ".join(c.text for c in found), bool(verified))
    return None
