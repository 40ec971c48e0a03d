"""Images in the files of a TFDS set, TFRecord or ArrayRecord, read by random access and without TensorFlow."""

import dataclasses
import hashlib
import io
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from runtime import decoding
from runtime.errors import UserError
from runtime.readers import num_cores


@dataclasses.dataclass(frozen=True, eq=False)
class TFRecords:
    """Records in TFRecord files, each of which is found by its offset, uint64 [n], and length, in a file of `paths`."""

    paths: Sequence[str]
    file: np.ndarray
    offset: np.ndarray
    length: np.ndarray

    @classmethod
    def find(cls, parts: Sequence[tuple[str, int, int]]) -> "TFRecords":
        """Those in (path, first, end) of some files; raises a ValueError if one is not whole.

        A record is its length as uint64, a checksum of 4 bytes, the record itself and another checksum.
        """
        found = []
        for number, (path, first, end) in enumerate(parts):
            with open(path, "rb") as file:
                size, position = os.fstat(file.fileno()).st_size, 0
                places: list[tuple[int, int, int]] = []
                while position < size and len(places) < end:
                    header = os.pread(file.fileno(), 8, position)
                    [length] = struct.unpack("<Q", header) if len(header) == 8 else [size]
                    places.append((number, position + 12, length))
                    position += length + 16
            if position > size or len(places) < end:
                raise ValueError(f"{path} ends within a record")
            found += places[first:]
        file_, offset, length_ = np.array(found, np.int64).reshape(-1, 3).T
        return cls([path for path, _, _ in parts], file_, offset, length_)

    def __len__(self) -> int:
        return len(self.offset)

    def __getitems__(self, rows: Sequence[int]) -> list[bytes]:
        """Some records, as ArrayRecord's data source gives them."""
        found = []
        for row in rows:
            with open(self.paths[self.file[row]], "rb", buffering=0) as file:
                found.append(os.pread(file.fileno(), self.length[row], self.offset[row]))
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class RecordImages:
    """Images of a TFDS set: like an array uint8 [n, height, width, channels].

    Attributes:
        records: of the set, with a `__getitems__`.
        rows: of these records, int64 [n].
        key: of the image in a record.
        image_shape: (height, width, channels).
        resized: whether images are brought to it, in colour; otherwise they have it.
        mark: of the files of the set.
    """

    records: Any
    rows: np.ndarray
    key: str
    image_shape: tuple[int, int, int]
    resized: bool
    mark: bytes

    dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(number, height, width, channels)."""
        return len(self), *self.image_shape

    @property
    def identity(self) -> str:
        """A name that other images do not have, nor these once their files have changed; "" if it is not known."""
        if not self.mark:
            return ""
        parts = (self.mark, str(self.shape).encode(), self.rows.tobytes())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    @property
    def has_views(self) -> bool:
        """Whether random crops differ from what evaluation sees."""
        return self.resized

    def take(self, indices: np.ndarray) -> "RecordImages":
        """The images at `indices`, in that order, none of which is read."""
        return dataclasses.replace(self, rows=self.rows[indices])

    def read(self, rows: np.ndarray, keys: np.ndarray | None = None, min_area: float = 1.0) -> np.ndarray:
        """Decodes images; see `image_files.ImageFiles.read`."""
        import PIL.Image

        images = np.empty((len(rows), *self.image_shape), np.uint8)
        for i, features in enumerate(_features(self.records, self.rows[rows])):
            file = io.BytesIO(features[self.key].bytes_list.value[0])
            try:
                if self.resized:
                    images[i] = decoding.view(file, self.image_shape, None if keys is None else keys[i], min_area)
                else:
                    with PIL.Image.open(file) as image:
                        images[i] = np.asarray(image).reshape(self.image_shape)
            except (ValueError, OSError) as error:
                raise UserError(f"image {self.rows[rows[i]]} of the data set cannot be read: {error}") from error
        return images


def _features(records: Any, rows: np.ndarray) -> list[Any]:
    """What is in some records, by name."""
    from tensorflow_datasets.proto import tf_example_pb2

    found = records.__getitems__(rows.tolist())
    return [tf_example_pb2.Example.FromString(record).features.feature for record in found]


def read_labels(records: Any, key: str) -> np.ndarray:
    """The labels in all records, int32 [n]."""

    def read(rows: np.ndarray) -> list[int]:
        return [features[key].int64_list.value[0] for features in _features(records, rows)]

    parts = np.array_split(np.arange(len(records)), max(1, len(records) // 100))
    with ThreadPoolExecutor(num_cores()) as pool:
        return np.concatenate([*pool.map(read, parts)]).astype(np.int32)
