"""The results file: one JSON object a line, one line a finished unit, never changed afterwards."""

import json
import os
from pathlib import Path

from minitransformer.files import UserError


class Records:
    """The records of a file. A line that a kill cut short is not one: `append` removes it first."""

    def __init__(self, file: Path):
        self.file = file

    def read(self) -> list[dict]:
        whole, _ = self._whole()
        records = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                is_record = isinstance(record["unit"], str)
            except (ValueError, TypeError, KeyError):
                is_record = False
            if not is_record:
                raise UserError(
                    f"{self.file}, line {number}: no record of a unit; restore the file"
                )
            records.append(record)
        return records

    def units(self) -> set[str]:
        return {record["unit"] for record in self.read()}

    def append(self, record: dict) -> None:
        """Write the whole line and wait for the disk; a unit has one record only."""
        if record["unit"] in self.units():
            raise UserError(f"{self.file} has a record of {record['unit']} already")
        whole, torn = self._whole()
        if torn:
            print(f"{self.file}: its last line was cut short ({len(torn)} bytes); removed")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        with open(self.file, "ab") as file:
            file.truncate(len(whole))
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def _whole(self) -> tuple[bytes, bytes]:
        """Return (complete lines, what stands behind the last newline)."""
        data = self.file.read_bytes() if self.file.exists() else b""
        end = data.rfind(b"\n") + 1
        return data[:end], data[end:]
