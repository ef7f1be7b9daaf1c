"""What every stage of the benchmark gets: its device, its time, and where its figures go."""

import gc
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from measuring.records import Records

from gpu import machine


class NeedsCudaError(RuntimeError):
    """A stage that means nothing without a GPU."""


@dataclass
class Stage:
    """One stage of a run.

    Attributes:
        name: of the stage and its file.
        device: what is measured.
        quick: toy sizes, few rounds.
        out: folder of the results.
        records: rows of this stage; each is in its file as soon as it is written.
        seconds: what the stage may take; a case that would start later is listed, not measured.
    """

    name: str
    device: torch.device
    quick: bool
    out: Path
    records: Records
    seconds: float
    begin: float = field(default_factory=time.monotonic)

    @property
    def is_cuda(self) -> bool:
        """Whether there is a GPU."""
        return self.device.type == "cuda"

    @property
    def elapsed_seconds(self) -> float:
        """Since the stage began."""
        return time.monotonic() - self.begin

    def has_time(self, where: str, share: float = 1.0) -> bool:
        """Whether a case may start; if not, it is named and recorded as unmeasured.

        Args:
            where: the case.
            share: of the stage's time that may have gone by.
        """
        if self.elapsed_seconds <= share * self.seconds:
            return True
        print(f"!!! not measured, the stage's {self.seconds:.0f} s are over: {where}", flush=True)
        self.records.write("unmeasured", where=where)
        return False

    def need_cuda(self) -> None:
        """Raise `NeedsCudaError` without a GPU."""
        if not self.is_cuda:
            raise NeedsCudaError(f"stage {self.name} needs a CUDA device; got {self.device}")

    def sample_state(self, where: str) -> dict[str, Any]:
        """Record clocks, power and temperature at this moment."""
        found = machine.state(self.device)
        if found:
            self.records.write("state", where=where, **found)
        return found

    def empty_memory(self) -> None:
        """Give back what nothing refers to, and start peaks anew."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def allocated_bytes(self) -> int:
        """In use by tensors; 0 without a GPU."""
        return torch.cuda.memory_allocated(self.device) if self.is_cuda else 0

    def peak_bytes(self) -> int:
        """Most that was in use since `empty_memory`; 0 without a GPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.is_cuda else 0

    def reserved_bytes(self) -> int:
        """Most that was reserved since `empty_memory`; 0 without a GPU."""
        return torch.cuda.max_memory_reserved(self.device) if self.is_cuda else 0

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)
