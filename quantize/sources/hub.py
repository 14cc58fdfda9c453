"""A repository on the Hugging Face Hub or a mirror: read in ranges, without storing files.

Contract: opening requests the commit of the revision, and sizes and sums of its files; only that commit is read, even
if the branch moves. A tensor is fetched into memory when it is read; nothing is written to disk. Token, endpoint and
offline mode are those of huggingface_hub (HF_TOKEN or `hf auth login`, HF_ENDPOINT, HF_HUB_OFFLINE). Since a
file is never read from end to end in order, its sha256 cannot be compared; every reply's length, range and version are,
and every safetensors header is checked.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mixq.errors import ModelFileError, StorageError, UsageError, printable
from mixq.formats.header import MAX_HEADER_BYTES, ShardHeader, TensorEntry, check_header
from mixq.formats.weights import StoredTensors
from mixq.quantize.sources.place import SMALL_FILE, Place
from mixq.quantize.sources.ranges import RangeReader, RemoteFile, transport_errors

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
"""The pattern of a repository's name: owner/name."""

FIRST_READ = 64 << 10
"""Bytes of a safetensors file to read first; most headers are shorter."""


def is_repository(text: str) -> bool:
    """Return whether a text looks like owner/name."""
    return REPOSITORY.fullmatch(text) is not None and ".." not in text and "--" not in text


class Hub(Place):
    """A commit of a repository, as a place.

    Raises:
        UsageError: it is not the name of a repository.
        StorageError: the hub cannot be reached, or refuses to read the repository.
        ModelFileError: the repository or revision does not exist.
    """

    def __init__(self, repository: str, revision: str | None = None, *, reader: RangeReader | None = None) -> None:
        import huggingface_hub.errors
        import huggingface_hub.utils

        hub: Any = huggingface_hub  # its type information is incomplete
        if not is_repository(repository):
            raise UsageError(f"{printable(repository)!r} is not the name of a repository (owner/name).")
        endpoint = os.environ.get("HF_ENDPOINT") or None
        info = _info(hub, repository, revision, endpoint)
        self.name = repository
        self.revision = str(info.sha)
        if not re.fullmatch(r"[0-9a-f]{40,64}", self.revision):
            raise ModelFileError(f"the hub names no commit for {repository}, but {printable(self.revision, 80)!r}.")
        self._remote: dict[str, RemoteFile] = {}
        self._sums: dict[str, str] = {}
        for entry in info.siblings or ():
            name, size = entry.rfilename, entry.size
            if not isinstance(name, str) or not isinstance(size, int) or size < 0:
                continue
            if not re.fullmatch(r"[\w.-]{1,255}", name, re.ASCII):
                continue
            sha256 = getattr(entry.lfs, "sha256", None)
            url = hub.hf_hub_url(repository, name, revision=self.revision, endpoint=endpoint)
            self._remote[name] = RemoteFile(name, url, size, sha256)
            self._sums[name] = str(sha256 or entry.blob_id)
        self.files = {name: file.size for name, file in sorted(self._remote.items())}
        self.reader = reader or RangeReader(hub.get_session(), hub.utils.build_hf_headers(library_name="mixq"))

    def read(self, name: str, limit: int = SMALL_FILE) -> bytes:
        file = self._remote.get(name)
        if file is None:
            raise ModelFileError(f"{printable(self.name)} has no {printable(name)}.")
        if file.size > limit:
            raise ModelFileError(f"{printable(name)} has {file.size:,} bytes, more than such a file can have.")
        content = bytearray(file.size)
        self.reader.read(file, 0, file.size, memoryview(content))
        return bytes(content)

    def safetensors(self, names: Sequence[str], weight_map: Mapping[str, str] | None) -> StoredTensors:
        missing = [name for name in names if name not in self._remote]
        if missing:
            raise ModelFileError(f"{printable(self.name)} has no {printable(missing[0])}, which is in its index.")
        return HubTensors(self.reader, [self._remote[name] for name in names], weight_map)

    def fingerprint(self, names: Sequence[str]) -> str:
        """Hash the names, sizes and sums of these files on the hub."""
        digest = hashlib.sha256()
        for name in names:
            digest.update(f"{name}\0{self.files[name]}\0{self._sums[name]}\0".encode())
        return digest.hexdigest()

    def cancel(self) -> None:
        self.reader.cancel()


class HubTensors:
    """The tensors of safetensors files on a hub; headers are read at once, tensors on demand.

    Raises:
        ModelFileError: a damaged header, a tensor in two files, or one that is not in the file of the index.
    """

    def __init__(
        self, reader: RangeReader, files: Sequence[RemoteFile], weight_map: Mapping[str, str] | None = None
    ) -> None:
        self._reader = reader
        self._entries: dict[str, TensorEntry] = {}
        self._files: dict[str, RemoteFile] = {}
        for file in files:
            for name, entry in self._header(file).entries.items():
                if name in self._entries:
                    raise ModelFileError(f"tensor {name!r} is in two shards, {self._files[name].name} and {file.name}.")
                self._entries[name], self._files[name] = entry, file
        for tensor, name in (weight_map or {}).items():
            if tensor not in self._files or self._files[tensor].name != name:
                raise ModelFileError(f"tensor {printable(tensor)!r} is not in {printable(name)}, as the index says.")

    def _header(self, file: RemoteFile) -> ShardHeader:
        head = self._bytes(file, 0, min(FIRST_READ, file.size))
        length = int.from_bytes(head[:8], "little") if len(head) >= 8 else 0
        if not 2 <= length <= MAX_HEADER_BYTES or 8 + length > file.size:
            raise ModelFileError(
                f"{printable(file.name)} is not a safetensors file: its header has an impossible length."
            )
        head += self._bytes(file, len(head), max(len(head), 8 + length))
        return check_header(bytes(head[8 : 8 + length]), file.name, file.size)

    def _bytes(self, file: RemoteFile, start: int, end: int) -> bytearray:
        buffer = bytearray(end - start)
        self._reader.read(file, start, end, memoryview(buffer))
        return buffer

    @property
    def names(self) -> Collection[str]:
        return self._entries.keys()

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries.values())

    def entry(self, name: str) -> TensorEntry | None:
        return self._entries.get(name)

    def tensor(self, name: str) -> Tensor:
        entry = self._entries[name]
        return self._read(name, entry.start, entry.end).view(entry.dtype).reshape(entry.shape)

    def rows(self, name: str, first: int, last: int) -> Tensor:
        entry = self._entries[name]
        size = entry.shape[-1] * entry.dtype.itemsize
        part = self._read(name, entry.start + first * size, entry.start + last * size)
        return part.view(entry.dtype).reshape(last - first, entry.shape[-1])

    def file_of(self, name: str) -> str:
        return self._files[name].name

    def _read(self, name: str, start: int, end: int) -> Tensor:
        buffer = torch.empty(end - start, dtype=torch.uint8)
        self._reader.read(self._files[name], start, end, buffer.numpy().data)
        return buffer


def _info(hub: Any, repository: str, revision: str | None, endpoint: str | None) -> Any:
    """Return the hub's description of a revision: its commit and files."""
    errors, shown = hub.errors, f"{printable(repository)}{f' at {printable(revision)}' if revision else ''}"
    place = printable(endpoint) if endpoint else "the hub"
    unreachable: tuple[type[Exception], ...] = (OSError, *transport_errors(hub.get_session()))
    try:
        return hub.HfApi(endpoint=endpoint).model_info(repository, revision=revision, files_metadata=True, timeout=30.0)
    except errors.GatedRepoError:
        raise StorageError(
            f"{shown} is gated, and this account has no access.",
            hint="Accept the terms on its page, then run `hf auth login` or set HF_TOKEN.",
        ) from None
    except errors.RevisionNotFoundError:
        raise ModelFileError(f"{printable(repository)} has no revision {printable(revision)!r}.") from None
    except errors.RepositoryNotFoundError:
        raise ModelFileError(
            f"the hub has no repository {printable(repository)!r}, or it is private.",
            hint="Check the name; for a private one log in with `hf auth login` or set HF_TOKEN.",
        ) from None
    except errors.OfflineModeIsEnabled:
        raise StorageError("the hub cannot be used, because HF_HUB_OFFLINE is set.", hint="Unset it.") from None
    except errors.HFValidationError as error:
        raise UsageError(f"{printable(error, 200)}") from None
    except (ValueError, TypeError, LookupError, AttributeError):
        raise StorageError(
            f"{shown}: {place} sent a reply that does not describe a repository.",
            hint="A network login page may be in the way. Set HF_ENDPOINT to use a mirror.",
        ) from None
    except unreachable as error:
        raise StorageError(
            f"{shown}: {place} cannot be reached: {printable(error, 200) or type(error).__name__}.",
            hint="Check the connection, or set HF_ENDPOINT to use a mirror.",
        ) from None
