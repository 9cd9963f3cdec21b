"""Files whose description was changed, with the checksum that belongs to it."""

import json
import zlib

from compresslab import archive
from compresslab.archive import CHECK, HEAD, MAGIC


def description_of(data):
    _, _, _, stored, length = HEAD.unpack_from(data)
    return json.loads(archive._expand(2, data[HEAD.size : HEAD.size + stored], length))


def forge(data, description, streams=None, length=None):
    """The same streams with another description, and the checksum that belongs to it."""
    stored = HEAD.unpack_from(data)[3]
    streams = data[HEAD.size + stored : -CHECK] if streams is None else streams
    text = json.dumps(description).encode()
    short = archive._lzma(text, 3)
    size = HEAD.size + len(short) + len(streams) + CHECK
    length = len(text) if length is None else length
    whole = HEAD.pack(MAGIC, 1, size, len(short), length) + short + streams
    return whole + zlib.crc32(whole).to_bytes(CHECK, "little")
