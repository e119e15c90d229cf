"""Files of a dataset on the Hugging Face hub, at one commit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from halos.errors import HalosError
from halos.hub import Unavailable, remedy


@dataclass(frozen=True)
class Hub:
    """A dataset on the Hugging Face hub.

    Attributes:
        name: "owner/name".
        revision: a commit; or a branch or tag, which may move.
        files: split -> pattern of its files; a single pattern where the hub has one split, which is then divided.
    """

    name: str
    revision: str
    files: str | dict[str, str]

    def snapshot(self, source: str, split: str) -> tuple[str, list[Path]]:
        """(commit, files of the split), downloaded once for each commit.

        Offline, the files must be in the cache, of this very commit. (`datasets.load_dataset` would take the commit
        that was cached last.)

        Raises:
            HalosError: the files are neither on the hub nor in the cache.
        """
        pattern = self.files if isinstance(self.files, str) else self.files[split]
        commit, files = self.download(source, [pattern])
        if not files:
            raise HalosError(
                f"source {source}: {self.name} has no file {pattern} at commit {commit}; choose another revision"
            )
        return commit, files

    def download(self, source: str, patterns: list[str]) -> tuple[str, list[Path]]:
        """(commit, the files of these patterns, of which there may be none).

        Raises:
            HalosError: the files are neither on the hub nor in the cache.
        """
        from huggingface_hub import snapshot_download  # slow to import, and not needed for local files

        try:
            folder = Path(
                snapshot_download(self.name, repo_type="dataset", revision=self.revision, allow_patterns=patterns)
            )
        except Exception as error:  # the hub's, either HTTP library's or the disk's: all mean the same here
            reason = " ".join(str(error).split())
            raise Unavailable(
                f"datasets/{self.name}",
                f"source {source}: {self.name} cannot be loaded from the hub ({reason}); {remedy()}, or"
                " download its files elsewhere and name them by `path:`",
            ) from None
        return folder.name, sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
